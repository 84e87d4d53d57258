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

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
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

	mu   sync.Mutex
	held map[string]*os.File // loop devices kept open, by image id
}

var _ driver.Mapper = (*Mapper)(nil)

func (m *Mapper) mountpoint(id string) string { return filepath.Join(m.Dir, id) }
func (m *Mapper) lockfile(id string) string   { return filepath.Join(m.Dir, id+".lock") }

// Map starts a child and a loop device; see driver.Mapper. What an earlier,
// killed call has left of a mapping is completed or taken away.
func (m *Mapper) Map(ctx context.Context, image driver.Image, mode driver.OpenMode) (driver.Mapping, error) {
	found, ok, err := m.find(ctx, image.ID)
	if err != nil {
		return found, err
	}
	if ok && !found.Alive {
		if err := m.Drop(ctx, image.ID); err != nil {
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
		err = m.hold(image.ID, found.Device)
	}
	if err != nil {
		return driver.Mapping{}, m.undo(ctx, image.ID, err)
	}
	return found, nil
}

// attach puts a loop device on the image's file.
func (m *Mapper) attach(ctx context.Context, found driver.Mapping, mode driver.OpenMode) (string, error) {
	type result struct {
		dev *os.File
		err error
	}
	done := make(chan result, 1)
	go func() { // opening a file of a FUSE filesystem takes as long as its server
		dev, err := attachLoop(filepath.Join(m.mountpoint(found.ID), fileName(found.Addr)), mode)
		done <- result{dev, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return "", r.err
		}
		m.keep(found.ID, r.dev)
		return r.dev.Name(), nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.dev.Close() // autoclear
			}
		}()
		return "", fmt.Errorf("attach a loop device: %w", ctx.Err())
	}
}

// hold opens the loop device of a mapping that an earlier process made.
func (m *Mapper) hold(id, device string) error {
	m.mu.Lock()
	_, ok := m.held[id]
	m.mu.Unlock()
	if ok {
		return nil
	}
	dev, err := os.OpenFile(device, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		dev, err = os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		m.keep(id, dev)
	}
	return err
}

func (m *Mapper) keep(id string, dev *os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held == nil {
		m.held = map[string]*os.File{}
	}
	if old := m.held[id]; old != nil {
		_ = old.Close()
	}
	m.held[id] = dev
}

func (m *Mapper) letGo(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dev := m.held[id]; dev != nil {
		_ = dev.Close()
		delete(m.held, id)
	}
}

// Unmap flushes, detaches the loop device, unmounts and waits for the child to
// end, which is when the image is closed; see driver.Mapper.
func (m *Mapper) Unmap(ctx context.Context, id string) error {
	found, ok, err := m.find(ctx, id)
	if err != nil || !ok {
		return err
	}
	if !found.Alive {
		return m.Drop(ctx, id)
	}
	if found.Device != "" {
		if err := driver.Within(ctx, "detach "+found.Device, func() error { return detachLoop(found.Device) }); err != nil {
			return err
		}
		m.letGo(id)
	}
	if err := driver.Within(ctx, "unmount "+m.mountpoint(id), func() error { return m.unmount(ctx, id) }); err != nil {
		return err
	}
	if err := m.waitForChild(ctx, id); err != nil {
		return err
	}
	return m.tidy(id)
}

// unmount ends the FUSE filesystem. The loop device lets go of the file a
// little after its own end.
func (m *Mapper) unmount(ctx context.Context, id string) error {
	for {
		err := unix.Unmount(m.mountpoint(id), unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || !pause(ctx) {
			return &fs.PathError{Op: "unmount", Path: m.mountpoint(id), Err: err}
		}
	}
}

// Drop kills the child, after which nothing can reach Ceph any more, and then
// takes away what is left; see driver.Mapper.
func (m *Mapper) Drop(ctx context.Context, id string) error {
	if err := killChild(m.lockfile(id)); err != nil {
		return err
	}
	left, _, err := m.find(ctx, id)
	if err != nil {
		return err
	}
	// By force it only ends the connection, so that whoever waits for an answer
	// of the child gets an error.
	_ = unix.Unmount(m.mountpoint(id), unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if err := m.waitForChild(ctx, id); err != nil {
		return err
	}
	if left.Device != "" {
		clearLoop(left.Device) // at once if nobody has it open, else with the last user
	}
	m.letGo(id)
	err = unix.Unmount(m.mountpoint(id), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unmount", Path: m.mountpoint(id), Err: err}
	}
	return m.tidy(id)
}

// Sweep removes what a killed plugin has left of mappings that never came up:
// lock files that nobody holds, and mount points with nothing on them. It is
// for the start, when no Map is under way.
func (m *Mapper) Sweep(ctx context.Context) error {
	locks, err := filepath.Glob(m.lockfile("*"))
	if err != nil {
		return err
	}
	for _, lock := range locks {
		id := strings.TrimSuffix(filepath.Base(lock), ".lock")
		_, mounted, err := m.find(ctx, id)
		if err != nil {
			return err
		}
		alive, err := childAlive(lock) // an orphan on its way up cleans up by itself
		if err != nil {
			return err
		}
		if mounted || alive {
			continue
		}
		if err := m.tidy(id); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes the empty mount point and the lock file.
func (m *Mapper) tidy(id string) error {
	for _, path := range []string{m.mountpoint(id), m.lockfile(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Mappings lists what the kernel knows; see driver.Mapper.
func (m *Mapper) Mappings(context.Context) ([]driver.Mapping, error) {
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != fsType || filepath.Dir(i.Mountpoint) != m.Dir, false
	})
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	var all []driver.Mapping
	for _, mount := range mounts {
		s, err := parseSource(mount.Source)
		if err != nil {
			m.Log.Warnf("%s is no mount of ours: %v", mount.Mountpoint, err)
			continue
		}
		if s.Pool != m.Ceph.Pool || s.Namespace != m.Ceph.Namespace {
			continue
		}
		device, err := loopOf(filepath.Join(mount.Mountpoint, fileName(s.Addr)))
		if err != nil {
			return nil, err
		}
		alive, err := childAlive(m.lockfile(s.ID))
		if err != nil {
			return nil, err
		}
		all = append(all, driver.Mapping{Name: s.Name, ID: s.ID, Device: device, Addr: s.Addr, Alive: alive})
	}
	return all, nil
}

func (m *Mapper) find(ctx context.Context, id string) (driver.Mapping, bool, error) {
	all, err := m.Mappings(ctx)
	for _, found := range all {
		if found.ID == id {
			return found, true, nil
		}
	}
	return driver.Mapping{}, false, err
}

func pause(ctx context.Context) bool {
	select {
	case <-time.After(5 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}
