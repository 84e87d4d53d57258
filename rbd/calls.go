package rbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// manyCalls bounds the threads that hang in librados while Ceph is away: each
// call has one, and may outlive its request by rados_osd_op_timeout. An open
// image has none, but who waits for its holder has it open all the while.
const manyCalls, manyImages = 32, 256

// slots are so many at a time.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w (%d)", backend.ErrOverloaded, cap(s))
	}
}

func (s slots) free() { <-s }

// effect tells a call that only looks from one that changes something.
type effect bool

const (
	reads   effect = false
	changes effect = true
)

// do runs fn on the pool, on the current client. It returns when fn does, or
// with ErrUnavailable when the context ends first; fn then goes on alone.
func (p *Pool) do(ctx context.Context, what string, e effect, fn func(*client, *rados.IOContext) error) error {
	if err := begins(ctx, what); err != nil {
		return err
	}
	if err := p.calls.take(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	c, err := p.get(ctx)
	if err != nil {
		p.calls.free()
		return fmt.Errorf("%s: %w", what, err)
	}
	return p.run(ctx, c, what, e, func() error {
		defer p.calls.free()
		defer p.put(c)
		ioctx, err := p.ioctx(c)
		if err != nil {
			return err
		}
		defer ioctx.Destroy()
		if err = fn(c, ioctx); err == nil || errno(err) == syscall.ENOENT {
			err = cmp.Or(p.remains(c, ioctx), err)
		}
		return err
	})
}

// begins is an error for a request that has ended: what it begins now would be done when
// nobody waits for it any more.
func begins(ctx context.Context, what string) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: the request has ended before", what, backend.ErrUnavailable)
}

// run is do on a given client.
func (p *Pool) run(ctx context.Context, c *client, what string, e effect, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- backend.Survive(fn) }()
	select {
	case err := <-done:
		if errno(err) == syscall.ETIMEDOUT { // in librados
			why := p.diagnose(c)
			if e == changes { // the OSD may have it, and do it later
				p.retire(c, err)
			}
			return fmt.Errorf("%w; %s", translate(what, err), why)
		}
		if gone(err) {
			p.retire(c, err)
		}
		return translate(what, err)
	case <-ctx.Done():
		why := "the request has ended"
		if !errors.Is(ctx.Err(), context.Canceled) {
			why = p.diagnose(c)
		}
		if e == changes {
			p.retire(c, fmt.Errorf("%s has not ended in time", what))
		}
		return fmt.Errorf("%s: %w: no answer in time; %s", what, backend.ErrUnavailable, why)
	}
}

// ioctx is a context of its own for each call: the version of the last object
// that was read, which the guard needs, belongs to the context.
//
// Calls on it fail when the cluster or the pool is full. Librados would wait for
// space, with what needs none too, such as giving a guard back.
func (p *Pool) ioctx(c *client) (*rados.IOContext, error) {
	if err := p.checkNamespace(c); err != nil {
		return nil, err
	}
	return p.open(c)
}

func (p *Pool) open(c *client) (*rados.IOContext, error) {
	ioctx, err := c.conn.OpenIOContext(p.cfg.Pool)
	if errno(err) == syscall.ENOENT {
		return nil, p.noPool()
	}
	if err != nil {
		// Its errno must not be taken for the volume's.
		return nil, fmt.Errorf("pool %q: %w: %s", p.cfg.Pool, backend.ErrUnavailable, err.Error())
	}
	if err := ioctx.SetPoolFullTry(); err != nil {
		ioctx.Destroy()
		return nil, err
	}
	ioctx.SetNamespace(p.cfg.Namespace)
	return ioctx, nil
}

// remains makes sure that the pool was there until now: of what is in a pool
// that has been deleted meanwhile librados says that it is not found, and librbd
// lists no images. It looks at the map that the client has.
func (p *Pool) remains(c *client, ioctx *rados.IOContext) error {
	id, err := c.conn.GetPoolByName(p.cfg.Pool)
	if err == nil && id == ioctx.GetPoolID() {
		return nil
	}
	return p.noPool()
}

func (p *Pool) noPool() error {
	return fmt.Errorf("pool %q: %w: the cluster has no pool of this name; see ceph osd pool ls, and the setting RBD_CONF_POOL or RBD_POOLS",
		p.cfg.Pool, backend.ErrUnavailable)
}
