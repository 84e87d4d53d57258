package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// aim is what the guard is wanted for.
type aim int

const (
	toMount  aim = iota // errShared if the volume is one that is mounted without
	toChange            // whatever it is
)

// acquire gets the guard of a volume's image, or says who has it. It waits for
// a live holder as long as the context lasts.
func (d *Driver) acquire(ctx context.Context, name string, to aim) (*lease, error) {
	var inUse error
	for {
		l, now, err := d.tryAcquire(ctx, name, to)
		if now != nil {
			inUse = now
		}
		switch {
		case l != nil:
			return l, nil
		case err != nil && (inUse == nil || ctx.Err() == nil):
			return nil, err
		case err != nil || !d.timeFor(ctx, d.glance()):
			return nil, inUse // says more than that the time was up
		}
	}
}

// tryAcquire waits until the guard can be had and tries to have it. It returns
// a lease; or who was seen to have it, when that has changed or the time is up;
// or an error. Until the guard is taken the image is open read-only: else those
// who wait would see one another among its watchers.
func (d *Driver) tryAcquire(ctx context.Context, name string, to aim) (l *lease, inUse, err error) {
	h, err := d.images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if l == nil || l.Handle != h {
			d.closeHandle(ctx, h)
		}
	}()
	held, version, err := d.loadGuard(ctx, h.Image().ID)
	if err != nil && !errors.Is(err, backend.ErrNotFound) {
		return nil, nil, err
	}
	mine, err := d.isMine(ctx, h.Image().ID, held)
	if err != nil {
		return nil, nil, err
	}
	if version == 0 && to == toMount {
		if err := d.notShared(ctx, h); err != nil {
			return nil, nil, err
		}
	}
	l = &lease{Handle: h, guard: held, version: version}
	if version != 0 && !mine {
		inUse, err = d.outlive(ctx, l)
	}
	if err == nil && inUse == nil {
		l.adopted, err = d.adopts(ctx, h.Image(), held)
	}
	if err != nil || inUse != nil {
		return nil, inUse, err
	}
	fence := mine || held.State != guardMapping
	if !l.adopted && version != 0 && to == toMount {
		if err = d.notShared(ctx, h); errors.Is(err, errShared) {
			return nil, nil, d.clear(ctx, l, fence)
		}
	}
	if err == nil && !l.adopted {
		err = d.take(ctx, l, fence)
	}
	if errors.Is(err, backend.ErrLost) {
		d.pause(ctx, d.glance())
		return nil, fmt.Errorf("%w: another node was faster to get the volume", backend.ErrInUse), nil
	}
	if err != nil {
		return nil, nil, err
	}
	return l, nil, nil
}

// notShared is errShared if the volume is mounted without a guard.
func (d *Driver) notShared(ctx context.Context, h backend.Handle) error {
	meta, err := readMeta(ctx, h)
	if err == nil && meta.IsSealed(h.Image()) {
		err = errShared
	}
	return err
}

// clear takes the guard that a dead node has left on a volume without one away: it
// was about to remove it, say. There may be readers, so that nobody may write.
func (d *Driver) clear(ctx context.Context, l *lease, fence bool) error {
	if fence {
		if err := d.fence(ctx, l, l.guard); err != nil {
			return err
		}
	}
	if err := d.giveBack(ctx, l.Image().ID, l.version); err != nil {
		return err
	}
	return errShared
}

// outlive waits for the death of the holder, a client of another node; nil
// when it is dead. When its guard changes, or the time is up, it returns who
// that was.
func (d *Driver) outlive(ctx context.Context, l *lease) (inUse, err error) {
	for looks := 0; ; looks++ {
		if looks == 10 { // a planned move is over by then
			defer d.want(ctx, l.Image().ID)()
		}
		alive, err := d.alive(ctx, l.Handle, l.guard)
		if err != nil {
			return inUse, err
		}
		inUse = inUseBy(l.guard)
		if !alive {
			// It may have let go in order since its guard was read: nobody to fence.
			if changed, err := d.changed(ctx, l); err != nil || changed {
				return inUse, err
			}
			return nil, nil
		}
		d.log.WithField("volume", l.Image().Name).Debugf("waiting: %v", inUse)
		// To look at the guard is one small read, and it is what a planned move
		// waits for; the watchers tell of a death, after Ceph's 30 s.
		for range d.poll / d.glance() {
			if !d.pause(ctx, d.glance()) {
				return inUse, nil
			}
			if changed, err := d.changed(ctx, l); err != nil || changed {
				return inUse, err
			}
		}
	}
}

// changed tells whether the guard is another than it was, or none.
func (d *Driver) changed(ctx context.Context, l *lease) (bool, error) {
	_, version, err := d.loadGuard(ctx, l.Image().ID)
	if errors.Is(err, backend.ErrNotFound) {
		err = nil
	}
	return version != l.version, err
}

// adopts tells whether to continue with what this node has mapped under the
// guard. A mapping that is not under it is dropped: an orphan of a killed plugin
// that came up late, or one of ours that another node fenced, and gave the guard
// back, since we looked.
func (d *Driver) adopts(ctx context.Context, image backend.Image, held Guard) (bool, error) {
	all, err := d.mappings(ctx)
	if err != nil {
		return false, err
	}
	if err := d.alone(image, all); err != nil {
		return false, err
	}
	for _, m := range all {
		switch {
		case m.ID != image.ID:
		case m.Name != image.Name:
			return false, fmt.Errorf("%w: the image is mapped here as %s, its name of before; stop what uses that", backend.ErrInUse, m.Name)
		case m.Mode == backend.ReadOnly:
			return false, fmt.Errorf("%w: it is mounted read-only on this node (%s); stop the containers that use it", backend.ErrInUse, d.node.Name)
		case !held.covers(m):
			return false, d.drop(ctx, m)
		default:
			return true, nil
		}
	}
	// A kernel may be at it still, for a request that has ended: what it makes
	// would be a stranger to us.
	return false, d.mapper.Unmap(ctx, image.ID)
}

// take fences, if it must, and swaps the record, that of the holder before, for
// one of our own; ErrLost if another node was faster. Then it opens the image to
// write, which makes the control client that the record names a watcher: should
// we die in between, the record names a client that is not alive, and nobody
// waits for one that no record names.
func (d *Driver) take(ctx context.Context, l *lease, fence bool) (err error) {
	prev := l.guard
	if fence {
		if err := d.fence(ctx, l, prev); err != nil {
			return err
		}
	}
	seen := l.Handle
	l.guard = Guard{Node: d.node.Name, Boot: d.node.Boot, Since: d.now()}
	if err := d.swap(ctx, l, guardMapping, l.Client()); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if l.Handle != seen {
			d.closeHandle(ctx, l)
		}
		ctx, cancel := aftermath(ctx)
		defer cancel()
		err = backend.Also(err, "give the guard back", d.giveBack(ctx, seen.Image().ID, l.version))
	}()
	if err := d.openUnder(ctx, l, guardMapping); err != nil {
		return err
	}
	if d.unlock {
		if err := l.Unlock(ctx); err != nil {
			return err
		}
	}
	return d.waitForWatchers(ctx, l, prev.Addrs)
}

// openUnder opens the image of a lease to write, under a guard in this state that
// names the control client already.
func (d *Driver) openUnder(ctx context.Context, l *lease, state string) error {
	seen := l.Handle
	h, err := d.images.Open(ctx, seen.Image().Name, backend.ReadWrite)
	if err != nil {
		return err
	}
	l.Handle = h
	if h.Image().ID != seen.Image().ID {
		return fmt.Errorf("%w: the image was replaced meanwhile", backend.ErrInUse)
	}
	if h.Client() != seen.Client() { // the connection was lost in between
		return d.swap(ctx, l, state, h.Client())
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
