package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// Volume is what Docker is told of a volume.
type Volume struct {
	Name       string
	Mountpoint string // "" while it is not mounted on this node
	Created    time.Time
	Status     map[string]any // shown by docker volume inspect

	cached bool // known from the cache: Ceph has not said that it is there
}

// Get describes a volume. ErrNoVolume means that Ceph said so; while Ceph cannot be
// asked the cache answers, and for a volume that it does not know the error is
// ErrUnavailable. What is wrong with a volume that is there is in its Status, as
// "error".
func (d *Driver) Get(ctx context.Context, name string) (Volume, error) {
	if backend.CheckName(name) != nil { // Docker asks every driver for any name
		return Volume{}, wrap("get", name, backend.ErrNoVolume)
	}
	created, known := d.cache.get(name)
	patience := d.patience
	if known { // there is another answer
		patience /= 2
	}
	var v Volume
	var err error = away{errEarly}
	if !known || !d.outage.early() {
		err = d.ask(ctx, patience, func(ctx context.Context) error {
			asked, err := d.describe(ctx, name)
			v = asked
			return err
		})
	}
	var noAnswer away
	switch {
	case err == nil:
		d.cache.put(name, v.Created)
		return v, nil
	case errors.Is(err, backend.ErrNoVolume):
		d.cache.remove(name)
		return Volume{}, wrap("get", name, err)
	case errors.As(err, &noAnswer) && known:
		return d.fromCache(ctx, name, created, "ceph", "unavailable: "+err.Error()), nil
	case errors.As(err, &noAnswer):
		return Volume{}, wrap("get", name, fmt.Errorf("%w: %w", backend.ErrUnavailable, err))
	case v.Status != nil: // it could be opened
		v.Status["error"] = wrap("get", name, err).Error()
		d.cache.put(name, v.Created)
		return v, nil
	case known:
		return d.fromCache(ctx, name, created, "error", wrap("get", name, err).Error()), nil
	case errors.Is(err, backend.ErrUnusable): // there is an image of the name
		v = d.fromCache(ctx, name, time.Time{}, "error", wrap("get", name, err).Error())
		v.cached = false
		return v, nil
	}
	return Volume{}, wrap("get", name, fmt.Errorf("%w: %w", backend.ErrUnavailable, err))
}

// fromCache is a volume of which no more can be told than that it is there, and why.
func (d *Driver) fromCache(ctx context.Context, name string, created time.Time, key, why string) Volume {
	return Volume{
		Name: name, Mountpoint: d.Path(ctx, name), Created: created,
		Status: map[string]any{"pool": d.pool.Pool, key: why}, cached: true,
	}
}

// List names the volumes: those of Ceph or, while Ceph cannot be asked, those
// of the cache.
func (d *Driver) List(ctx context.Context) ([]Volume, error) {
	mounts, err := d.fs.Mounted(ctx, d.mounts)
	if err != nil {
		d.log.Warnf("list: mounts of this node: %v", err)
	}
	_ = d.learn(ctx)
	names := d.cache.names()
	volumes := make([]Volume, 0, len(names))
	for _, name := range names {
		created, _ := d.cache.get(name)
		v := Volume{Name: name, Created: created}
		if _, here := mounts[d.path(name)]; here {
			v.Mountpoint = d.path(name)
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// learn asks Ceph which volumes there are, and writes it down.
func (d *Driver) learn(ctx context.Context) error {
	var names []string
	err := d.ask(ctx, d.patience/2, func(ctx context.Context) (err error) {
		names, err = d.images.Names(ctx)
		return err
	})
	if err == nil {
		d.cache.replace(names)
	}
	return err
}

// Path is where the volume is mounted on this node, "" if it is not. It asks
// the kernel only.
func (d *Driver) Path(ctx context.Context, name string) string {
	if _, found, _ := d.mounted(ctx, name); !found {
		return ""
	}
	directory, _ := d.within.Load(name)
	sub, _ := directory.(string)
	return filepath.Join(d.path(name), sub)
}

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
	var p backend.Version
	if err == nil {
		err = l.SetState(ctx, guard.Removing, l.ClientAddr())
	}
	if err == nil {
		p, err = d.goes(ctx, l.Image())
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
		err = d.removePending(ctx, name, p)
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
