package driver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// The depth of clones of clones: from where on the manager is asked to make a new
// one independent, and where no more are made until it has. Each level is one
// more place to look for what was not written since.
const (
	deepEnough = 4
	tooDeep    = 16
)

// ours begins the names of snapshots that live for as long as a clone is made: far
// shorter than copyTime.
const (
	ours     = "docker_volume."
	copyTime = 24 * time.Hour
)

// copyOf completes the pending record of a volume that is to be a copy of another, which
// is in the care of source: the driver of this pool or of another one. A snapshot
// that is made for it is taken away by done, when the copy is there or not to be.
func (d *Driver) copyOf(ctx context.Context, b *pending, o volume.Spec, source *Driver) (done func(), err error) {
	parent, meta, err := source.original(ctx, o)
	if err != nil {
		return nil, err
	}
	b.Meta = meta.Inherited().With(b.Meta.Encode())
	snap, drop := o.Source.Snapshot, func() {}
	if snap == "" {
		snap = ours + b.Image.Name + "." + strings.ToLower(rand.Text()[:8])
		if _, err := source.createSnapshot(ctx, o.Source.Volume, snap); err != nil {
			return nil, err
		}
		drop = func() {
			ctx, cancel := backend.CleanupContext(ctx)
			defer cancel()
			if err := source.removeSnapshot(ctx, o.Source.Volume, snap); err != nil {
				d.log.WithField("volume", o.Source.Volume).Warnf("remove snapshot %s, made for %s: %v", snap, b.Image.Name, err)
			}
		}
	}
	defer func() {
		if err != nil {
			drop()
		}
	}()
	s, err := source.snapshot(ctx, o.Source.Volume, snap)
	if err != nil {
		return nil, err
	}
	if b.Image.Size == 0 {
		b.Image.Size = s.Size
	}
	if b.Image.Size < s.Size {
		return nil, backend.Invalidf("option %s=%q: %s has %s, and a copy is not made smaller", volume.OptSize, o.Given[volume.OptSize], o.Source, volume.FormatSize(s.Size))
	}
	b.Image.Parent = &backend.Parent{PoolSpec: source.pool, Image: parent.Name, ID: parent.ID, Snap: snap, SnapID: s.ID}
	return drop, nil
}

// original looks at a volume of which a copy is wanted, and whether one can be made.
func (d *Driver) original(ctx context.Context, o volume.Spec) (backend.Image, volume.Metadata, error) {
	h, err := d.images.Open(ctx, o.Source.Volume, backend.ReadOnly)
	if errors.Is(err, backend.ErrNoVolume) {
		return backend.Image{}, volume.Metadata{}, backend.Invalidf("option %s: there is no volume %s", volume.OptFrom, o.Source.Volume)
	}
	if err != nil {
		return backend.Image{}, volume.Metadata{}, err
	}
	defer d.closeHandle(ctx, h)
	meta, p, _, err := d.metaOf(ctx, h)
	if err != nil {
		return backend.Image{}, volume.Metadata{}, err
	}
	if p != nil {
		return backend.Image{}, volume.Metadata{}, backend.Invalidf("option %s: volume %s was never mounted, so there is nothing to copy yet", volume.OptFrom, o.Source.Volume)
	}
	if o.Source.Snapshot == "" {
		if err := meta.CheckRollback(); err != nil {
			return backend.Image{}, volume.Metadata{}, fmt.Errorf("option %s: volume %s: %w", volume.OptFrom, o.Source.Volume, err)
		}
	}
	if is := meta.FSType; o.FSType != "" && is != "" && o.FSType != is {
		return backend.Image{}, volume.Metadata{}, backend.Invalidf("option %s=%q: volume %s is %s", volume.OptFSType, o.FSType, o.Source.Volume, is)
	}
	depth, err := h.Depth(ctx)
	if err == nil && depth+1 >= tooDeep {
		err = backend.Invalidf("option %s: volume %s is a clone of clones, %d deep; wait until the manager has made it independent "+
			"(ceph rbd task list), or have it do so: ceph rbd task add flatten %s/%s", volume.OptFrom, o.Source.Volume, depth, d.pool, o.Source.Volume)
	}
	return h.Image(), meta, err
}

// finishCopy makes a copy what was asked for: its size, an id of its own for its
// filesystem where that needs one, and metadata of its own. Killed at any point,
// the next mount does it again.
func (d *Driver) finishCopy(ctx context.Context, l *guard.Held, m backend.Mapping, b *pending, version backend.Version) error {
	name := l.Image().Name
	// As for a new filesystem, the control client writes too.
	if err := l.SetState(ctx, guard.Mapped, m.Addr, l.ClientAddr()); err != nil {
		return err
	}
	if err := d.fs.Unmount(ctx, d.path(name)); err != nil {
		return err
	}
	if b.Image.Size > l.Image().Size {
		if err := l.Resize(ctx, b.Image.Size); err != nil {
			return err
		}
		if _, err := d.mapper.Size(ctx, m); err != nil {
			return err
		}
	}
	fstype, err := d.fstypeOf(ctx, b.Meta, m)
	if err != nil {
		return err
	}
	mount := backend.Mount{Device: m.Device, Path: d.path(name), FSType: fstype, Options: volume.MountOptions(b.Meta.MountOptions, fstype, d.defaults)}
	if err := d.check(ctx, m, fstype); err != nil {
		return err
	}
	// btrfs has its id in every block of metadata.
	if err := d.takesLong(ctx, "giving its "+fstype+" an id of its own", func(ctx context.Context) error { return d.fs.RegenerateUUID(ctx, mount) }); err != nil {
		return err
	}
	if err := d.mountFull(ctx, mount, m); err != nil {
		return err
	}
	kept, meta := b.Meta.Encode(), map[string]string{volume.KeySealed: "", volume.KeyRollback: ""}
	for _, key := range volume.KeptKeys { // empty, too: those of the original are there already
		meta[key] = kept[key]
	}
	// What the image does not have need not be taken from it.
	has, err := l.Meta(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(meta, func(key, value string) bool { return has[key] == value })
	if err := d.commit(ctx, l, m, version, meta, fstype); err != nil {
		return err
	}
	depth, err := l.Depth(ctx)
	if err == nil && depth >= deepEnough {
		d.log.WithField("volume", name).Infof("%d clones deep: the manager is to make it independent (ceph rbd task list)", depth)
		err = l.Flatten(ctx)
	}
	if err != nil { // the copy is whole without
		d.log.WithField("volume", name).Warnf("have the copy made independent: %v", err)
	}
	return nil
}

// another corrects the pending record of a copy that two nodes made at the same time, each of
// a snapshot of its own: that of the one whose image it became.
func (d *Driver) another(ctx context.Context, b pending) error {
	from := b.Image.Parent
	if from == nil {
		return nil
	}
	h, err := d.images.Open(ctx, b.Image.Name, backend.ReadOnly)
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, h)
	parent := h.Image().Parent
	there, version, err := d.loadPending(ctx, b.Image.Name)
	if errors.Is(err, backend.ErrNotFound) || err == nil && (parent == nil || parent.Same(there.Image.Parent) || parent.PoolSpec != from.PoolSpec || parent.ID != from.ID) {
		return nil
	}
	if err != nil {
		return err
	}
	there.Image.Parent = parent
	_, err = d.records.CompareAndSwap(ctx, pendingKey(b.Image.Name), version, there)
	if errors.Is(err, backend.ErrConflict) {
		return nil
	}
	return err
}
