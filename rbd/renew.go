package rbd

import (
	"cmp"
	"errors"
	"syscall"
	"time"
)

// keyInterval is how often the key is looked at.
const keyInterval = 2 * time.Second

// renew makes a client anew if its key has been rotated, or if the monitors do not answer
// it. One that is connected does not need its key until it has to connect to a monitor again;
// refused then, it never tries again, not even if the key is right (seen with 16.2: a key
// rotated, and the monitor restarted). It goes on as long as no other one can be made.
func (p *Pool) renew(c *client) {
	defer p.put(c)
	p.mu.Lock()
	silent, why := c.silent, c.why
	p.mu.Unlock()
	wait := keyInterval
	key, err := keyOf(p.cfg.client(), c.conn.GetConfigOption)
	var next *client
	if err == nil && (key != c.key || silent) {
		if next, err = p.newClient(func(string) {}); err != nil {
			say := p.cfg.Log.Warnf
			if errno(err) == syscall.ETIMEDOUT || err.Error() == why { // Ceph is away, and who asks is told; or it was said
				say = p.cfg.Log.Debugf
			}
			say("no other client of ceph can be made: %v", err)
			wait = 5 * keyInterval
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.renewing, c.look, c.silent = false, time.Now().Add(wait), false
	switch {
	case next != nil && c.retired: // meanwhile: perhaps the pool was closed
		go next.conn.Shutdown()
	case next != nil:
		p.retireLocked(c, errors.New("there is a new one"))
		p.take(next)
	case err != nil:
		c.why = err.Error()
	}
}

// unanswered notes that the monitors have not answered a client.
func (p *Pool) unanswered(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.silent, c.look = true, time.Time{}
}

// noAnswer says what it means.
func (p *Pool) noAnswer(c *client) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return cmp.Or(c.why, noMonitor(c.mons))
}
