package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// Mount makes the volume usable on this node and returns where. The id stands
// for one user of it; the same id may come again and each is counted.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
	ctx, cancel := d.withOutageTimeout(ctx)
	defer cancel()
	path, err := d.mount(ctx, name, id)
	if errors.Is(err, backend.ErrNotPropagated) {
		d.startAfresh(ctx)
	}
	return path, wrap("mount", name, err)
}

// startAfresh ends the plugin, if that harms nobody here: when Docker starts it
// again it shares the directory of the mounts with the host anew.
func (d *Driver) startAfresh(ctx context.Context) {
	if d.restart == nil {
		return
	}
	switch mappings, err := d.mapper.Mappings(ctx); {
	case err != nil:
		d.log.Warnf("restart: mappings of this node: %v", err)
	case len(mappings) > 0:
		d.log.Warn("mounts do not reach the host; the plugin would end by itself to be started afresh, but volumes are in use here")
	default:
		d.log.Warn("mounts do not reach the host, and no volume is in use here: the plugin is to be started afresh")
		d.restart()
	}
}

func (d *Driver) mount(ctx context.Context, name, id string) (path string, err error) {
	unlock, err := d.begin(ctx, name, "mount")
	if err != nil {
		return "", err
	}
	return d.outlast(ctx, name, unlock, func(ctx context.Context) (string, error) { return d.mountInTurn(ctx, name, id) })
}

func (d *Driver) mountInTurn(ctx context.Context, name, id string) (path string, err error) {
	staged := false
	if d.refs.count(name) > 0 {
		if staged, err = d.staged(ctx, name); err != nil {
			return "", err
		}
	}
	if !staged {
		if err := d.answers(ctx, name); err != nil {
			return "", err
		}
		err := d.stage(ctx, name)
		if errors.Is(err, errHalfMade) {
			if err = d.makeAnew(ctx, name); err == nil {
				err = d.stage(ctx, name)
			}
		}
		if err != nil {
			return "", err
		}
	}
	if path, err = d.inside(ctx, name); err != nil {
		return "", backend.Also(err, "undo", d.unstageIfUnused(ctx, name))
	}
	d.refer(ctx, name, id)
	d.unheld.forget(name)
	d.cache.note(name)
	return path, nil
}

// inside is what of a mounted volume containers get: all of it or, where other
// plugins made it so, a directory.
func (d *Driver) inside(ctx context.Context, name string) (string, error) {
	directory, ok := d.within.Load(name)
	if !ok {
		return d.path(name), nil
	}
	return d.fs.Subpath(ctx, d.path(name), directory.(string))
}

// unstageIfUnused lets go of a volume that was mounted and is of no use to who asked for it.
func (d *Driver) unstageIfUnused(ctx context.Context, name string) error {
	if d.refs.count(name) > 0 {
		return nil
	}
	ctx, cancel := backend.CleanupContext(ctx)
	defer cancel()
	err := d.unstage(ctx, name)
	if errors.Is(err, backend.ErrBusy) { // a container of before a restart has it
		return nil
	}
	return err
}

// useDirectory notes which directory of a volume is meant; "" = all of it.
func (d *Driver) useDirectory(name, directory string) error {
	if directory == "" {
		d.within.Delete(name)
		return nil
	}
	if !backend.ValidName(directory) {
		return fmt.Errorf("%w: docker_volume.%s of its image is %.40q: give the name of a directory", backend.ErrInvalid, volume.KeySubdirectory, directory)
	}
	d.within.Store(name, directory)
	return nil
}

// staged tells whether the volume is mounted here on a mapping that works.
func (d *Driver) staged(ctx context.Context, name string) (bool, error) {
	m, found, err := d.mapping(ctx, name)
	if err != nil || !found || !m.Alive {
		return false, err
	}
	mount, found, err := d.mounted(ctx, name)
	if err != nil || !found || mount.Device != m.Device || errors.Is(d.fs.CheckHealth(ctx, mount), backend.ErrUnexpectedContent) {
		return false, err
	}
	return true, d.current(ctx, m)
}

// renew takes a mount away that errors have made read-only, for a new one; the
// check before that repairs what can be. Only the last user's end does it.
func (d *Driver) renew(ctx context.Context, name string) error {
	mount, found, err := d.mounted(ctx, name)
	if err != nil || !found {
		return err
	}
	broken := d.fs.CheckHealth(ctx, mount)
	if !errors.Is(broken, backend.ErrUnexpectedContent) {
		return nil
	}
	d.log.WithField("volume", name).Warnf("mounting anew: %v", broken)
	if err := d.unstage(ctx, name); errors.Is(err, backend.ErrBusy) {
		return fmt.Errorf("%w: %w, and containers of this node still use it; stop all of them, then start again", backend.ErrBusy, broken)
	} else if err != nil {
		return err
	}
	d.refs.forget(name)
	return nil
}

// stage takes a volume from Ceph to a mounted filesystem: guard, map, swap,
// commit what is pending, mount. What a failure leaves is undone in reverse.
func (d *Driver) stage(ctx context.Context, name string) (err error) {
	if err := d.dropLost(ctx, name, nil); err != nil {
		return err
	}
	if err := d.renew(ctx, name); err != nil {
		return err
	}
	if err := d.unstageReplaced(ctx, name); err != nil {
		return err
	}
	l, err := d.guards.Acquire(ctx, name, guard.ToMount)
	if errors.Is(err, guard.ErrShared) {
		return d.stageShared(ctx, name)
	}
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, l)
	defer func() {
		// What was adopted may be in use by containers: it stays.
		if err != nil && !l.Adopted {
			ctx, cancel := backend.CleanupContext(ctx)
			defer cancel()
			err = backend.Also(err, "undo", d.undoStage(ctx, l, name))
		}
	}()
	meta, p, version, err := d.metaOf(ctx, l) // under the guard: nobody else changes it now
	if err != nil {
		return err
	}
	if err := d.finished(ctx, l, p); err != nil {
		return err
	}
	if p == nil {
		if err := meta.CheckRollback(); err != nil {
			return err
		}
	}
	if meta.Sealed != "" && !meta.ReadOnly && !l.Adopted { // it is about to be written to again
		if err := d.guards.RefuseReaders(ctx, l.Image().ID); err != nil {
			return err
		}
		if err := l.SetMeta(ctx, map[string]string{volume.KeySealed: ""}); err != nil {
			return err
		}
	}
	if err := d.useDirectory(name, meta.Subdirectory); err != nil {
		return err
	}
	if !l.Adopted && !slices.Contains(l.Image().Features, backend.FeatureLock) {
		d.log.WithField("volume", name).Infof("switching on %s: the image was made without, and nobody uses it now", backend.FeatureLock)
		if err := l.EnableExclusiveLock(ctx); err != nil {
			return err
		}
	}
	image := l.Image()
	if image.Encryption, err = d.encryption(ctx, meta); err != nil {
		return err
	}
	if p != nil && p.Image.Parent == nil && image.Encryption != nil {
		if version, err = d.encrypt(ctx, l, p, version, *image.Encryption); err != nil {
			return err
		}
	}
	m, err := d.mapper.Map(ctx, image, backend.ReadWrite)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	if l.Adopted && !l.Record.Authorizes(m) { // it was on its way out, and this is a new one
		l.Adopted = false
	}
	switch {
	case p != nil && p.Image.Parent != nil:
		err = d.finishCopy(ctx, l, m, p, version)
	case p != nil:
		err = d.makeFilesystem(ctx, l, m, p, version)
	default:
		err = d.mountMapped(ctx, l, m, meta)
	}
	if err != nil || !meta.ReadOnly {
		return err
	}
	err = d.seal(ctx, l, m)
	if l.Adopted && errors.Is(err, backend.ErrBusy) {
		d.log.WithField("volume", name).Warn("it was made read-only while containers write to it: it stays as it is until they have stopped")
		return nil
	}
	return err
}

// mountMapped mounts what is complete.
func (d *Driver) mountMapped(ctx context.Context, l *guard.Held, m backend.Mapping, meta volume.Metadata) error {
	if !l.Adopted {
		if err := l.SetState(ctx, guard.Mapped, m.Addr); errors.Is(err, backend.ErrConflict) {
			return fmt.Errorf("%w: another node took the volume while it was mapped here: %w", backend.ErrInUse, err)
		} else if err != nil {
			return err
		}
		d.closeHandle(ctx, l) // the guard does not name the control client any more
	}
	fstype, err := d.fstypeOf(ctx, meta, m)
	if err != nil {
		return err
	}
	if err := d.check(ctx, m, fstype); err != nil {
		return err
	}
	mount := backend.Mount{Device: m.Device, Path: d.path(m.Name), FSType: fstype, Options: volume.MountOptions(meta.MountOptions, fstype, d.defaults)}
	if err := d.mountFull(ctx, mount, m); err != nil {
		return err
	}
	return d.thaw(ctx, m.Name)
}

// check repairs what can be repaired; on a large filesystem, or a slow cluster, it takes
// minutes or hours.
func (d *Driver) check(ctx context.Context, m backend.Mapping, fstype string) error {
	return d.takesLong(ctx, "checking its "+fstype, func(ctx context.Context) error { return d.fs.Check(ctx, m.Device, fstype) })
}
