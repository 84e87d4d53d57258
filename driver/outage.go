package driver

import (
	"context"
	"errors"
	"sync"
	"time"
)

// outage remembers that Ceph did not answer. As long as it lasts, what Docker
// asks is answered from the record at once: dockerd asks for one volume after
// the other when it starts, and would wait for each.
type outage struct {
	mu    sync.Mutex
	cause error         // nil = Ceph answers, as far as is known
	first chan struct{} // closed when the first question since the start has had its time; nil = it has
	soon  time.Time     // by when it is answered as a rule
}

// why tells why Ceph cannot be asked; nil = ask.
func (o *outage) why() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cause
}

// begin notes a cause; false if an outage is known already.
func (o *outage) begin(cause error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cause != nil {
		return false
	}
	o.cause = cause
	return true
}

func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cause = nil
}

// start notes that the first question since the start is asked now, until known
// is called.
func (o *outage) start(soon time.Duration) (known func()) {
	first := make(chan struct{})
	o.mu.Lock()
	defer o.mu.Unlock()
	o.first, o.soon = first, time.Now().Add(soon)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		close(first)
		o.first = nil
	}
}

var errEarly = errors.New("the plugin has just started, and ceph has not answered yet")

// early tells whether the first question is open and takes longer than usual:
// then what the record knows is not asked for, or a dockerd that starts would
// wait for what is only about to be found out.
func (o *outage) early() bool {
	o.mu.Lock()
	first, soon := o.first, o.soon
	o.mu.Unlock()
	if first == nil {
		return false
	}
	select {
	case <-first:
		return false
	case <-time.After(time.Until(soon)):
		return true
	}
}

// doubtful tells whether Ceph is known to be away, or may be about to be.
func (o *outage) doubtful() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cause != nil || o.first != nil
}

// ask asks Ceph, for no longer than the patience, and not during an outage. One
// that begins here ends when the same question is answered.
func (d *Driver) ask(ctx context.Context, patience time.Duration, question func(context.Context) error) error {
	if cause := d.outage.why(); cause != nil {
		return cause
	}
	try := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return question(ctx)
	}
	err := try(ctx)
	if answered(err) || errors.Is(ctx.Err(), context.Canceled) { // who hangs up says nothing of Ceph
		return err
	}
	if d.outage.begin(err) {
		began := time.Now()
		d.log.Warnf("ceph does not answer: %v; until it does, docker gets its answers from the record", err)
		go func() {
			for !answered(try(context.Background())) {
				time.Sleep(5 * d.poll)
			}
			d.outage.end()
			d.log.Warnf("ceph answers again, after %v", time.Since(began).Round(time.Second))
		}()
	}
	return err
}

// inTrouble gives a request that changes something less time while Ceph is known
// to be away: Docker may have as little as 30 s, and who asks is to get the
// reason. Swarm asks again.
func (d *Driver) inTrouble(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.outage.why() == nil {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, 2*d.patience)
}

// answers asks, if Ceph is in doubt, one short question before a long request:
// dockerd answers nobody when it starts until it has tried to start each container
// that has --restart (20.10, 26.1). It asks of the volume itself, as another's
// part of Ceph may be the one that is away.
func (d *Driver) answers(ctx context.Context, volume string) error {
	if !d.outage.doubtful() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.patience/2)
	defer cancel()
	_, err := d.images.Exists(ctx, volume)
	return err
}

// answered tells whether Ceph has spoken.
func answered(err error) bool {
	return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid)
}
