package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// Snapshots lists the snapshots of a volume, the oldest first.
func (d *Driver) Snapshots(ctx context.Context, name string) ([]backend.Snapshot, error) {
	snaps, err := d.snapshots(ctx, name)
	return snaps, wrap("list snapshots of", name, err)
}

func (d *Driver) snapshots(ctx context.Context, name string) ([]backend.Snapshot, error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	h, err := d.images.Open(ctx, name, backend.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer d.closeHandle(ctx, h)
	return h.Snapshots(ctx)
}

// snapshot finds one by name.
func (d *Driver) snapshot(ctx context.Context, name, snap string) (backend.Snapshot, error) {
	all, err := d.snapshots(ctx, name)
	if err != nil {
		return backend.Snapshot{}, err
	}
	names := []string{}
	for _, s := range all {
		if s.Name == snap {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return backend.Snapshot{}, fmt.Errorf("snapshot %s of volume %s: %w; there are: %s", snap, name, backend.ErrNotFound, strings.Join(names, ", "))
}

// CreateSnapshot makes a snapshot. Of a volume that is mounted on this node it is one of a
// frozen filesystem: all that was written is in it, and there is nothing to replay.
// Elsewhere, which frozen tells, it is as after a power cut: all that was synced
// is in it.
func (d *Driver) CreateSnapshot(ctx context.Context, name, snap string) (frozen bool, err error) {
	err = backend.CheckName(name)
	if err == nil {
		err = volume.CheckSnapshotName(snap)
	}
	if err == nil && strings.HasPrefix(snap, ours) {
		err = backend.Invalidf("snapshot %s: names that begin with %s are the plugin's own", snap, ours)
	}
	if err == nil {
		frozen, err = d.createSnapshot(ctx, name, snap)
	}
	return frozen, wrap("make a snapshot of", name, err)
}

func (d *Driver) createSnapshot(ctx context.Context, name, snap string) (frozen bool, err error) {
	unlock, err := d.begin(ctx, name, "snapshot")
	if err != nil {
		return false, err
	}
	defer unlock()
	// Open while the snapshot is made, the image has a watcher that no guard names:
	// who wants to mount it meanwhile waits.
	h, err := d.images.Open(ctx, name, backend.ReadWrite)
	if err != nil {
		return false, err
	}
	defer d.closeHandle(ctx, h)
	meta, err := readMeta(ctx, h)
	if err == nil {
		err = meta.CheckRollback()
	}
	if err != nil {
		return false, err
	}
	written, err := d.written(ctx, h.Image())
	if err != nil {
		return false, err
	}
	if !written {
		return false, h.CreateSnapshot(ctx, snap)
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	if err = d.freeze(ctx, name); err == nil {
		err = h.CreateSnapshot(ctx, snap)
	}
	end, cancel := backend.CleanupContext(ctx) // whatever became of it: nobody can write until then
	defer cancel()
	return true, backend.Also(err, "thaw", d.thaw(end, name))
}

// written tells whether an image is mounted on this node to be written to.
func (d *Driver) written(ctx context.Context, image backend.Image) (bool, error) {
	m, found, err := d.mapping(ctx, image.Name)
	if err != nil || !found || !m.Alive || m.Mode == backend.ReadOnly || m.ID != image.ID {
		return false, err
	}
	mount, found, err := d.mounted(ctx, image.Name)
	return found && mount.Device == m.Device, err
}

// RemoveSnapshot removes a snapshot. Clones that were made of it stay.
func (d *Driver) RemoveSnapshot(ctx context.Context, name, snap string) error {
	return wrap("remove a snapshot of", name, d.removeSnapshot(ctx, name, snap))
}

func (d *Driver) removeSnapshot(ctx context.Context, name, snap string) error {
	unlock, err := d.begin(ctx, name, "snapshot")
	if err != nil {
		return err
	}
	defer unlock()
	h, err := d.images.Open(ctx, name, backend.ReadWrite)
	if err != nil {
		return err
	}
	defer d.closeHandle(ctx, h)
	meta, err := readMeta(ctx, h)
	if err != nil {
		return err
	}
	if meta.Rollback == snap {
		return fmt.Errorf("%w: %w", backend.ErrBusy, meta.CheckRollback())
	}
	err = h.RemoveSnapshot(ctx, snap)
	if errors.Is(err, backend.ErrBusy) {
		err = fmt.Errorf("%w; it is protected: rbd snap unprotect %s/%s@%s", err, d.pool, name, snap)
	}
	return err
}

// sweepSnapshots removes what copies should have taken away themselves.
func (d *Driver) sweepSnapshots(ctx context.Context) error {
	names, err := d.images.Names(ctx)
	for _, name := range names {
		snaps, listErr := d.snapshots(ctx, name)
		for _, s := range snaps {
			if !strings.HasPrefix(s.Name, ours) || d.now().Sub(s.Created) < copyTime {
				continue
			}
			if listErr = d.removeSnapshot(ctx, name, s.Name); listErr != nil {
				break
			}
			d.log.WithField("volume", name).Infof("sweep: removed snapshot %s, left by a copy that was cut short", s.Name)
		}
		if !errors.Is(listErr, backend.ErrNotFound) { // else it was removed meanwhile
			err = errors.Join(err, listErr)
		}
	}
	return err
}

// Rollback gives a volume that nobody uses the content of a snapshot. What was
// written since is lost. Cut short it has to be done again before the volume can
// be mounted.
//
// It goes on when whoever asked for it has gone: a volume may be large.
func (d *Driver) Rollback(ctx context.Context, name, snap string) error {
	return wrap("roll back", name, d.rollback(ctx, name, snap))
}

func (d *Driver) rollback(ctx context.Context, name, snap string) error {
	unlock, err := d.begin(ctx, name, "roll-back")
	if err != nil {
		return err
	}
	_, err = d.outlast(ctx, name, unlock, func(ctx context.Context) (string, error) { return "", d.rollbackInTurn(ctx, name, snap) })
	return err
}

func (d *Driver) rollbackInTurn(ctx context.Context, name, snap string) error {
	l, err := d.acquireForRollback(ctx, name, snap)
	if err != nil {
		return err
	}
	defer func() { d.closeHandle(ctx, l) }()
	err = d.takesLong(ctx, "going back to snapshot "+snap, func(ctx context.Context) error { return d.rollbackImage(ctx, l, snap) })
	if errors.Is(err, backend.ErrUnavailable) { // it may go on: the guard stays, and its next taker fences us first
		return err
	}
	return l.Undo(ctx, err)
}

// acquireForRollback gets the guard of a volume that can be rolled back, in a state in which
// the control client writes.
func (d *Driver) acquireForRollback(ctx context.Context, name, snap string) (*guard.Held, error) {
	if _, err := d.snapshot(ctx, name, snap); err != nil {
		return nil, err
	}
	l, err := d.idle(ctx, name)
	if err != nil {
		return nil, err
	}
	meta, p, _, err := d.metaOf(ctx, l)
	switch {
	case err != nil:
	case p != nil:
		err = fmt.Errorf("%w: it was never mounted: nothing to roll back", backend.ErrInvalid)
	case meta.ReadOnly:
		err = fmt.Errorf("%w: it is read-only, and may be mounted on any node", backend.ErrInvalid)
	default:
		err = d.apart(ctx, l)
	}
	if err != nil {
		defer d.closeHandle(ctx, l)
		return nil, l.Undo(ctx, err)
	}
	return l, nil
}

// apart has a client of its own write under a guard. The control client is fenced
// together with a call of any other volume that was left unfinished.
func (d *Driver) apart(ctx context.Context, l *guard.Held) error {
	h, err := d.images.OpenApart(ctx, l.Image().Name)
	if err != nil {
		return err
	}
	if h.Image().ID != l.Image().ID {
		d.closeHandle(ctx, h)
		return fmt.Errorf("%w: the image was replaced meanwhile", backend.ErrInUse)
	}
	if err := l.SetState(ctx, guard.Mapped, h.ClientAddr()); err != nil {
		d.closeHandle(ctx, h)
		return err
	}
	d.closeHandle(ctx, l)
	l.Handle = h
	return nil
}

// rollbackImage leaves a note for as long as the image has content of two times.
func (d *Driver) rollbackImage(ctx context.Context, l *guard.Held, snap string) error {
	before, err := readMeta(ctx, l)
	if err != nil {
		return err
	}
	if err := l.SetMeta(ctx, map[string]string{volume.KeyRollback: snap, volume.KeySealed: ""}); err != nil {
		return err
	}
	if err := l.Rollback(ctx, snap); errors.Is(err, backend.ErrNotFound) { // removed meanwhile, and nothing was done
		return backend.Also(err, "take the note back", l.SetMeta(ctx, map[string]string{volume.KeyRollback: before.Rollback}))
	} else if err != nil {
		return err
	}
	return l.SetMeta(ctx, map[string]string{volume.KeyRollback: ""})
}
