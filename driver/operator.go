package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Holding is a volume that a node has, as its guard says, or reads: the state is
// "reading" then, and the address that of its control client.
type Holding struct {
	Volume string `json:"volume"`
	Guard
	// Alive: one of the clients was seen by Ceph within its watch timeout (30 s).
	Alive bool `json:"alive"`

	imageID string
	version backend.Version
	client  string // the control client of this node
}

// Holdings tells which node has which volume, sorted by volume. With an error
// it is what could be learned all the same.
func (d *Driver) Holdings(ctx context.Context) ([]Holding, error) {
	all, err := d.holdings(ctx)
	return all, wrap("list guards", "", err)
}

func (d *Driver) holdings(ctx context.Context) ([]Holding, error) {
	names, err := d.images.Names(ctx)
	var (
		all  []Holding
		errs = []error{err}
		mu   sync.Mutex
		wg   sync.WaitGroup
		free = make(chan struct{}, 16) // calls at a time: a small cluster has other things to do
	)
	for _, name := range names {
		free <- struct{}{}
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("volume %s and those after it: %w", name, ctx.Err()))
			break
		}
		wg.Go(func() {
			defer func() { <-free }()
			var these []Holding
			err := backend.Survive(func() (err error) {
				these, err = d.holding(ctx, name)
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, these...)
			switch {
			case err == nil:
			case !errors.Is(err, backend.ErrNotFound): // free or just removed
				errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
			}
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b Holding) int {
		return cmp.Or(strings.Compare(a.Volume, b.Volume), strings.Compare(a.Node, b.Node))
	})
	return all, errors.Join(errs...)
}

// holding looks at one volume: who has its guard, or who reads it without one.
func (d *Driver) holding(ctx context.Context, name string) (all []Holding, err error) {
	h, err := d.images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer d.closeHandle(ctx, h)
	has := func(guard Guard, version backend.Version) error {
		alive, err := seen(ctx, h, guard)
		if err == nil {
			all = append(all, Holding{Volume: name, Guard: guard, Alive: alive, imageID: h.Image().ID, version: version, client: h.Client()})
		}
		return err
	}
	guard, version, err := d.loadGuard(ctx, h.Image().ID)
	if err == nil {
		err = has(guard, version)
	}
	if err != nil && !errors.Is(err, backend.ErrNotFound) {
		return nil, err
	}
	readers, _, err := d.loadReaders(ctx, h.Image().ID)
	for _, r := range readers {
		if err == nil {
			err = has(r.guard(), 0)
		}
	}
	return all, err
}

// Holdings tells which node has which volume; see Driver.Holdings.
func (p Places) Holdings(ctx context.Context) ([]Holding, error) {
	lists, errs := make([][]Holding, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) { lists[i], errs[i] = d.Holdings(ctx) })
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b Holding) int { return strings.Compare(a.Volume, b.Volume) })
	return all, together(errs)
}
