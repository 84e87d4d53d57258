package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// where finds the pool of a volume: it is asked for everywhere at once. ErrNoVolume
// only if every pool says so.
func (p Pools) where(ctx context.Context, name string) (*Driver, error) {
	if len(p) == 1 {
		return p[0], nil
	}
	found, errs := make([]bool, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) {
		found[i], errs[i] = d.exists(ctx, name)
		found[i] = found[i] || errors.Is(errs[i], backend.ErrUnusable)
	})
	return p.only(name, found, errs)
}

// only picks the one pool that has the volume.
func (p Pools) only(name string, found []bool, errs []error) (at *Driver, err error) {
	for i, d := range p {
		if found[i] && at != nil {
			return nil, fmt.Errorf("%w: %s/%s and %s/%s; rename one of them (rbd rename), or remove it with rbd",
				backend.ErrAmbiguous, at.pool, name, d.pool, name)
		}
		if found[i] {
			at = d
		}
	}
	if at != nil {
		return at, nil
	}
	if err := together(errs); err != nil {
		return nil, err
	}
	return nil, backend.ErrNoVolume
}

func (p Pools) each(do func(i int, d *Driver)) {
	var wg sync.WaitGroup
	panics := make([]error, len(p))
	for i, d := range p {
		wg.Go(func() {
			panics[i] = backend.Survive(func() error {
				do(i, d)
				return nil
			})
		})
	}
	wg.Wait()
	if err := together(panics); err != nil { // what each returns has no room for it
		panic(err)
	}
}

// choose picks the pool for a new volume, and that of the one it is made of.
func (p Pools) choose(ctx context.Context, name string, opts map[string]string) (at, source *Driver, err error) {
	if err := backend.CheckName(name); err != nil {
		return nil, nil, err
	}
	if len(p) == 1 {
		return p[0], p[0], nil
	}
	at, err = p.where(ctx, name)
	switch {
	case errors.Is(err, backend.ErrNotFound):
		at, err = p.fitting(opts)
	case err == nil && volume.Accepts(at.pool, opts) != nil:
		err = fmt.Errorf("%w in %s; remove it there, or choose another name", backend.ErrExists, at.pool)
	}
	if err != nil {
		return nil, nil, err
	}
	from, _, _ := strings.Cut(opts[volume.OptFrom]+opts[volume.OptSnapshot], "@")
	if source = at; backend.ValidName(from) {
		if source, err = p.where(ctx, from); errors.Is(err, backend.ErrNotFound) {
			err = backend.Invalidf("option %s: there is no volume %s", volume.OptFrom, from)
		}
	}
	return at, source, err
}

// fitting is the first pool with the pool and the namespace of the options.
func (p Pools) fitting(opts map[string]string) (*Driver, error) {
	var names []string
	for _, d := range p {
		// A pool that is named alone is that pool, not a namespace of it.
		pool, space := strings.TrimSpace(opts[volume.OptPool]), strings.TrimSpace(opts[volume.OptNamespace])
		if volume.Accepts(d.pool, opts) == nil && (pool == "" || space != "" || d.pool.Namespace == "" || d == p[0]) {
			return d, nil
		}
		names = append(names, d.pool.String())
	}
	return nil, backend.Invalidf("option %s=%q, %s=%q: this plugin's volumes are in %s (settings RBD_CONF_POOL, RBD_CONF_NAMESPACE, RBD_POOLS)",
		volume.OptPool, opts[volume.OptPool], volume.OptNamespace, opts[volume.OptNamespace], strings.Join(names, ", "))
}

// at is where, for an operation that wants a volume which is there.
func (p Pools) at(ctx context.Context, op, name string) (*Driver, error) {
	err := backend.CheckName(name)
	var d *Driver
	if err == nil {
		d, err = p.where(ctx, name)
	}
	return d, wrap(op, name, err)
}

// together makes one line of what pools say, each thing once.
func together(errs []error) (all error) {
	var said []string
	for _, err := range errs {
		switch {
		case err == nil || slices.Contains(said, err.Error()):
			continue
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
		said = append(said, err.Error())
	}
	return all
}
