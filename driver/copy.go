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

// inherited is what a copy has from its original, unless its options say otherwise.
var inherited = []string{metaFSType, metaMountOptions, metaEncryption, metaPassphrase, metaSubdirectory}

// copyOf completes the promise of a volume that is to be a copy of another, which
// is in the care of origin: the driver of this place or of another one. A snapshot
// that is made for it is taken away by done, when the copy is there or not to be.
func (d *Driver) copyOf(ctx context.Context, b *blank, o options, origin *Driver) (done func(), err error) {
	parent, meta, err := origin.original(ctx, o)
	if err != nil {
		return nil, err
	}
	own := b.Meta
	b.Meta = map[string]string{}
	for _, key := range inherited {
		if meta[key] != "" {
			b.Meta[key] = meta[key]
		}
	}
	maps.Copy(b.Meta, own)
	snap, drop := o.from.snapshot, func() {}
	if snap == "" {
		snap = ours + b.Image.Name + "." + strings.ToLower(rand.Text()[:8])
		if _, err := origin.snap(ctx, o.from.volume, snap); err != nil {
			return nil, err
		}
		drop = func() {
			ctx, cancel := aftermath(ctx)
			defer cancel()
			if err := origin.unsnap(ctx, o.from.volume, snap); err != nil {
				d.log.WithField("volume", o.from.volume).Warnf("remove snapshot %s, made for %s: %v", snap, b.Image.Name, err)
			}
		}
	}
	defer func() {
		if err != nil {
			drop()
		}
	}()
	s, err := origin.snapshot(ctx, o.from.volume, snap)
	if err != nil {
		return nil, err
	}
	if b.Image.Size == 0 {
		b.Image.Size = s.Size
	}
	if b.Image.Size < s.Size {
		return nil, backend.Invalidf("option %s=%q: %s has %s, and a copy is not made smaller", OptSize, o.given[OptSize], o.from, formatSize(s.Size))
	}
	b.Image.From = &backend.Origin{Place: origin.place, Image: parent.Name, ID: parent.ID, Snap: snap, SnapID: s.ID}
	return drop, nil
}

// original looks at a volume of which a copy is wanted, and whether one can be made.
func (d *Driver) original(ctx context.Context, o options) (backend.Image, map[string]string, error) {
	h, err := d.images.Open(ctx, o.from.volume, backend.ReadOnly)
	if errors.Is(err, backend.ErrNoVolume) {
		return backend.Image{}, nil, backend.Invalidf("option %s: there is no volume %s", OptFrom, o.from.volume)
	}
	if err != nil {
		return backend.Image{}, nil, err
	}
	defer d.closeHandle(ctx, h)
	meta, promised, err := d.metaOf(ctx, h)
	if err != nil {
		return backend.Image{}, nil, err
	}
	if promised != nil {
		return backend.Image{}, nil, backend.Invalidf("option %s: volume %s was never mounted, so there is nothing to copy yet", OptFrom, o.from.volume)
	}
	if o.from.snapshot == "" {
		if err := halfRolledBack(meta); err != nil {
			return backend.Image{}, nil, fmt.Errorf("option %s: volume %s: %w", OptFrom, o.from.volume, err)
		}
	}
	if is := meta[metaFSType]; o.fstype != "" && is != "" && o.fstype != is {
		return backend.Image{}, nil, backend.Invalidf("option %s=%q: volume %s is %s", OptFSType, o.fstype, o.from.volume, is)
	}
	depth, err := h.Depth(ctx)
	if err == nil && depth+1 >= tooDeep {
		err = backend.Invalidf("option %s: volume %s is a clone of clones, %d deep; wait until the manager has made it independent "+
			"(ceph rbd task list), or have it do so: ceph rbd task add flatten %s/%s", OptFrom, o.from.volume, depth, d.place, o.from.volume)
	}
	return h.Image(), meta, err
}

// finishCopy keeps the promise of a copy: its size, an id of its own for its
// filesystem where that needs one, and metadata of its own. Killed at any point,
// the next mount does it again.
func (d *Driver) finishCopy(ctx context.Context, l *lease, m backend.Mapping, b *blank, version backend.Version) error {
	name := l.Image().Name
	// As for a new filesystem, the control client writes too.
	if err := d.swap(ctx, l, guardMapped, m.Addr, l.Client()); err != nil {
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
	mount := backend.Mount{Device: m.Device, Path: d.path(name), FSType: fstype, Options: d.mountOptions(b.Meta, fstype)}
	if err := d.check(ctx, m, fstype); err != nil {
		return err
	}
	// btrfs has its id in every block of metadata.
	if err := d.takesLong(ctx, "giving its "+fstype+" an id of its own", func(ctx context.Context) error { return d.fs.Renew(ctx, mount) }); err != nil {
		return err
	}
	if err := d.mountFull(ctx, mount, m); err != nil {
		return err
	}
	meta := map[string]string{metaSealed: "", metaRollback: ""}
	for _, key := range metaOfVolume { // empty, too: those of the original are there already
		meta[key] = b.Meta[key]
	}
	// For each key that is set, Ceph's exclusive lock comes from the mapping, and goes back.
	has, err := l.Meta(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(meta, func(key, value string) bool { return has[key] == value })
	if err := d.keep(ctx, l, m, version, meta, fstype); err != nil {
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

// fstypeOf is what is noted of a volume's filesystem, or what is found there.
func (d *Driver) fstypeOf(ctx context.Context, meta map[string]string, m backend.Mapping) (string, error) {
	if fstype := meta[metaFSType]; fstype != "" {
		return fstype, nil
	}
	fstype, err := d.fs.Probe(ctx, m.Device)
	if err != nil {
		err = fmt.Errorf("%w; the image was not made by this plugin, so it is not formatted: "+
			"make a filesystem on it yourself, or remove it", err)
	}
	return fstype, err
}
