package driver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// GuardStatus tells which node has which volume, sorted by volume. With an error it is what
// could be learned all the same.
func (d *Driver) GuardStatus(ctx context.Context) ([]guard.Status, error) {
	all, err := d.guards.List(ctx)
	return all, wrap("list guards", "", err)
}

// FenceNode takes all volumes from a node that is known to be dead; see guard.Guards.
func (d *Driver) FenceNode(ctx context.Context, node, address string) ([]guard.Status, error) {
	taken, err := d.guards.FenceNode(ctx, node, address)
	return taken, wrap("fence node "+node, "", err)
}

// GuardStatus tells which node has which volume; see Driver.GuardStatus.
func (p Pools) GuardStatus(ctx context.Context) ([]guard.Status, error) {
	lists, errs := make([][]guard.Status, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) { lists[i], errs[i] = d.GuardStatus(ctx) })
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b guard.Status) int { return strings.Compare(a.Volume, b.Volume) })
	return all, together(errs)
}

// FenceNode takes all volumes from a dead node; see Driver.FenceNode. A pool where
// it has none is no error, as long as there is one where it has.
func (p Pools) FenceNode(ctx context.Context, node, address string) ([]guard.Status, error) {
	if len(p) > 1 && address == "" { // one machine may be in one pool, the other in another
		look, cancel := context.WithTimeout(ctx, 10*time.Second)
		all, _ := p.GuardStatus(look)
		cancel()
		if err := guard.OneMachine(node, all); err != nil {
			return nil, wrap("fence node "+node, "", err)
		}
	}
	lists, errs := make([][]guard.Status, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) { lists[i], errs[i] = d.FenceNode(ctx, node, address) })
	taken := slices.Concat(lists...)
	nowhere := !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, backend.ErrNotFound) })
	for i, err := range errs {
		if errors.Is(err, backend.ErrNotFound) && (!nowhere || i > 0) {
			errs[i] = nil
		}
	}
	return taken, together(errs)
}
