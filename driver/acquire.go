package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// acquire gets the guard of a volume's image, or says who has it. It waits for
// a live holder as long as the context lasts.
func (d *Driver) acquire(ctx context.Context, name string) (*lease, error) {
	var inUse error
	for mode := ReadWrite; ; mode = ReadOnly {
		l, now, err := d.tryAcquire(ctx, name, mode)
		if err != nil && inUse != nil && ctx.Err() != nil {
			return nil, inUse // says more than that the time was up
		}
		if err != nil || l != nil {
			return l, err
		}
		inUse = now
		d.log.WithField("volume", name).Debugf("waiting: %v", inUse)
		if !d.pause(ctx) {
			return nil, inUse
		}
	}
}

// tryAcquire looks once. It returns a lease, or whom to wait for, or an error.
// Whoever waits looks at the image read-only: else those who wait would see one
// another among its watchers.
func (d *Driver) tryAcquire(ctx context.Context, name string, mode OpenMode) (l *lease, inUse, err error) {
	h, err := d.images.Open(ctx, name, mode)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if l == nil || l.Handle != h {
			d.closeHandle(ctx, h)
		}
	}()
	held, version, err := d.loadGuard(ctx, h.Image().ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, nil, err
	}
	fence, adopt := held.State != guardMapping, false
	if version != 0 {
		switch mine, err := d.isMine(held); {
		case err != nil:
			return nil, nil, err
		case mine && held.Boot == d.node.Boot:
			fence = true
			if adopt, err = d.adopts(ctx, h.Image(), held); err != nil {
				return nil, nil, err
			}
		case mine: // an earlier boot needs no look: its kernel is gone
			fence = true
		default:
			alive, err := d.alive(ctx, h, held)
			if err != nil {
				return nil, nil, err
			}
			if alive {
				return nil, inUseBy(held), nil
			}
		}
	}
	writer := h
	if mode == ReadOnly {
		if writer, err = d.images.Open(ctx, name, ReadWrite); err != nil {
			return nil, nil, err
		}
	}
	l = &lease{Handle: writer, guard: held, version: version, adopted: adopt}
	if !adopt {
		err = d.take(ctx, l, h.Image().ID, fence)
	}
	if err != nil && writer != h {
		d.closeHandle(ctx, writer)
	}
	if errors.Is(err, ErrLost) {
		return nil, fmt.Errorf("%w: another node was faster to get the volume", ErrInUse), nil
	}
	if err != nil {
		return nil, nil, err
	}
	return l, nil, nil
}

// adopts tells whether to continue with what this boot of this node has mapped
// under its guard. A mapping that is not under the guard, an orphan of a killed
// plugin that came up late, is dropped.
func (d *Driver) adopts(ctx context.Context, image Image, held Guard) (bool, error) {
	all, err := d.mapper.Mappings(ctx)
	if err != nil {
		return false, err
	}
	for _, m := range all {
		switch {
		case m.ID != image.ID:
		case m.Name != image.Name:
			return false, fmt.Errorf("%w: the image is mapped here as %s, its name of before; stop what uses that", ErrInUse, m.Name)
		case !held.covers(m):
			return false, d.drop(ctx, m)
		default:
			return true, nil
		}
	}
	return false, nil
}

// take fences, if it must, and swaps the record, that of the holder before, for
// one of our own; ErrLost if another node was faster. The control client is a
// watcher of the image before the record names it.
func (d *Driver) take(ctx context.Context, l *lease, id string, fence bool) error {
	if l.Image().ID != id {
		return fmt.Errorf("%w: the image was replaced", ErrLost)
	}
	prev := l.guard
	if fence {
		if err := d.fence(ctx, l, prev); err != nil {
			return err
		}
	}
	l.guard = Guard{Node: d.node.Name, Boot: d.node.Boot, Since: d.now()}
	if err := d.swap(ctx, l, guardMapping, l.Client()); err != nil {
		return err
	}
	if err := d.waitForWatchers(ctx, l, prev.Addrs); err != nil {
		ctx, cancel := aftermath(ctx)
		defer cancel()
		return also(err, "give the guard back", d.giveBack(ctx, id, l.version))
	}
	return nil
}

// fence bars every client that may write under the record, but for our own
// control client: a call of ours that was left unfinished took its client with
// it (see package rbd), so the present one has none.
func (d *Driver) fence(ctx context.Context, l *lease, prev Guard) error {
	addrs := slices.DeleteFunc(slices.Clone(prev.Addrs), func(a string) bool { return a == l.Client() })
	if len(addrs) == 0 {
		return nil
	}
	if err := d.fences.Fence(ctx, addrs...); err != nil {
		return fmt.Errorf("fence %s of node %s: %w", strings.Join(addrs, ", "), prev.Node, err)
	}
	d.log.WithField("volume", l.Image().Name).
		Warnf("fenced %s, the dead client of node %s (%s since %s)",
			strings.Join(addrs, ", "), prev.Node, prev.State, prev.Since.Format(time.RFC3339))
	return nil
}

// waitForWatchers waits until nobody but the control client has the image
// open. gone are clients of the holder before us: fenced, or bound to lose
// their next swap.
func (d *Driver) waitForWatchers(ctx context.Context, l *lease, gone []string) error {
	var inUse error
	for {
		watchers, err := l.Watchers(ctx)
		if err != nil && inUse != nil && ctx.Err() != nil {
			return inUse
		}
		if err != nil {
			return err
		}
		others := slices.DeleteFunc(watchers, func(a string) bool {
			return a == l.Client() || slices.Contains(gone, a)
		})
		if len(others) == 0 {
			return nil
		}
		inUse = fmt.Errorf("%w by %s, which is no volume of this plugin (a virtual machine, rbd map, another plugin?): "+
			"find it with rbd status, stop it there", ErrInUse, strings.Join(others, ", "))
		if !d.pause(ctx) {
			return inUse
		}
	}
}

// alive tells whether one of the holder's clients still watches the image. It
// looks twice: a client that lost its OSD needs a moment to watch again.
func (d *Driver) alive(ctx context.Context, h Handle, held Guard) (bool, error) {
	for look := range 2 {
		if look > 0 && !d.pause(ctx) {
			return true, nil // no time to be sure
		}
		watchers, err := h.Watchers(ctx)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(held.Addrs, func(a string) bool { return slices.Contains(watchers, a) }) {
			return true, nil
		}
	}
	return false, nil
}

func inUseBy(g Guard) error {
	return fmt.Errorf("%w by node %s (%s), %s since %s; stop what uses it there",
		ErrInUse, g.Node, strings.Join(g.Addrs, ", "), g.State, g.Since.Format(time.RFC3339))
}

// pause waits a moment; false when the context leaves no time for it.
func (d *Driver) pause(ctx context.Context) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d.poll {
		return false
	}
	return sleep(ctx, d.poll)
}
