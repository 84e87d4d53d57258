package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Mount makes the volume usable on this node and returns where. The id stands
// for one user of it; the same id may come again and each is counted.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
	path, err := d.mount(ctx, name, id)
	return path, wrap("mount", name, err)
}

func (d *Driver) mount(ctx context.Context, name, id string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	unlock, err := d.locks.lock(ctx, name, "mount")
	if err != nil {
		return "", err
	}
	defer unlock()
	staged := false
	if d.refs.count(name) > 0 {
		if staged, err = d.staged(ctx, name); err != nil {
			return "", err
		}
	}
	if !staged {
		if err := d.stage(ctx, name); err != nil {
			return "", err
		}
	}
	d.refs.add(name, id)
	return d.path(name), nil
}

// staged tells whether the volume is mounted here on a mapping that works.
func (d *Driver) staged(ctx context.Context, name string) (bool, error) {
	m, found, err := d.mapping(ctx, name)
	if err != nil || !found || !m.Alive {
		return false, err
	}
	mount, found, err := d.mounted(ctx, name)
	return found && mount.Device == m.Device, err
}

// stage takes a volume from Ceph to a mounted filesystem: guard, map, swap,
// format if it is blank, mount. What a failure leaves is undone in reverse.
func (d *Driver) stage(ctx context.Context, name string) (err error) {
	if err := d.reclaim(ctx, name); err != nil {
		return err
	}
	l, err := d.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, l)
	defer func() {
		// What was adopted may be in use by containers: it stays.
		if err != nil && !l.adopted {
			ctx, cancel := aftermath(ctx)
			defer cancel()
			err = also(err, "undo", d.unstage(ctx, l, name))
		}
	}()
	meta, err := l.Meta(ctx) // under the guard: nobody else changes it now
	if err != nil {
		return err
	}
	m, err := d.mapper.Map(ctx, l.Image(), ReadWrite)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	if meta[metaFSType] == "" {
		b, version, err := d.loadBlank(ctx, name)
		if err == nil {
			return d.makeFilesystem(ctx, l, m, b, version)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	if !l.adopted {
		if err := d.swap(ctx, l, guardMapped, m.Addr); err != nil {
			return err
		}
	}
	fstype := meta[metaFSType]
	if fstype == "" {
		if fstype, err = d.fs.Probe(ctx, m.Device); err != nil {
			return fmt.Errorf("%w; the image was not made by this plugin, so it is not formatted: "+
				"make a filesystem on it yourself, or remove it", err)
		}
	}
	if err := d.fs.Check(ctx, m.Device, fstype); err != nil {
		return err
	}
	return d.fs.Mount(ctx, Mount{Device: m.Device, Path: d.path(name), FSType: fstype, Options: d.mountOptions(meta, fstype)})
}

// detachStale takes away a mount whose mapping is gone or dead, as a crash of
// the userspace mapper leaves it. Its containers have lost the volume already.
func (d *Driver) detachStale(ctx context.Context, name string) error {
	mount, found, err := d.mounted(ctx, name)
	if err != nil || !found {
		return err
	}
	m, mapped, err := d.mapping(ctx, name)
	if err != nil || mapped && m.Alive && m.Device == mount.Device {
		return err
	}
	d.log.WithField("volume", name).Warnf("detaching %s: its device %s has no working mapping; "+
		"containers that still use it must be restarted", mount.Path, mount.Device)
	d.refs.forget(name)
	return d.fs.Detach(ctx, mount.Path)
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
				"If that is %s, say so: rbd image-meta set %s docker_volume.fstype %s",
				ErrContent, formatSize(used), fstype, name, fstype)
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

// mountOptions: the volume's own, or the setting if it is meant for this
// filesystem, or the built-in ones.
func (d *Driver) mountOptions(meta map[string]string, fstype string) string {
	if own := meta[metaMountOptions]; own != "" {
		return own
	}
	if fstype == defaultFSType(d.defaults) {
		// Checked by New.
		if setting, err := parseMountOptions(OptMountOptions, d.defaults[OptMountOptions]); err == nil && setting != "" {
			return setting
		}
	}
	return DefaultMountOptions[fstype]
}

// Unmount takes one user of a volume away and, with the last one, lets the
// volume go. An id from before a restart of the plugin is not known and does no
// harm: what a container still holds, the kernel does not let go.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	return wrap("unmount", name, d.unmount(ctx, name, id))
}

func (d *Driver) unmount(ctx context.Context, name, id string) error {
	if err := checkName(name); err != nil {
		return err
	}
	unlock, err := d.locks.lock(ctx, name, "unmount")
	if err != nil {
		return err
	}
	defer unlock()
	if d.refs.drop(name, id) > 0 {
		return nil
	}
	err = d.letGo(ctx, name)
	if errors.Is(err, ErrBusy) {
		d.log.WithField("volume", name).Warnf("unmount: kept, a container on this node still uses it: %v", err)
		return nil
	}
	return err
}

// letGo unmounts, unmaps and gives the guard back, as far as there is anything.
// ErrBusy if a container holds the volume; it is then mounted and guarded as before.
func (d *Driver) letGo(ctx context.Context, name string) error {
	if err := d.detachStale(ctx, name); err != nil {
		return err
	}
	m, mapped, err := d.mapping(ctx, name)
	if err != nil || !mapped {
		return err
	}
	if !m.Alive {
		return d.drop(ctx, m)
	}
	mount, mounted, err := d.mounted(ctx, name)
	if err != nil {
		return err
	}
	if err := d.fs.Unmount(ctx, d.path(name)); err != nil {
		return err
	}
	if err := d.unmap(ctx, m); err != nil {
		if mounted && errors.Is(err, ErrBusy) {
			err = also(err, "mount again", d.fs.Mount(ctx, mount))
		}
		return err
	}
	guard, version, err := d.loadGuard(ctx, m.ID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil || !slices.Contains(guard.Addrs, m.Addr) {
		return err
	}
	return d.giveBack(ctx, m.ID, version)
}

// unstage undoes stage. A guard whose device cannot be unmapped is kept.
func (d *Driver) unstage(ctx context.Context, l *lease, name string) error {
	if err := d.fs.Unmount(ctx, d.path(name)); err != nil {
		return err
	}
	if err := d.unmap(ctx, Mapping{ID: l.Image().ID}); err != nil {
		return err
	}
	return d.giveBack(ctx, l.Image().ID, l.version)
}

// unmap gives a device that is about to be free a moment: udev looks into what
// was just closed, and a dead container's mounts go a little after it.
func (d *Driver) unmap(ctx context.Context, m Mapping) error {
	for end := time.Now().Add(2 * time.Second); ; {
		err := d.mapper.Unmap(ctx, m.ID)
		if !errors.Is(err, ErrBusy) || time.Now().After(end) || !sleep(ctx, 50*time.Millisecond) {
			return err
		}
	}
}

func (d *Driver) drop(ctx context.Context, m Mapping) error {
	d.log.WithField("volume", m.Name).Warnf("dropping the mapping %s (%s): its Ceph client is dead or fenced; "+
		"containers that still use it must be restarted", m.Device, m.Addr)
	d.refs.forget(m.Name)
	if err := d.fs.Detach(ctx, d.path(m.Name)); err != nil {
		return err
	}
	if err := d.mapper.Drop(ctx, m.ID); err != nil {
		return err
	}
	// Its watch would last for another 30 s. Without Ceph it does.
	if err := d.fences.Fence(ctx, m.Addr); err != nil {
		d.log.WithField("volume", m.Name).Infof("fence what was dropped: %v", err)
	}
	return nil
}

func sleep(ctx context.Context, t time.Duration) bool {
	select {
	case <-time.After(t):
		return true
	case <-ctx.Done():
		return false
	}
}
