package driver

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// outage remembers that Ceph did not answer. As long as it lasts, what Docker
// asks is answered from the cache at once: dockerd asks for one volume after
// the other when it starts, and would wait for each.
//
// It is about the connection: Images.Ping, which is about no image, begins and ends
// it. What cannot be learned of one volume while Ceph answers is that volume's own
// error, and is nothing to the others.
type outage struct {
	mu    sync.Mutex
	cause error         // nil = Ceph answers, as far as is known
	ping  *ping         // that is under way; nil = none
	first chan struct{} // closed when the first question since the start has had its time; nil = it has
	soon  time.Time     // by when it is answered as a rule
}

// why tells why Ceph cannot be asked; nil = ask.
func (o *outage) why() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cause
}

// ping is a question that those who want to know whether Ceph answers wait for together.
type ping struct {
	done chan struct{}
	err  error
}

// away is the cause of an outage, told instead of an answer.
type away struct{ error }

func (a away) Unwrap() error { return a.error }

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
// then what the cache knows is not asked for, or a dockerd that starts would
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

// ask asks Ceph about a volume, for no longer than the patience, and not during an
// outage, when it returns away. If there is no answer Ceph itself is asked: an outage
// begins only if that has none either.
func (d *Driver) ask(ctx context.Context, patience time.Duration, question func(context.Context) error) error {
	if cause := d.outage.why(); cause != nil {
		return away{cause}
	}
	try, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// A question that hangs is to be followed by no second wait of the same length.
	told := make(chan error, 1)
	early := time.AfterFunc(patience/5, func() { told <- d.ping() })
	err := question(try)
	inTime := early.Stop()
	switch {
	case answered(err), errors.Is(err, backend.ErrOverloaded):
		return err
	case errors.Is(ctx.Err(), context.Canceled): // who hangs up says nothing of Ceph
		return err
	}
	var cause error
	if !inTime {
		cause = <-told
	}
	if cause == nil {
		cause = d.ping()
	}
	if cause != nil {
		d.beginOutage(cause)
		return away{cause}
	}
	return err
}

// ping asks Ceph whether it answers, once for all who want to know at the time.
func (d *Driver) ping() error {
	d.outage.mu.Lock()
	now := d.outage.ping
	if now == nil {
		now = &ping{done: make(chan struct{}), err: errors.New("the question was cut short")}
		d.outage.ping = now
		go func() {
			defer func() {
				d.outage.mu.Lock()
				d.outage.ping = nil
				d.outage.mu.Unlock()
				close(now.done)
			}()
			ctx, cancel := context.WithTimeout(context.Background(), d.patience*2/5)
			defer cancel()
			err := backend.Survive(func() error { return d.images.Ping(ctx) })
			if errors.Is(err, backend.ErrOverloaded) {
				err = nil
			}
			now.err = err
		}()
	}
	d.outage.mu.Unlock()
	<-now.done
	return now.err
}

// beginOutage remembers that Ceph is away, until it answers.
func (d *Driver) beginOutage(cause error) {
	if !d.outage.begin(cause) {
		return
	}
	began := time.Now()
	d.log.Warnf("ceph does not answer: %v; until it does, docker gets its answers from the cache", cause)
	go func() {
		for d.ping() != nil {
			time.Sleep(5 * d.poll)
		}
		d.outage.end()
		d.log.Warnf("ceph answers again, after %v", time.Since(began).Round(time.Second))
	}()
}

// withOutageTimeout gives a request that changes something less time while Ceph is known
// to be away: Docker may have as little as 30 s, and who asks is to get the
// reason. Swarm asks again.
func (d *Driver) withOutageTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.outage.why() == nil {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, 2*d.patience)
}

// answers asks, if Ceph is in doubt, one question before a long request:
// dockerd answers nobody when it starts until it has tried to start each container
// that has --restart (20.10, 26.1). It asks of the volume itself, as another's
// part of Ceph may be the one that is away.
func (d *Driver) answers(ctx context.Context, volume string) error {
	if !d.outage.doubtful() {
		return nil
	}
	_, err := d.exists(ctx, volume)
	return err
}

// exists asks whether there is a volume. It is given up early if Ceph has no answer to a
// question about no volume either, twice in a row: a machine that has only just booted takes
// a while to connect, and one that is slow, or whose OSD recovers, is not away.
func (d *Driver) exists(ctx context.Context, volume string) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d.patience)
	defer cancel()
	silent := make(chan error, 1)
	pings := time.AfterFunc(d.patience/5, func() {
		if d.ping() == nil || ctx.Err() != nil { // it may have been begun by others, before
			return
		}
		if err := d.ping(); err != nil {
			silent <- err
			cancel()
		}
	})
	defer pings.Stop()
	if found, err = d.images.Exists(ctx, volume); err != nil {
		select {
		case err = <-silent: // who was cut short knows no reason
		default:
		}
	}
	return found, err
}

// answered tells whether Ceph has spoken, be it of an error.
func answered(err error) bool {
	return !errors.Is(err, backend.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded)
}
