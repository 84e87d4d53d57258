package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// A read-only volume is mounted by as many nodes as like it, without a guard: none
// of them writes, nor replays a journal. What is to be written for that, once, its
// first mount writes under the guard, and seals the image: the note names the id of
// the image, so that a copy, which has its original's metadata, is not sealed.
//
// A read-only mapping is no watcher of its image. So that whoever wants to remove
// or to write it sees that it is in use, the control client watches it meanwhile,
// and a note says so, of which readers.go tells more.

// seal makes a volume that is mounted under the guard ready to be shared, and
// mounts it so. Until the guard is given back one of the clients that it names is a
// watcher: else another node, which waits for the volume, would take this one for
// dead and fence its control client.
func (d *Driver) seal(ctx context.Context, l *guard.Held, m backend.Mapping) error {
	if err := d.waitUnheld(ctx, m); err != nil {
		return err
	}
	h, err := d.images.Open(ctx, m.Name, backend.ReadWrite)
	if err != nil {
		return err
	}
	before := l.Handle
	l.Handle = h
	d.closeHandle(ctx, before) // it may be open, or not, by the way that the volume came
	if h.Image().ID != m.ID {
		return d.replaced(m)
	}
	if err := l.SetState(ctx, guard.Mapped, m.Addr, h.ClientAddr()); err != nil {
		return err
	}
	if err := d.unmountAndUnmap(ctx, m); err != nil { // it is mounted as before
		ctx, cancel := backend.CleanupContext(ctx)
		defer cancel()
		return backend.Also(err, "leave the guard to the mapping", l.SetState(ctx, guard.Mapped, m.Addr))
	}
	l.Adopted = false
	if err := l.SetState(ctx, guard.Mapped, h.ClientAddr()); err != nil {
		return err
	}
	if err := l.SetMeta(ctx, map[string]string{volume.KeySealed: m.ID}); err != nil {
		return err
	}
	if err := l.Release(ctx); err != nil {
		return err
	}
	d.closeHandle(ctx, l)
	return d.stageShared(ctx, m.Name)
}

// stageShared maps and mounts a sealed volume read-only.
func (d *Driver) stageShared(ctx context.Context, name string) (err error) {
	h, err := d.images.Open(ctx, name, backend.ReadWrite)
	if err != nil {
		return err
	}
	d.closeWatch(ctx, d.watches.swap(name, h))
	defer func() {
		if err != nil {
			d.unread(ctx, name, h.Image().ID)
			d.unwatch(ctx, name)
		}
	}()
	if err := d.noteReader(ctx, name, h.Image().ID, h.ClientAddr()); err != nil {
		return err
	}
	if err := d.guards.WaitUntilFree(ctx, h.Image().ID); err != nil {
		return err
	}
	meta, err := readMeta(ctx, h)
	if err != nil {
		return err
	}
	image := h.Image()
	if !meta.IsSealed(image) {
		return fmt.Errorf("%w: the volume was made writable again meanwhile; try again", backend.ErrInUse)
	}
	mapped, err := d.mappings(ctx)
	if err == nil {
		err = d.alone(image, mapped)
	}
	if err != nil {
		return err
	}
	if err := d.useDirectory(name, meta.Subdirectory); err != nil {
		return err
	}
	if image.Encryption, err = d.encryption(ctx, meta); err != nil {
		return err
	}
	m, err := d.mapper.Map(ctx, image, backend.ReadOnly)
	if err != nil {
		return fmt.Errorf("map read-only: %w", err)
	}
	fstype, err := d.fstypeOf(ctx, meta, m)
	if err == nil {
		options := strings.TrimPrefix(volume.MountOptions(meta.MountOptions, fstype, d.defaults)+",ro", ",")
		err = d.fs.Mount(ctx, backend.Mount{Device: m.Device, Path: d.path(name), FSType: fstype, Options: options})
	}
	if err != nil {
		ctx, cancel := backend.CleanupContext(ctx)
		defer cancel()
		err = backend.Also(err, "undo", d.unmap(ctx, m))
	}
	return err
}

// unstageShared unmounts and unmaps a read-only volume.
func (d *Driver) unstageShared(ctx context.Context, m backend.Mapping) error {
	if !m.Alive {
		return d.forceUnmap(ctx, m)
	}
	if err := d.unmountAndUnmap(ctx, m); err != nil {
		return err
	}
	d.unread(ctx, m.Name, m.ID)
	d.unwatch(ctx, m.Name)
	return nil
}

// watches are the images that the control client watches, by volume.
type watches struct {
	mu sync.Mutex
	m  map[string]backend.Handle
}

// swap returns the one of before; nil for none.
func (w *watches) swap(name string, h backend.Handle) (before backend.Handle) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before = w.m[name]
	if w.m == nil {
		w.m = map[string]backend.Handle{}
	}
	if w.m[name] = h; h == nil {
		delete(w.m, name)
	}
	return before
}

func (w *watches) get(name string) backend.Handle {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.m[name]
}

func (d *Driver) closeWatch(ctx context.Context, h backend.Handle) {
	if h != nil {
		d.closeHandle(ctx, h)
	}
}

func (d *Driver) unwatch(ctx context.Context, name string) {
	d.closeWatch(ctx, d.watches.swap(name, nil))
}

// rewatch sees to it that a read-only mapping is seen, and noted: after a restart, or
// when the control client was replaced. An image that has another name by now is not
// watched, and noted all the same.
func (d *Driver) rewatch(ctx context.Context, m backend.Mapping) error {
	if h := d.watches.get(m.Name); h != nil {
		watchers, err := h.Watchers(ctx)
		if err == nil && slices.Contains(watchers, h.ClientAddr()) {
			return d.noteReader(ctx, m.Name, m.ID, h.ClientAddr())
		}
	}
	h, err := d.images.Open(ctx, m.Name, backend.ReadWrite)
	if errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if h.Image().ID == m.ID {
		d.closeWatch(ctx, d.watches.swap(m.Name, h))
	} else {
		d.closeHandle(ctx, h)
	}
	return d.noteReader(ctx, m.Name, m.ID, h.ClientAddr())
}
