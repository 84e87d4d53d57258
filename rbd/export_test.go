package rbd

import (
	"context"
	"errors"
	"time"
)

// DiagnoseLate is what a call says of a client that was retired and shut down while
// the call was still to say why it had no answer, and the monitors are silent.
func (p *Pool) DiagnoseLate(ctx context.Context) (string, error) {
	c, err := p.get(ctx)
	if err != nil {
		return "", err
	}
	p.retire(c, errors.New("for a test"))
	c.conn.Shutdown() // as put does
	p.mu.Lock()
	c.users = 0
	p.asked = &diagnosis{until: time.Now(), done: make(chan struct{})}
	p.mu.Unlock()
	return p.diagnose(c), nil
}
