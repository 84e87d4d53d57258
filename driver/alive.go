package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// waitForWatchers waits until nobody but the control client, and a manager that
// makes a clone independent, has the image open. gone are clients of the holder
// before us: fenced, or bound to lose their next swap.
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
		if len(others) > 0 {
			managers, err := l.Managers(ctx)
			if err != nil {
				return err
			}
			others = slices.DeleteFunc(others, func(a string) bool { return slices.Contains(managers, a) })
		}
		if len(others) == 0 {
			return nil
		}
		if err := d.readElsewhere(ctx, l.Image().ID); err != nil { // says which node it is
			return err
		}
		inUse = fmt.Errorf("%w by %s, which is no volume of this plugin (a virtual machine, rbd map, another plugin, a manager that flattens it?): "+
			"find it with rbd status, stop it there", backend.ErrInUse, strings.Join(others, ", "))
		if !d.pause(ctx, d.poll) {
			return inUse
		}
		switch changed, err := d.changed(ctx, l); {
		case err != nil && ctx.Err() != nil:
			return inUse
		case err != nil:
			return err
		case changed: // else two could wait for each other's watch
			return fmt.Errorf("%w while waiting for other watchers of the image", backend.ErrLost)
		}
	}
}

// alive tells whether one of the holder's clients watches the image. It looks
// twice: one that is about to map watches a moment after its guard says so, and
// one that lost its OSD may be just about to watch again.
func (d *Driver) alive(ctx context.Context, h backend.Handle, held Guard) (bool, error) {
	moment := d.glance()
	if held.State == guardMapping {
		moment = 5 * d.poll
	}
	for look := range 2 {
		if look > 0 && !d.pause(ctx, moment) {
			return true, nil // no time to be sure
		}
		if alive, err := seen(ctx, h, held); err != nil || alive {
			return alive, err
		}
	}
	return false, nil
}

// seen tells whether Ceph has one of the guard's clients among the watchers of
// its image.
func seen(ctx context.Context, h backend.Handle, held Guard) (bool, error) {
	watchers, err := h.Watchers(ctx)
	return slices.ContainsFunc(held.Addrs, func(a string) bool { return slices.Contains(watchers, a) }), err
}

func inUseBy(g Guard) error {
	return fmt.Errorf("%w by node %s (%s), %s since %s; stop what uses it there",
		backend.ErrInUse, g.Node, strings.Join(g.Addrs, ", "), g.State, g.Since.Format(time.RFC3339))
}

// glance is how often whoever waits looks at the guard.
func (d *Driver) glance() time.Duration { return d.poll / 5 }

// pause waits; false when the context leaves no time for it.
func (d *Driver) pause(ctx context.Context, t time.Duration) bool {
	return d.timeFor(ctx, t) && backend.Sleep(ctx, t)
}

// timeFor tells whether a context lasts for longer than that.
func (d *Driver) timeFor(ctx context.Context, t time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() == nil && (!ok || time.Until(deadline) > t)
}
