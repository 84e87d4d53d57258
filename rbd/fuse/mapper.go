package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

// fsType is the type of our FUSE mounts in mountinfo.
const fsType = "fuse.docker-volume-rbd"

// Mapper maps the images of one pool. Its methods may be called at the same
// time for different images.
type Mapper struct {
	Ceph    rbd.Config
	Dir     string   // for the FUSE mounts; nobody else's, and not propagated
	Command []string // starts a child: a program that calls Serve
	Log     logrus.FieldLogger

	mu    sync.Mutex
	held  map[string]*os.File      // loop devices kept open, by key
	asked map[string]chan struct{} // by client address: servers that have not told their size yet
}

var _ backend.Mapper = (*Mapper)(nil)

func (m *Mapper) mountpoint(key string) string { return filepath.Join(m.Dir, key) }
func (m *Mapper) lockfile(key string) string   { return filepath.Join(m.Dir, key+".lock") }

// Map starts a child and a loop device; see backend.Mapper. What an earlier,
// killed call has left of a mapping is completed or taken away.
func (m *Mapper) Map(ctx context.Context, image backend.Image, mode backend.OpenMode) (backend.Mapping, error) {
	if image.Snap != "" {
		mode = backend.ReadOnly
	}
	if strings.ContainsAny(image.Snap, "/|") {
		return backend.Mapping{}, fmt.Errorf("%w: the name of snapshot %q has a / or |", backend.ErrInvalid, image.Snap)
	}
	found, ok, err := m.find(ctx, image.Key())
	if err != nil {
		return found, err
	}
	if ok && !found.Alive {
		if err := m.ForceUnmap(ctx, image.Key()); err != nil {
			return found, err
		}
		ok = false
	}
	if !ok {
		if found, err = m.start(ctx, image, mode); err != nil {
			return found, err
		}
	}
	if found.Device == "" {
		found.Device, err = m.attach(ctx, found, mode)
	} else {
		err = m.hold(image.Key(), found.Device)
	}
	if err != nil {
		return backend.Mapping{}, m.undo(ctx, image.Key(), err)
	}
	return found, nil
}

// Unmap flushes, detaches the loop device, unmounts and waits for the child to
// end, which is when the image is closed; see backend.Mapper.
func (m *Mapper) Unmap(ctx context.Context, key string) error {
	found, ok, err := m.find(ctx, key)
	if err != nil || !ok {
		return err
	}
	if !found.Alive {
		return m.ForceUnmap(ctx, key)
	}
	if found.Device != "" {
		if err := backend.Within(ctx, "detach "+found.Device, func() error { return detachLoop(found.Device) }); err != nil {
			return err
		}
		m.release(key)
	}
	if err := backend.Within(ctx, "unmount "+m.mountpoint(key), func() error { return m.unmount(ctx, key) }); err != nil {
		return err
	}
	if err := m.closed(ctx, key); err != nil {
		return err
	}
	return m.tidy(key)
}

// closed waits for a child whose filesystem is unmounted. All that was written is in
// Ceph, so it loses nothing if it has to be killed: librbd's close can hang, or a mount
// namespace that was made meanwhile, as unshare makes one, still has a copy of the mount.
func (m *Mapper) closed(ctx context.Context, key string) error {
	gently, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	err := m.waitForChild(gently, key)
	if err == nil || ctx.Err() != nil {
		return err
	}
	m.Log.Warnf("image server of %s has not ended %v after its filesystem was unmounted: killed; what was written is in ceph", key, closing)
	if err := killChild(m.lockfile(key)); err != nil {
		return err
	}
	return m.waitForChild(ctx, key)
}

// unmount ends the FUSE filesystem. The loop device lets go of the file a
// little after its own end.
func (m *Mapper) unmount(ctx context.Context, key string) error {
	for {
		err := unix.Unmount(m.mountpoint(key), unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || !pause(ctx) {
			return &fs.PathError{Op: "unmount", Path: m.mountpoint(key), Err: err}
		}
	}
}

// ForceUnmap kills the child, after which nothing can reach Ceph any more, and then
// takes away what is left; see backend.Mapper.
func (m *Mapper) ForceUnmap(ctx context.Context, key string) error {
	if err := killChild(m.lockfile(key)); err != nil {
		return err
	}
	left, _, err := m.find(ctx, key)
	if err != nil {
		return err
	}
	// By force it only ends the connection, so that whoever waits for an answer
	// of the child gets an error.
	_ = unix.Unmount(m.mountpoint(key), unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if err := m.waitForChild(ctx, key); err != nil {
		return err
	}
	if left.Device != "" {
		clearLoop(left.Device) // at once if nobody has it open, else with the last user
	}
	m.release(key)
	err = unix.Unmount(m.mountpoint(key), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unmount", Path: m.mountpoint(key), Err: err}
	}
	return m.tidy(key)
}

// tidy removes the empty mount point and the lock file.
func (m *Mapper) tidy(key string) error {
	for _, path := range []string{m.mountpoint(key), m.lockfile(key)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Mappings lists what the kernel knows; see backend.Mapper.
func (m *Mapper) Mappings(context.Context) ([]backend.Mapping, error) {
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != fsType || filepath.Dir(i.Mountpoint) != m.Dir, false
	})
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	var all []backend.Mapping
	for _, mount := range mounts {
		s, err := parseSource(mount.Source)
		if err != nil {
			m.Log.Warnf("%s is no mount of ours: %v", mount.Mountpoint, err)
			continue
		}
		if s.Pool != m.Ceph.Pool || s.Namespace != m.Ceph.Namespace {
			continue
		}
		device, err := loopOf(sysBlock, filepath.Join(mount.Mountpoint, fileName(s.Addr)))
		if err != nil {
			return nil, err
		}
		found := backend.Mapping{Name: s.Name, ID: s.ID, Snap: s.Snap, Device: device, Addr: s.Addr}
		if found.Alive, err = childAlive(m.lockfile(found.Key())); err != nil {
			return nil, err
		}
		if found.Mode, err = modeOf(sysBlock, found); err != nil {
			return nil, err
		}
		all = append(all, found)
	}
	return all, nil
}

// modeOf is what the loop device of a mapping allows.
func modeOf(block string, found backend.Mapping) (backend.OpenMode, error) {
	if found.Snap != "" {
		return backend.ReadOnly, nil
	}
	if found.Device == "" {
		return backend.ReadWrite, nil
	}
	ro, err := attribute(block, found.Device, "ro")
	if err != nil && !free(err) {
		return backend.ReadWrite, err
	}
	return ro != 1, nil
}

// Supports allows everything: librbd knows all its features; see backend.Mapper.
func (m *Mapper) Supports([]string) error { return nil }

func (m *Mapper) find(ctx context.Context, key string) (backend.Mapping, bool, error) {
	all, err := m.Mappings(ctx)
	for _, found := range all {
		if found.Key() == key {
			return found, true, nil
		}
	}
	return backend.Mapping{}, false, err
}

func pause(ctx context.Context) bool {
	select {
	case <-time.After(5 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}
