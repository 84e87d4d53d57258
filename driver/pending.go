package driver

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// pending is what a volume is to become at its first mount, made by Create before it makes the
// image and kept by the first Mount. It is a record of its own because it has
// to be there before the image, so that a crash in between leaves a volume that
// can be completed, and because what was written by one who has lost the guard
// must not count, however late it arrives.
type pending struct {
	Image backend.ImageSpec `json:"image"`
	Meta  volume.Metadata   `json:"meta"`
	// Begun is the id of the image on which a filesystem was begun: that image
	// may hold remains of it. "" = not begun, so the image must be empty.
	Begun string `json:"begun,omitempty"`
	// Removed is the id of an image that is about to go, and its pending record with it: it is
	// not that of the next image of the name, though it were the same.
	Removed string `json:"removed,omitempty"`
}

func pendingKey(volume string) string { return "pending." + volume }

func (d *Driver) loadPending(ctx context.Context, volume string) (b pending, version backend.Version, err error) {
	version, err = d.records.Load(ctx, pendingKey(volume), &b)
	return b, version, err
}

// findPending finds what is pending yet of an image with this metadata;
// nil if there is none. What is left of another image of the name is none.
func (d *Driver) findPending(ctx context.Context, image backend.Image, raw map[string]string) (*pending, backend.Version, error) {
	meta := volume.ParseMetadata(raw)
	if meta.Complete == image.ID || meta.FSType != "" && image.Parent == nil { // no clone, and complete
		return nil, 0, nil
	}
	b, version, err := d.loadPending(ctx, image.Name)
	switch from := b.Image.Parent; {
	case errors.Is(err, backend.ErrNotFound):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	case from == nil && meta.FSType != "", from != nil && image.Parent != nil && !from.Same(image.Parent):
		return nil, 0, nil
	case from == nil:
		b.Meta = b.Meta.With(raw) // what an operator has said since
	}
	return &b, version, nil
}

func (b pending) equal(other pending) bool {
	return reflect.DeepEqual(b.Image, other.Image) && b.Meta.Equal(other.Meta)
}

// writePending writes the pending record of a volume whose image is to be made, and returns
// its version. One that is there is of a Create that died or that another node
// is just at; in a moment the image of the latter will be there, and then the
// record is not ours to touch: Create finds the image and compares.
func (d *Driver) writePending(ctx context.Context, name string, b pending) (backend.Version, error) {
	for first := true; ; first = false {
		there, version, err := d.loadPending(ctx, name)
		switch {
		case err != nil && !errors.Is(err, backend.ErrNotFound):
			return 0, err
		case err == nil && there.Removed != "": // nobody is at it who would make an image
		case err == nil && there.Begun == "" && there.equal(b):
			return version, nil
		case err == nil && first:
			if backend.Pause(ctx, 2*d.poll) {
				continue
			}
		}
		if exists, err := d.images.Exists(ctx, name); err != nil || exists {
			return version, err
		}
		written, err := d.records.CompareAndSwap(ctx, pendingKey(name), version, b)
		if !errors.Is(err, backend.ErrConflict) {
			return written, err
		}
	}
}

// fresh tells whether it is sure that nothing was ever written to a pending volume's
// image. It is an error if something was, other than by a first mount that was cut short.
func (d *Driver) fresh(ctx context.Context, l *guard.Held, b *pending) (bool, error) {
	if b.Begun == l.Image().ID {
		return false, nil
	}
	empty, sure, err := l.Empty(ctx)
	if err == nil && !empty {
		name, fstype := l.Image().Name, b.Meta.FSType
		err = fmt.Errorf("%w: the volume was never mounted, yet its image holds data; it is not formatted. "+
			"If that is %s to be kept, say so: rbd image-meta set %s/%s docker_volume.fstype %s; else remove the volume",
			backend.ErrUnexpectedContent, fstype, d.pool, name, fstype)
	}
	return sure, err
}

// encrypt makes a pending volume's image an encrypted one, before it is mapped.
func (d *Driver) encrypt(ctx context.Context, l *guard.Held, b *pending, version backend.Version, e backend.Encryption) (backend.Version, error) {
	if err := l.SetState(ctx, guard.Mapped, l.ClientAddr()); err != nil {
		return 0, err
	}
	if _, err := d.fresh(ctx, l, b); err != nil {
		return 0, err
	}
	// Remains of what was there before are no zeroes to whoever has the key: the
	// filesystem must not take the image for a fresh one.
	b.Begun = l.Image().ID
	version, err := d.records.CompareAndSwap(ctx, pendingKey(l.Image().Name), version, *b)
	if err != nil {
		return 0, err
	}
	return version, l.Encrypt(ctx, e)
}

// makeFilesystem makes the filesystem of a pending volume and mounts it.
// Killed at any point it leaves the pending record, and the next mount begins again.
func (d *Driver) makeFilesystem(ctx context.Context, l *guard.Held, m backend.Mapping, b *pending, version backend.Version) error {
	name, fstype, path := l.Image().Name, b.Meta.FSType, d.path(l.Image().Name)
	owner, err := b.Meta.Owner()
	if err != nil {
		return err
	}
	// The control client writes too until this is done, the volume's state:
	// whoever takes over must fence both.
	if err := l.SetState(ctx, guard.Mapped, m.Addr, l.ClientAddr()); err != nil {
		return err
	}
	fresh, err := d.fresh(ctx, l, b)
	if err != nil {
		return err
	}
	b.Begun = l.Image().ID
	if version, err = d.records.CompareAndSwap(ctx, pendingKey(name), version, *b); err != nil {
		return err
	}
	if err := d.fs.Unmount(ctx, path); err != nil { // a crash at the very end leaves it mounted
		return err
	}
	// What is not fresh is discarded first, an object at a time.
	err = d.takesLong(ctx, "making its "+fstype, func(ctx context.Context) error {
		return d.fs.Format(ctx, m.Device, fstype, strings.Fields(b.Meta.MkfsOptions), fresh)
	})
	if err != nil {
		return fmt.Errorf("%w; to choose other mkfsOptions remove the volume and create it again", err)
	}
	mount := backend.Mount{Device: m.Device, Path: path, FSType: fstype, Options: volume.MountOptions(b.Meta.MountOptions, fstype, d.defaults)}
	if err := d.mountFull(ctx, mount, m); err != nil {
		return err
	}
	if err := d.fs.InitRoot(ctx, path, owner); err != nil {
		return err
	}
	return d.commit(ctx, l, m, version, b.Meta.Kept().Encode(), fstype)
}

// commit notes on the image what was pending, takes the pending record away, and leaves the
// guard to the mapping alone.
func (d *Driver) commit(ctx context.Context, l *guard.Held, m backend.Mapping, version backend.Version, meta map[string]string, fstype string) error {
	if len(meta) > 0 {
		if err := l.SetMeta(ctx, meta); err != nil {
			return err
		}
	}
	// Either of the two may make the volume a complete one, so all else comes first.
	if err := l.SetMeta(ctx, map[string]string{volume.KeyFSType: fstype, volume.KeyComplete: l.Image().ID}); err != nil {
		return err
	}
	if err := d.records.Delete(ctx, pendingKey(l.Image().Name), version); err != nil {
		return err
	}
	return l.SetState(ctx, guard.Mapped, m.Addr)
}

// removePending takes a pending record away that has no volume any more. A crash before it
// does no harm: the next Create of the name replaces it. Another version is
// another's.
func (d *Driver) removePending(ctx context.Context, name string, version backend.Version) error {
	if version == 0 {
		return nil
	}
	err := d.records.Delete(ctx, pendingKey(name), version)
	if errors.Is(err, backend.ErrNotFound) || errors.Is(err, backend.ErrConflict) {
		return nil
	}
	return err
}

// metaOf returns the metadata of a volume: the image's own or, before the first
// mount, what its pending record says, with that record and its version.
func (d *Driver) metaOf(ctx context.Context, h backend.Handle) (meta volume.Metadata, p *pending, version backend.Version, err error) {
	raw, err := h.Meta(ctx)
	if err != nil {
		return meta, nil, 0, err
	}
	p, version, err = d.findPending(ctx, h.Image(), raw)
	if p != nil {
		return p.Meta, p, version, err
	}
	return volume.ParseMetadata(raw), nil, version, err
}

// readMeta returns the image's own metadata.
func readMeta(ctx context.Context, h backend.Handle) (volume.Metadata, error) {
	raw, err := h.Meta(ctx)
	return volume.ParseMetadata(raw), err
}
