package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
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
