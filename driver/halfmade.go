package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// Ceph makes an image in several steps, and whoever makes it may die after any of them.
// What is left has the name, and cannot be mapped, is not the copy that it was to be, or
// is lost with the snapshot that it is a clone of. Only a volume that was never mounted can
// be like that: there is nothing on it yet, and it is made anew, under the guard.

// errHalfMade is the answer to who would use such an image.
var errHalfMade = fmt.Errorf("%w: the image was not made to its end", backend.ErrUnexpectedContent)

// finished is errHalfMade for an image that waits for its first mount, with that pending record,
// and was not made to its end.
func (d *Driver) finished(ctx context.Context, h backend.Handle, p *pending) error {
	if p == nil || p.Begun == h.Image().ID {
		return nil
	}
	if p.Image.Parent != nil && h.Image().Parent == nil {
		return errHalfMade
	}
	whole, err := h.Whole(ctx)
	if err == nil && !whole {
		err = errHalfMade
	}
	return err
}

// discard takes an image away that was not made to its end; nil as well if there is none
// any more. One that is just being made is given time.
func (d *Driver) discard(ctx context.Context, name string) error {
	for range 3 {
		if !backend.Pause(ctx, d.poll) {
			break
		}
		if err := d.halfMade(ctx, name); !errors.Is(err, errHalfMade) {
			return foundOrNot(err)
		}
	}
	// Who was killed while it made a clone watches it for as long as Ceph takes to miss it.
	if err := d.unstage(ctx, name); err != nil {
		return err
	}
	l, err := d.guards.Acquire(ctx, name, guard.ToChange)
	if err != nil {
		return foundOrNot(err)
	}
	defer d.closeHandle(ctx, l)
	if err = d.discardUnder(ctx, l); errors.Is(err, backend.ErrUnavailable) {
		return err // it may yet happen: the guard stays, and its next taker fences us first
	}
	return l.Undo(ctx, err)
}

func foundOrNot(err error) error {
	if errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	return err
}

func (d *Driver) halfMade(ctx context.Context, name string) error {
	h, err := d.images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, h)
	_, p, _, err := d.metaOf(ctx, h)
	if err != nil {
		return err
	}
	return d.finished(ctx, h, p)
}

// discardUnder does it under a guard that is held.
func (d *Driver) discardUnder(ctx context.Context, l *guard.Held) error {
	name := l.Image().Name
	_, p, _, err := d.metaOf(ctx, l)
	if err == nil {
		err = d.finished(ctx, l, p)
	}
	if !errors.Is(err, errHalfMade) {
		return err
	}
	keep := d.trash
	if l.Image().Parent == nil { // else it has what its parent has
		empty, sure, err := l.Empty(ctx)
		if !sure {
			keep = max(keep, copyTime)
		}
		if err == nil && !empty {
			err = fmt.Errorf("%w: it was to be a copy, is none, and yet holds data: nothing is made in its place. If that is a filesystem "+
				"to be kept, say so: rbd image-meta set %s/%s docker_volume.fstype ext4; else remove the volume", backend.ErrUnexpectedContent, d.pool, name)
		}
		if err != nil {
			return err
		}
	}
	if err := l.SetState(ctx, guard.Removing, l.ClientAddr()); err != nil {
		return err
	}
	d.log.WithField("volume", name).Warnf("its image, id %s, was not made to its end, and never used: it is made anew", l.Image().ID)
	return l.Remove(ctx, keep)
}

// makeAnew makes the image of a volume as it was asked for, after one that was not made to
// its end.
func (d *Driver) makeAnew(ctx context.Context, name string) error {
	b, _, err := d.loadPending(ctx, name)
	if err != nil {
		return err
	}
	if err := d.discard(ctx, name); err != nil {
		return err
	}
	if err = d.images.Create(ctx, b.Image); errors.Is(err, backend.ErrExists) { // another node was faster
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w, and cannot be made anew: %w; create the volume again", errHalfMade, err)
	}
	return err
}

// goes notes in the pending record of an image that it is about to go, and returns its version;
// 0 if there is none. Once the name is free another node may be asked for the same again.
func (d *Driver) goes(ctx context.Context, image backend.Image) (backend.Version, error) {
	for {
		b, version, err := d.loadPending(ctx, image.Name)
		if errors.Is(err, backend.ErrNotFound) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		b.Removed = image.ID
		if version, err = d.records.CompareAndSwap(ctx, pendingKey(image.Name), version, b); !errors.Is(err, backend.ErrConflict) {
			return version, err
		}
	}
}
