package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Holding is a volume that a node has, as its guard says.
type Holding struct {
	Volume string `json:"volume"`
	Guard
	// Alive: one of the clients was seen by Ceph within its watch timeout (30 s).
	Alive bool `json:"alive"`

	imageID string
	version Version
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
			var h Holding
			err := Survive(func() (err error) {
				h, err = d.holding(ctx, name)
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				all = append(all, h)
			case !errors.Is(err, ErrNotFound): // free or just removed
				errs = append(errs, fmt.Errorf("volume %s: %w", name, err))
			}
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b Holding) int { return strings.Compare(a.Volume, b.Volume) })
	return all, errors.Join(errs...)
}

// holding looks at one volume; ErrNotFound if no node has it.
func (d *Driver) holding(ctx context.Context, name string) (Holding, error) {
	h, err := d.images.Open(ctx, name, ReadOnly)
	if err != nil {
		return Holding{}, err
	}
	defer d.closeHandle(ctx, h)
	guard, version, err := d.loadGuard(ctx, h.Image().ID)
	if err != nil {
		return Holding{}, err
	}
	alive, err := seen(ctx, h, guard)
	return Holding{Volume: name, Guard: guard, Alive: alive, imageID: h.Image().ID, version: version}, err
}

// FenceNode takes all volumes from a node that is known to be dead, without
// waiting for Ceph to miss it, and returns them. Its clients are barred for
// years before their guards are given back, so a node that was alive after all
// can do no harm; its containers get I/O errors. It is refused for this node.
func (d *Driver) FenceNode(ctx context.Context, node string) ([]Holding, error) {
	taken, err := d.fenceNode(ctx, node)
	return taken, wrap("fence node "+node, "", err)
}

func (d *Driver) fenceNode(ctx context.Context, node string) (taken []Holding, err error) {
	switch node {
	case "":
		return nil, invalidf("request: it must name the node")
	case d.node.Name:
		return nil, invalidf("request: %s is this very node; ask the plugin of another one", node)
	}
	// A node that was called dead and is not may just be mounting.
	for range 3 {
		// What hangs, as the dead node had OSDs, must leave time for the rest.
		look, cancel := context.WithTimeout(ctx, 15*time.Second)
		all, lookErr := d.holdings(look)
		cancel()
		held := slices.DeleteFunc(slices.Clone(all), func(h Holding) bool { return h.Node != node })
		if len(held) == 0 {
			if len(taken) == 0 && lookErr == nil {
				lookErr = fmt.Errorf("volumes of this node: %w; nodes with volumes: %s", ErrNotFound, nodes(all))
			}
			return taken, lookErr // a volume that cannot be looked at may be the node's, too
		}
		now, takeErr := d.fenceAll(ctx, held)
		taken = append(taken, now...)
		if takeErr != nil {
			return taken, errors.Join(lookErr, takeErr)
		}
	}
	return taken, fmt.Errorf("%w: the node goes on mounting volumes, so it is alive; power it off and ask again", ErrInUse)
}

// fenceAll takes volumes from their holders. One whose guard has changed
// meanwhile is left, and not returned.
func (d *Driver) fenceAll(ctx context.Context, held []Holding) (taken []Holding, err error) {
	hosts, err := d.node.Hosts()
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, h := range held {
		for _, addr := range h.Addrs {
			if ip, ok := addrIP(addr); !ok || slices.Contains(hosts, ip) {
				return nil, invalidf("request: %s has volume %s as a client of %s, an address of this very node", h.Node, h.Volume, addr)
			}
		}
		addrs = append(addrs, h.Addrs...)
	}
	if err := d.fences.Fence(ctx, addrs...); err != nil {
		return nil, err
	}
	for _, h := range held {
		deleteErr := d.records.Delete(ctx, guardKey(h.imageID), h.version)
		if errors.Is(deleteErr, ErrLost) || errors.Is(deleteErr, ErrNotFound) {
			continue
		}
		if deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("volume %s: %w", h.Volume, deleteErr))
			continue
		}
		d.log.WithField("volume", h.Volume).Warnf("fenced %s of node %s (%s since %s) for an operator",
			strings.Join(h.Addrs, ", "), h.Node, h.State, h.Since.Format(time.RFC3339))
		taken = append(taken, h)
	}
	return taken, err
}

// nodes names the nodes of holdings.
func nodes(all []Holding) string {
	names := map[string]bool{}
	for _, h := range all {
		names[h.Node] = true
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

// Holdings tells which node has which volume; see Driver.Holdings.
func (p Places) Holdings(ctx context.Context) ([]Holding, error) {
	lists, errs := make([][]Holding, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) { lists[i], errs[i] = d.Holdings(ctx) })
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b Holding) int { return strings.Compare(a.Volume, b.Volume) })
	return all, together(errs)
}

// FenceNode takes all volumes from a dead node; see Driver.FenceNode. A place where
// it has none is no error, as long as there is one where it has.
func (p Places) FenceNode(ctx context.Context, node string) ([]Holding, error) {
	lists, errs := make([][]Holding, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) { lists[i], errs[i] = d.FenceNode(ctx, node) })
	taken := slices.Concat(lists...)
	nowhere := !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, ErrNotFound) })
	for i, err := range errs {
		if errors.Is(err, ErrNotFound) && (!nowhere || i > 0) {
			errs[i] = nil
		}
	}
	return taken, together(errs)
}
