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

// blank is the promise of a filesystem, made by Create before it makes the
// image and kept by the first Mount. It is a record of its own because it has
// to be there before the image, so that a crash in between leaves a volume that
// can be completed, and because what was written by one who has lost the guard
// must not count, however late it arrives.
type blank struct {
	Image backend.ImageSpec `json:"image"`
	Meta  volume.Metadata   `json:"meta"`
	// Begun is the id of the image on which a filesystem was begun: that image
	// may hold remains of it. "" = not begun, so the image must be empty.
	Begun string `json:"begun,omitempty"`
	// Removed is the id of an image that is about to go, and its promise with it: it is
	// not that of the next image of the name, though it were the same.
	Removed string `json:"removed,omitempty"`
}

func blankKey(volume string) string { return "blank." + volume }

func (d *Driver) loadBlank(ctx context.Context, volume string) (b blank, version backend.Version, err error) {
	version, err = d.records.Load(ctx, blankKey(volume), &b)
	return b, version, err
}

// promised finds the promise that is not kept yet, of an image with this metadata;
// nil if there is none. What is left of another image of the name is none.
func (d *Driver) promised(ctx context.Context, image backend.Image, raw map[string]string) (*blank, backend.Version, error) {
	meta := volume.ParseMetadata(raw)
	if meta.Complete == image.ID || meta.FSType != "" && image.Parent == nil { // no clone, and complete
		return nil, 0, nil
	}
	b, version, err := d.loadBlank(ctx, image.Name)
	switch from := b.Image.From; {
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

func (b blank) equal(other blank) bool {
	return reflect.DeepEqual(b.Image, other.Image) && b.Meta.Equal(other.Meta)
}

// promise writes the blank of a volume whose image is to be made, and returns
// its version. One that is there is of a Create that died or that another node
// is just at; in a moment the image of the latter will be there, and then the
// blank is not ours to touch: Create finds the image and compares.
func (d *Driver) promise(ctx context.Context, name string, b blank) (backend.Version, error) {
	for first := true; ; first = false {
		there, version, err := d.loadBlank(ctx, name)
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
		written, err := d.records.CompareAndSwap(ctx, blankKey(name), version, b)
		if !errors.Is(err, backend.ErrConflict) {
			return written, err
		}
	}
}

// fresh tells whether it is sure that nothing was ever written to a blank volume's
// image. It is an error if something was, other than by a first mount that was cut short.
func (d *Driver) fresh(ctx context.Context, l *guard.Held, b *blank) (bool, error) {
	if b.Begun == l.Image().ID {
		return false, nil
	}
	empty, sure, err := l.Empty(ctx)
	if err == nil && !empty {
		name, fstype := l.Image().Name, b.Meta.FSType
		err = fmt.Errorf("%w: the volume was never mounted, yet its image holds data; it is not formatted. "+
			"If that is %s to be kept, say so: rbd image-meta set %s/%s docker_volume.fstype %s; else remove the volume",
			backend.ErrUnexpectedContent, fstype, d.place, name, fstype)
	}
	return sure, err
}

// encrypt makes a blank volume's image an encrypted one, before it is mapped.
func (d *Driver) encrypt(ctx context.Context, l *guard.Held, b *blank, version backend.Version, e backend.Encryption) (backend.Version, error) {
	if err := l.SetState(ctx, guard.Mapped, l.ClientAddr()); err != nil {
		return 0, err
	}
	if _, err := d.fresh(ctx, l, b); err != nil {
		return 0, err
	}
	// Remains of what was there before are no zeroes to whoever has the key: the
	// filesystem must not take the image for a fresh one.
	b.Begun = l.Image().ID
	version, err := d.records.CompareAndSwap(ctx, blankKey(l.Image().Name), version, *b)
	if err != nil {
		return 0, err
	}
	return version, l.Encrypt(ctx, e)
}

// makeFilesystem keeps the promise of a volume's blank and mounts what it made.
// Killed at any point it leaves the blank, and the next mount begins again.
func (d *Driver) makeFilesystem(ctx context.Context, l *guard.Held, m backend.Mapping, b *blank, version backend.Version) error {
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
	if version, err = d.records.CompareAndSwap(ctx, blankKey(name), version, *b); err != nil {
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
	return d.keep(ctx, l, m, version, b.Meta.Kept().Encode(), fstype)
}

// keep notes on the image what was promised, takes the promise away, and leaves the
// guard to the mapping alone.
func (d *Driver) keep(ctx context.Context, l *guard.Held, m backend.Mapping, version backend.Version, meta map[string]string, fstype string) error {
	if len(meta) > 0 {
		if err := l.SetMeta(ctx, meta); err != nil {
			return err
		}
	}
	if err := l.SetMeta(ctx, map[string]string{volume.KeyFSType: fstype}); err != nil {
		return err
	}
	if err := l.SetMeta(ctx, map[string]string{volume.KeyComplete: l.Image().ID}); err != nil {
		return err
	}
	if err := d.records.Delete(ctx, blankKey(l.Image().Name), version); err != nil {
		return err
	}
	return l.SetState(ctx, guard.Mapped, m.Addr)
}

// forgetBlank takes a blank away that has no volume any more. A crash before it
// does no harm: the next Create of the name replaces it. Another version is
// another's promise.
func (d *Driver) forgetBlank(ctx context.Context, name string, version backend.Version) error {
	if version == 0 {
		return nil
	}
	err := d.records.Delete(ctx, blankKey(name), version)
	if errors.Is(err, backend.ErrNotFound) || errors.Is(err, backend.ErrConflict) {
		return nil
	}
	return err
}

// metaOf returns the metadata of a volume: the image's own or, before the first
// mount, what its blank promises, with that blank and its version.
func (d *Driver) metaOf(ctx context.Context, h backend.Handle) (meta volume.Metadata, promised *blank, version backend.Version, err error) {
	raw, err := h.Meta(ctx)
	if err != nil {
		return meta, nil, 0, err
	}
	promised, version, err = d.promised(ctx, h.Image(), raw)
	if promised != nil {
		return promised.Meta, promised, version, err
	}
	return volume.ParseMetadata(raw), nil, version, err
}

// readMeta returns the image's own metadata.
func readMeta(ctx context.Context, h backend.Handle) (volume.Metadata, error) {
	raw, err := h.Meta(ctx)
	return volume.ParseMetadata(raw), err
}
