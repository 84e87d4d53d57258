package guard

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

// Status is a volume that a node has, as its guard says, or reads: the state is
// "reading" then, and the address that of its control client.
type Status struct {
	Volume string `json:"volume"`
	Record
	// Alive: one of the clients was seen by Ceph within its watch timeout (30 s).
	Alive bool `json:"alive"`

	imageID string
	version backend.Version
	client  string // the control client of this node
}

// List tells which node has which volume, sorted by volume. With an error it is what could
// be learned all the same.
func (g *Guards) List(ctx context.Context) ([]Status, error) {
	names, err := g.Images.Names(ctx)
	var (
		all  []Status
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
			var these []Status
			err := backend.Survive(func() (err error) {
				these, err = g.status(ctx, name)
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
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(strings.Compare(a.Volume, b.Volume), strings.Compare(a.Node, b.Node))
	})
	return all, errors.Join(errs...)
}

// status looks at one volume: who has its guard, or who reads it without one.
func (g *Guards) status(ctx context.Context, name string) (all []Status, err error) {
	h, err := g.Images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer CloseHandle(ctx, g.Log, h)
	has := func(held Record, version backend.Version) error {
		alive, err := isWatched(ctx, h, held)
		if err == nil {
			all = append(all, Status{Volume: name, Record: held, Alive: alive, imageID: h.Image().ID, version: version, client: h.ClientAddr()})
		}
		return err
	}
	held, version, err := g.Load(ctx, h.Image().ID)
	if err == nil {
		err = has(held, version)
	}
	if err != nil && !errors.Is(err, backend.ErrNotFound) {
		return nil, err
	}
	readers, _, err := g.Readers(ctx, h.Image().ID)
	for _, r := range readers {
		if err == nil {
			err = has(r.record(), 0)
		}
	}
	return all, err
}
