package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// Purpose is what a guard is wanted for.
type Purpose int

// The purposes.
const (
	ToMount  Purpose = iota // ErrShared if the volume is one that is mounted without
	ToChange                // whatever it is
)

// ErrShared is the answer to who wants to mount a sealed volume.
var ErrShared = errors.New("the volume is read-only, and mounted without a guard")

// Acquire gets the guard of a volume's image, or says who has it. It waits for a live holder
// as long as the context lasts.
func (g *Guards) Acquire(ctx context.Context, name string, to Purpose) (*Held, error) {
	var inUse error
	for {
		l, now, err := g.tryAcquire(ctx, name, to)
		if now != nil {
			inUse = now
		}
		switch {
		case l != nil:
			return l, nil
		case err != nil && (inUse == nil || ctx.Err() == nil):
			return nil, err
		case err != nil || !backend.HasTime(ctx, g.pollInterval()):
			return nil, inUse // says more than that the time was up
		}
	}
}

// tryAcquire waits until the guard can be had and tries to have it. It returns
// the guard; or who was seen to have it, when that has changed or the time is up;
// or an error. Until the guard is taken the image is open read-only: else those
// who wait would see one another among its watchers.
func (g *Guards) tryAcquire(ctx context.Context, name string, to Purpose) (l *Held, inUse, err error) {
	h, err := g.Images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if l == nil || l.Handle != h {
			CloseHandle(ctx, g.Log, h)
		}
	}()
	held, version, err := g.Load(ctx, h.Image().ID)
	if err != nil && !errors.Is(err, backend.ErrNotFound) {
		return nil, nil, err
	}
	mine, err := g.isOwn(ctx, h.Image().ID, held)
	if err != nil {
		return nil, nil, err
	}
	if version == 0 && to == ToMount {
		if err := g.refuseShared(ctx, h); err != nil {
			return nil, nil, err
		}
	}
	l = &Held{Handle: h, Record: held, version: version, guards: g}
	if version != 0 && !mine {
		inUse, err = g.waitForHolder(ctx, l)
	}
	if err == nil && inUse == nil {
		l.Adopted, err = g.Local.Adopt(ctx, h.Image(), held)
	}
	if err != nil || inUse != nil {
		return nil, inUse, err
	}
	fence := mine || held.State != Mapping
	if !l.Adopted && version != 0 && to == ToMount {
		if err = g.refuseShared(ctx, h); errors.Is(err, ErrShared) {
			return nil, nil, g.clear(ctx, l, fence)
		}
	}
	if err == nil && !l.Adopted {
		err = g.takeOver(ctx, l, fence)
	}
	if errors.Is(err, backend.ErrConflict) {
		backend.Pause(ctx, g.pollInterval())
		return nil, fmt.Errorf("%w: another node was faster to get the volume", backend.ErrInUse), nil
	}
	if err != nil {
		return nil, nil, err
	}
	return l, nil, nil
}

// refuseShared is ErrShared if the volume is mounted without a guard.
func (g *Guards) refuseShared(ctx context.Context, h backend.Handle) error {
	raw, err := h.Meta(ctx)
	if err == nil && volume.ParseMetadata(raw).IsSealed(h.Image()) {
		err = ErrShared
	}
	return err
}

// clear takes the guard that a dead node has left on a volume without one away: it
// was about to remove it, say. There may be readers, so that nobody may write.
func (g *Guards) clear(ctx context.Context, l *Held, fence bool) error {
	if fence {
		if err := g.fence(ctx, l, l.Record); err != nil {
			return err
		}
	}
	if err := l.Release(ctx); err != nil {
		return err
	}
	return ErrShared
}

// waitForHolder waits for the death of the holder, a client of another node; nil
// when it is dead. When its guard changes, or the time is up, it returns who
// that was.
func (g *Guards) waitForHolder(ctx context.Context, l *Held) (inUse, err error) {
	for looks := 0; ; looks++ {
		if looks == 10 { // a planned move is over by then
			defer g.want(ctx, l.Image().ID)()
		}
		alive, err := g.isAlive(ctx, l.Handle, l.Record)
		if err != nil {
			return inUse, err
		}
		inUse = &InUseError{l.Record}
		if !alive {
			// It may have let go in order since its guard was read: nobody to fence.
			if changed, err := g.changed(ctx, l); err != nil || changed {
				return inUse, err
			}
			return nil, nil
		}
		g.Log.WithField("volume", l.Image().Name).Debugf("waiting: %v", inUse)
		// To look at the guard is one small read, and it is what a planned move
		// waits for; the watchers tell of a death, after Ceph's 30 s.
		for range g.Poll / g.pollInterval() {
			if !backend.Pause(ctx, g.pollInterval()) {
				return inUse, nil
			}
			if changed, err := g.changed(ctx, l); err != nil || changed {
				return inUse, err
			}
		}
	}
}

// changed tells whether the guard is another than it was, or none.
func (g *Guards) changed(ctx context.Context, l *Held) (bool, error) {
	_, version, err := g.Load(ctx, l.Image().ID)
	if errors.Is(err, backend.ErrNotFound) {
		err = nil
	}
	return version != l.version, err
}

// takeOver fences, if it must, and swaps the record, that of the holder before, for
// one of our own; ErrConflict if another node was faster. Then it opens the image to
// write, which makes the control client that the record names a watcher: should
// we die in between, the record names a client that is not alive, and nobody
// waits for one that no record names.
func (g *Guards) takeOver(ctx context.Context, l *Held, fence bool) (err error) {
	prev := l.Record
	if fence {
		if err := g.fence(ctx, l, prev); err != nil {
			return err
		}
	}
	seen := l.Handle
	l.Record = Record{Node: g.Node.Name, Boot: g.Node.Boot, Since: g.Now()}
	if err := l.SetState(ctx, Mapping, l.ClientAddr()); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if l.Handle != seen {
			CloseHandle(ctx, g.Log, l)
		}
		ctx, cancel := backend.CleanupContext(ctx)
		defer cancel()
		err = backend.Also(err, "give the guard back", g.Release(ctx, seen.Image().ID, l.version))
	}()
	if err := g.reopenWritable(ctx, l, Mapping); err != nil {
		return err
	}
	if g.BreakLock {
		if err := l.BreakLock(ctx); err != nil {
			return err
		}
	}
	return g.waitForWatchers(ctx, l, prev.Addrs)
}

// reopenWritable opens the image of a guard to write, under a guard in this state that
// names the control client already.
func (g *Guards) reopenWritable(ctx context.Context, l *Held, state State) error {
	seen := l.Handle
	h, err := g.Images.Open(ctx, seen.Image().Name, backend.ReadWrite)
	if err != nil {
		return err
	}
	l.Handle = h
	if h.Image().ID != seen.Image().ID {
		return fmt.Errorf("%w: the image was replaced meanwhile", backend.ErrInUse)
	}
	if h.ClientAddr() != seen.ClientAddr() { // the connection was lost in between
		return l.SetState(ctx, state, h.ClientAddr())
	}
	return nil
}

// fence bars every client that may write under the record, but for our own
// control client: a call of ours that was left unfinished took its client with
// it (see package rbd), so the present one has none.
func (g *Guards) fence(ctx context.Context, l *Held, prev Record) error {
	addrs := slices.DeleteFunc(slices.Clone(prev.Addrs), func(a string) bool { return a == l.ClientAddr() })
	if len(addrs) == 0 {
		return nil
	}
	if err := g.Fences.Fence(ctx, addrs...); err != nil {
		return fmt.Errorf("fence %s of node %s: %w", strings.Join(addrs, ", "), prev.Node, err)
	}
	g.Log.WithField("volume", l.Image().Name).
		Warnf("fenced %s, the dead client of node %s (%s since %s)",
			strings.Join(addrs, ", "), prev.Node, prev.State, prev.Since.Format(time.RFC3339))
	return nil
}
