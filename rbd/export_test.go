package rbd

import (
	"context"
	"errors"
	"time"

	"github.com/ceph/go-ceph/rados"
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

// LookAtKey has the next call look whether the key is another.
func (p *Pool) LookAtKey() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current.look = time.Time{}
}

// MonTimeout sets how long clients that are made from now on wait for a monitor's answer.
func MonTimeout(seconds string) (undo func()) {
	before := timeouts["rados_mon_op_timeout"]
	timeouts["rados_mon_op_timeout"] = seconds
	return func() { timeouts["rados_mon_op_timeout"] = before }
}

// RenewLate has a client made anew that was about to be when the pool was closed, and tells
// whether the pool has one then.
func (p *Pool) RenewLate(ctx context.Context) (connected bool, err error) {
	c, err := p.get(ctx)
	if err != nil {
		return false, err
	}
	p.Close()
	p.mu.Lock()
	c.users++
	c.silent = true
	p.mu.Unlock()
	p.renew(c)
	p.put(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current != nil, nil
}

// DeleteDue deletes an image from the trash; between comes after the look that found its time
// to be up.
func (p *Pool) DeleteDue(ctx context.Context, id string, between func()) error {
	return p.do(ctx, "empty the trash", reads, func(_ *client, ioctx *rados.IOContext) error {
		due, _, err := trashStay(ioctx, id)
		if err != nil {
			return err
		}
		between()
		return deleteDue(ioctx, id, due)
	})
}
