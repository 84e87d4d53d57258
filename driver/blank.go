package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
)

// blank is the promise of a filesystem, made by Create before it makes the
// image and kept by the first Mount. It is a record of its own because it has
// to be there before the image, so that a crash in between leaves a volume that
// can be completed, and because what was written by one who has lost the guard
// must not count, however late it arrives.
type blank struct {
	Image ImageSpec         `json:"image"`
	Meta  map[string]string `json:"meta"`
	// Begun is the id of the image on which a filesystem was begun: that image
	// may hold remains of it. "" = not begun, so the image must be empty.
	Begun string `json:"begun,omitempty"`
}

func blankKey(volume string) string { return "blank." + volume }

func (d *Driver) loadBlank(ctx context.Context, volume string) (b blank, version Version, err error) {
	version, err = d.records.Load(ctx, blankKey(volume), &b)
	return b, version, err
}

func (b blank) equal(other blank) bool {
	return reflect.DeepEqual(b.Image, other.Image) && maps.Equal(b.Meta, other.Meta)
}

// promise writes the blank of a volume whose image is to be made, and returns
// its version. One that is there is of a Create that died or that another node
// is just at; in a moment the image of the latter will be there, and then the
// blank is not ours to touch: Create finds the image and compares.
func (d *Driver) promise(ctx context.Context, name string, b blank) (Version, error) {
	for first := true; ; first = false {
		there, version, err := d.loadBlank(ctx, name)
		switch {
		case err != nil && !errors.Is(err, ErrNotFound):
			return 0, err
		case err == nil && there.Begun == "" && there.equal(b):
			return version, nil
		case err == nil && first:
			if d.pause(ctx, 2*d.poll) {
				continue
			}
		}
		if exists, err := d.images.Exists(ctx, name); err != nil || exists {
			return version, err
		}
		written, err := d.records.Swap(ctx, blankKey(name), version, b)
		if !errors.Is(err, ErrLost) {
			return written, err
		}
	}
}

// makeFilesystem keeps the promise of a volume's blank and mounts what it made.
// Killed at any point it leaves the blank, and the next mount begins again.
func (d *Driver) makeFilesystem(ctx context.Context, l *lease, m Mapping, b blank, version Version) error {
	name, fstype, path := l.Image().Name, b.Meta[metaFSType], d.path(l.Image().Name)
	owner, err := ownerOf(b.Meta)
	if err != nil {
		return err
	}
	fresh := b.Begun != l.Image().ID
	if fresh {
		used, err := l.Used(ctx)
		if err != nil {
			return err
		}
		if used != 0 {
			return fmt.Errorf("%w: the volume was never mounted, yet its image holds %s of data; it is not formatted. "+
				"If that is %s to be kept, say so: rbd image-meta set %s/%s docker_volume.fstype %s; else remove the volume",
				ErrContent, formatSize(used), fstype, d.pool, name, fstype)
		}
	}
	// The control client writes too until this is done, the volume's state:
	// whoever takes over must fence both.
	if err := d.swap(ctx, l, guardMapped, m.Addr, l.Client()); err != nil {
		return err
	}
	b.Begun = l.Image().ID
	if version, err = d.records.Swap(ctx, blankKey(name), version, b); err != nil {
		return err
	}
	if err := d.fs.Unmount(ctx, path); err != nil { // a crash at the very end leaves it mounted
		return err
	}
	if err := d.fs.Format(ctx, m.Device, fstype, strings.Fields(b.Meta[metaMkfsOptions]), fresh); err != nil {
		return fmt.Errorf("%w; to choose other mkfsOptions remove the volume and create it again", err)
	}
	mount := Mount{Device: m.Device, Path: path, FSType: fstype, Options: d.mountOptions(b.Meta, fstype)}
	if err := d.fs.Mount(ctx, mount); err != nil {
		return err
	}
	if err := d.fs.Prepare(ctx, path, owner); err != nil {
		return err
	}
	if options := b.Meta[metaMountOptions]; options != "" {
		if err := l.SetMeta(ctx, map[string]string{metaMountOptions: options}); err != nil {
			return err
		}
	}
	if err := l.SetMeta(ctx, map[string]string{metaFSType: fstype}); err != nil {
		return err
	}
	if err := d.records.Delete(ctx, blankKey(name), version); err != nil {
		return err
	}
	return d.swap(ctx, l, guardMapped, m.Addr)
}

// forgetBlank takes a blank away that has no volume any more. A crash before it
// does no harm: the next Create of the name replaces it. Another version is
// another's promise.
func (d *Driver) forgetBlank(ctx context.Context, name string, version Version) error {
	if version == 0 {
		return nil
	}
	err := d.records.Delete(ctx, blankKey(name), version)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrLost) {
		return nil
	}
	return err
}
