package guard

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
func (g *Guards) waitForWatchers(ctx context.Context, l *Held, gone []string) error {
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
			return a == l.ClientAddr() || slices.Contains(gone, a)
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
		if err := g.RefuseReaders(ctx, l.Image().ID); err != nil { // says which node it is
			return err
		}
		inUse = fmt.Errorf("%w by %s, which is no volume of this plugin (a virtual machine, rbd map, another plugin, a manager that flattens it?): "+
			"find it with rbd status, stop it there", backend.ErrInUse, strings.Join(others, ", "))
		if !backend.Pause(ctx, g.Poll) {
			return inUse
		}
		switch changed, err := g.changed(ctx, l); {
		case err != nil && ctx.Err() != nil:
			return inUse
		case err != nil:
			return err
		case changed: // else two could wait for each other's watch
			return fmt.Errorf("%w while waiting for other watchers of the image", backend.ErrConflict)
		}
	}
}

// isAlive tells whether one of the holder's clients watches the image. It looks
// twice: one that is about to map watches a moment after its guard says so, and
// one that lost its OSD may be just about to watch again.
func (g *Guards) isAlive(ctx context.Context, h backend.Handle, held Record) (bool, error) {
	moment := g.pollInterval()
	if held.State == Mapping {
		moment = 5 * g.Poll
	}
	for look := range 2 {
		if look > 0 && !backend.Pause(ctx, moment) {
			return true, nil // no time to be sure
		}
		if alive, err := isWatched(ctx, h, held); err != nil || alive {
			return alive, err
		}
	}
	return false, nil
}

// isWatched tells whether Ceph has one of the guard's clients among the watchers of
// its image.
func isWatched(ctx context.Context, h backend.Handle, held Record) (bool, error) {
	watchers, err := h.Watchers(ctx)
	return slices.ContainsFunc(held.Addrs, func(a string) bool { return slices.Contains(watchers, a) }), err
}

// pollInterval is how often a waiting node looks at the guard.
func (g *Guards) pollInterval() time.Duration { return g.Poll / 5 }
