package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// removePatience bounds how long Remove waits for a holder to let go: the one
// who asks wants to know where it is in use, not to wait for it.
const removePatience = 5 * time.Second

// Remove deletes a volume that nobody uses. One that is gone already is a
// success: Docker on this node may have missed its removal on another.
func (d *Driver) Remove(ctx context.Context, name string) error {
	return wrap("remove", name, d.remove(ctx, name))
}

func (d *Driver) remove(ctx context.Context, name string) (err error) {
	unlock, err := d.begin(ctx, name, "remove")
	if err != nil {
		return err
	}
	defer unlock()
	l, err := d.idle(ctx, name)
	if errors.Is(err, backend.ErrNoVolume) {
		d.cache.remove(name)
		return nil
	}
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, l)
	keep, err := d.removable(ctx, l)
	var version backend.Version
	if err == nil {
		err = l.SetState(ctx, guard.Removing, l.ClientAddr())
	}
	if err == nil {
		version, err = d.goes(ctx, l.Image())
	}
	if err == nil {
		err = d.dropOwn(ctx, l)
	}
	if clones, _ := l.Clones(ctx); len(clones) > 0 {
		d.log.WithField("volume", name).Infof("it has copies, %s, which lose nothing: it stays in the trash until the manager has made them independent",
			strings.Join(clones, ", "))
	}
	if err == nil {
		// Removed by another way meanwhile. What was not found before was something else.
		if err = l.Remove(ctx, keep); errors.Is(err, backend.ErrNotFound) {
			err = nil
		}
	}
	if err == nil {
		err = d.removePending(ctx, name, version)
	}
	if errors.Is(err, backend.ErrUnavailable) {
		return err // it may yet happen: the guard stays, and its next taker fences us first
	}
	if err != nil {
		return backend.Also(err, "give the guard back", l.Release(ctx))
	}
	d.cache.remove(name)
	return l.Release(ctx)
}

// removable tells whether a volume may be removed, and for how long it is to be kept
// in the trash: one that was never mounted has nothing that anybody could want back.
func (d *Driver) removable(ctx context.Context, l *guard.Held) (keep time.Duration, err error) {
	meta, p, _, err := d.metaOf(ctx, l)
	switch {
	case err != nil:
		return 0, err
	case meta.Protected:
		return 0, fmt.Errorf("%w: the volume is protected; to take that back: rbd image-meta set %s/%s docker_volume.protected false",
			backend.ErrBusy, d.pool, l.Image().Name)
	case p == nil:
		return d.trash, nil
	case p.Image.Parent != nil && l.Image().Parent != nil, p.Begun == l.Image().ID:
		return 0, nil
	}
	// Of a pending record that was left for the name of an image with something on it.
	empty, sure, err := l.Empty(ctx)
	if err != nil || !empty || !sure {
		return d.trash, err
	}
	return 0, nil
}

// dropOwn removes the snapshots that a plugin made for a clone, and was killed
// before it could remove them.
func (d *Driver) dropOwn(ctx context.Context, l *guard.Held) error {
	snaps, err := l.Snapshots(ctx)
	for _, s := range snaps {
		if err == nil && strings.HasPrefix(s.Name, ours) {
			if err = l.RemoveSnapshot(ctx, s.Name); errors.Is(err, backend.ErrNotFound) { // by the one who made it
				err = nil
			}
		}
	}
	return err
}

// idle gets the guard of a volume that nobody uses, or says who does.
func (d *Driver) idle(ctx context.Context, name string) (*guard.Held, error) {
	d.unkeep(name)
	if n := d.refs.count(name); n > 0 {
		return nil, fmt.Errorf("%w: %d containers use it on this node (%s)", backend.ErrBusy, n, d.node.Name)
	}
	if err := d.unstage(ctx, name); err != nil { // what a crash may have left mapped
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	l, err := d.guards.Acquire(wait, name, guard.ToChange)
	if err != nil {
		return nil, err
	}
	if err := d.guards.RefuseReaders(ctx, l.Image().ID); err != nil {
		defer d.closeHandle(ctx, l)
		return nil, l.Undo(ctx, err)
	}
	return l, nil
}
