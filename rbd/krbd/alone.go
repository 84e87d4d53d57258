package krbd

import (
	"context"
	"fmt"
	"sync"
)

// underway is a call for an image that has not ended.
type underway struct {
	done chan struct{}

	mu   sync.Mutex
	step string // what it is at: the kernel's part, or cryptsetup's
}

// at notes what the call is at from now on, for who gives up waiting for it.
func (u *underway) at(step string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.step = step
}

func (u *underway) is() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.step
}

// alone runs a call of the kernel's when no other is under way for the same
// image. The caller waits no longer than its context lasts, and is told the step
// that took the time. The call itself cannot be ended: it goes on, and the next
// one for this image waits for it.
func (m *Mapper) alone(ctx context.Context, key, step string, call func(*underway) error) error {
	u := &underway{done: make(chan struct{}), step: step}
	for {
		m.mu.Lock()
		before := m.underway[key]
		if before == nil {
			if m.underway == nil {
				m.underway = map[string]*underway{}
			}
			m.underway[key] = u
			m.mu.Unlock()
			break
		}
		m.mu.Unlock()
		select {
		case <-before.done:
		case <-ctx.Done():
			return fmt.Errorf("%s: an earlier call for this image has not ended (%s): %w", step, before.is(), ctx.Err())
		}
	}
	var err error
	go func() {
		err = call(u)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.underway, key)
		close(u.done)
	}()
	select {
	case <-u.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s has not ended in time: %w", u.is(), ctx.Err())
	}
}
