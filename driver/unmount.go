package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// Unmount takes one user of a volume away and, with the last one, lets the
// volume go. An id from before a restart of the plugin is not known and does no
// harm: what a container still holds, the kernel does not let go.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	return wrap("unmount", name, d.unmount(ctx, name, id))
}

func (d *Driver) unmount(ctx context.Context, name, id string) error {
	if d.kept.take(user{name, id}, nil) { // it was asked for twice, and heard of once
		d.refs.drop(name, id)
	}
	d.refs.drop(name, id) // Docker does not repeat it if there is no time for the rest
	unlock, err := d.begin(ctx, name, "unmount")
	if err != nil {
		return err
	}
	defer unlock()
	if d.refs.count(name) > 0 {
		return nil
	}
	err = d.unstage(ctx, name)
	if errors.Is(err, backend.ErrBusy) {
		d.log.WithField("volume", name).Warnf("unmount: kept, a container on this node still uses it: %v", err)
		return nil
	}
	return err
}

// unstage unmounts, unmaps and gives the guard back, as far as there is anything.
// ErrBusy if a container holds the volume; it is then mounted and guarded as before.
func (d *Driver) unstage(ctx context.Context, name string) error {
	if err := d.detachStale(ctx, name); err != nil {
		return err
	}
	m, mapped, err := d.mapping(ctx, name)
	if err != nil {
		return err
	}
	if !mapped {
		d.unwatch(ctx, name)
		return nil
	}
	if m.Mode == backend.ReadOnly {
		return d.unstageShared(ctx, m)
	}
	if !m.Alive {
		return d.forceUnmap(ctx, m)
	}
	held, version, err := d.askFirst(ctx, m.ID)
	if err != nil {
		return err
	}
	if version != 0 && !held.Authorizes(m) {
		return d.forceUnmap(ctx, m)
	}
	if err := d.unmountAndUnmap(ctx, m); err != nil {
		return err
	}
	if version == 0 {
		return nil
	}
	return d.guards.Release(ctx, m.ID, version)
}

// unmountAndUnmap unmounts and unmaps. ErrBusy if a container holds the volume, in a mount
// namespace of its own: that is looked up. What no mount table shows, a file that is
// open in what was detached say, the kernel still refuses; it is then mounted as before.
func (d *Driver) unmountAndUnmap(ctx context.Context, m backend.Mapping) error {
	mount, mounted, err := d.mounted(ctx, m.Name)
	if err != nil {
		return err
	}
	if err := d.waitUnheld(ctx, m); err != nil {
		return err
	}
	if err := d.fs.Unmount(ctx, d.path(m.Name)); err != nil {
		return err
	}
	err = d.unmap(ctx, m)
	if mounted && errors.Is(err, backend.ErrBusy) {
		err = backend.Also(err, "mount again", d.fs.Mount(ctx, mount))
	}
	return err
}

// askFirst reads the guard, version 0 if there is none, before an unmount: while
// Ceph is away that hangs in the kernel, where nothing ends it, not even the end
// of the process.
func (d *Driver) askFirst(ctx context.Context, id string) (guard.Record, backend.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	held, version, err := d.guards.Load(ctx, id)
	if errors.Is(err, backend.ErrNotFound) {
		return guard.Record{}, 0, nil
	}
	return held, version, err
}

// undoStage undoes stage. A guard whose device cannot be unmapped is kept.
func (d *Driver) undoStage(ctx context.Context, l *guard.Held, name string) error {
	if _, mounted, err := d.mounted(ctx, name); err != nil {
		return err
	} else if mounted {
		if _, _, err := d.askFirst(ctx, l.Image().ID); err != nil {
			return err
		}
	}
	if err := d.fs.Unmount(ctx, d.path(name)); err != nil {
		return err
	}
	if err := d.unmap(ctx, backend.Mapping{ID: l.Image().ID}); err != nil {
		return err
	}
	return l.Release(ctx)
}

// unmap gives a device that is about to be free a moment: udev looks into what
// was just closed, and a dead container's mounts go a little after it. It is
// unmapped when it is seen to be gone: what could not be found was not unmapped.
func (d *Driver) unmap(ctx context.Context, m backend.Mapping) error {
	for end := time.Now().Add(2 * time.Second); ; {
		err := d.mapper.Unmap(ctx, m.ID)
		if err == nil {
			return d.gone(ctx, m.ID)
		}
		if !errors.Is(err, backend.ErrBusy) || time.Now().After(end) || !backend.Sleep(ctx, 50*time.Millisecond) {
			return err
		}
	}
}

func (d *Driver) gone(ctx context.Context, id string) error {
	all, err := d.mappings(ctx)
	for _, m := range all {
		if m.ID == id {
			return fmt.Errorf("%s (%s) is there after it was unmapped", m.Device, m.Addr)
		}
	}
	return err
}

// forceUnmap takes a mapping away that may not write any more, whoever uses it.
func (d *Driver) forceUnmap(ctx context.Context, m backend.Mapping) error {
	// First: what it has not written yet shall fail, not be written now, and not
	// wait for ever. For a client that is dead already it ends the watch, which
	// would last for another 30 s.
	patience := ctx
	if !m.Alive {
		var cancel context.CancelFunc
		patience, cancel = context.WithTimeout(ctx, d.patience)
		defer cancel()
	}
	var err error
	if m.Mode == backend.ReadWrite {
		err = d.fences.Fence(patience, m.Addr)
	}
	if err != nil && m.Alive {
		d.log.WithField("volume", m.Name).Warnf("the mapping %s (%s) may not write any more, but cannot be fenced and stays for now: %v", m.Device, m.Addr, err)
		return fmt.Errorf("fence %s: %w", m.Addr, err)
	}
	if err != nil {
		d.log.WithField("volume", m.Name).Infof("fence %s, which is to be dropped: %v", m.Addr, err)
	}
	d.log.WithField("volume", m.Name).Warnf("dropping the mapping %s (%s): its client is dead or fenced, or not the one of the guard; "+
		"containers that still use it must be restarted", m.Device, m.Addr)
	d.refs.forget(m.Name)
	d.unwatch(ctx, m.Name)
	if err := d.fs.LazyUnmount(ctx, d.path(m.Name)); err != nil {
		return err
	}
	err = d.mapper.ForceUnmap(ctx, m.ID)
	if err == nil && m.Mode == backend.ReadOnly {
		d.unread(ctx, m.Name, m.ID)
	}
	return err
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
	return d.fs.LazyUnmount(ctx, mount.Path)
}
