package driver

import (
	"context"
	"errors"
	"slices"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// Create makes the image of a new volume; the filesystem waits for the first
// Mount. A volume that exists and agrees with the options is a success: Docker
// repeats itself, and the other nodes of a swarm create at the same time.
func (d *Driver) Create(ctx context.Context, name string, opts map[string]string) error {
	return d.CreateFrom(ctx, name, opts, d)
}

// CreateFrom is Create with the driver of the pool where the volume is that the
// new one is to be a copy of.
func (d *Driver) CreateFrom(ctx context.Context, name string, opts map[string]string, source *Driver) error {
	ctx, cancel := d.withOutageTimeout(ctx)
	defer cancel()
	return wrap("create", name, d.create(ctx, name, opts, source))
}

func (d *Driver) create(ctx context.Context, name string, given map[string]string, source *Driver) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	o, err := volume.ParseSpec(d.pool, d.defaults, given)
	if err != nil {
		return err
	}
	unlock, err := d.locks.lock(ctx, name, "create")
	if err != nil {
		return err
	}
	defer unlock()
	exists, err := d.images.Exists(ctx, name)
	switch {
	case err != nil:
		return err
	case exists:
		err = d.agree(ctx, name, o)
	default:
		err = d.make(ctx, name, o, source)
	}
	if errors.Is(err, errHalfMade) {
		if err = d.discard(ctx, name); err == nil {
			err = d.make(ctx, name, o, source)
		}
	}
	if err == nil {
		d.cache.put(name, d.now())
	}
	return err
}

// make writes the pending record and makes the image.
func (d *Driver) make(ctx context.Context, name string, o volume.Spec, source *Driver) (err error) {
	b := pending{Image: backend.ImageSpec{
		Name: name, Size: o.Size, ObjectSize: o.ObjectSize, DataPool: o.DataPool, Features: o.Features,
		StripeUnit: o.StripeUnit, StripeCount: o.StripeCount,
	}, Meta: o.Metadata()}
	if err := d.mapper.Supports(needed(b.Image, o)); err != nil {
		return err
	}
	if o.Encryption != "" { // a wrong name is to be told now, not when a task starts
		if _, err := d.secrets.Secret(ctx, o.Passphrase); err != nil {
			return err
		}
	}
	if o.Source.Volume != "" {
		done, cannot := d.copyOf(ctx, &b, o, source)
		if cannot != nil {
			return cannot
		}
		defer func() {
			if !errors.Is(err, backend.ErrUnavailable) { // else the clone may yet be made: the snapshot goes with a sweep
				done()
			}
		}()
	}
	version, err := d.writePending(ctx, name, b)
	if err != nil {
		return err
	}
	switch err = d.images.Create(ctx, b.Image); {
	case errors.Is(err, backend.ErrExists):
		if err := d.another(ctx, b); err != nil {
			return err
		}
		return d.agree(ctx, name, o)
	case errors.Is(err, backend.ErrInvalid): // nothing was made, nor will be by any who was asked for the same
		return backend.Also(err, "clean up", d.removePending(ctx, name, version))
	}
	return err
}

// needed are the features that an image will have, those of its layout included.
func needed(spec backend.ImageSpec, o volume.Spec) []string {
	features := slices.Clone(spec.Features)
	if spec.DataPool != "" {
		features = append(features, "data-pool")
	}
	if spec.StripeCount > 1 {
		features = append(features, "striping")
	}
	if o.Source.Volume != "" {
		features = append(features, "operations")
	}
	return features
}

// agree compares an existing volume with what is asked for; ErrNotFound if
// there is none, errHalfMade if it was not made to its end.
func (d *Driver) agree(ctx context.Context, name string, o volume.Spec) error {
	h, err := d.images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, h)
	meta, p, _, err := d.metaOf(ctx, h)
	if err != nil {
		return err
	}
	if err := o.Match(sizeOf(h.Image(), p), meta); err != nil {
		return err
	}
	return d.finished(ctx, h, p)
}

// sizeOf is the size of a volume's image, in bytes, or what a copy is to become. Of a
// new volume the pending record may be that of another node, which was too late.
func sizeOf(image backend.Image, p *pending) uint64 {
	if p != nil && p.Image.Parent != nil {
		return max(image.Size, p.Image.Size)
	}
	return image.Size
}
