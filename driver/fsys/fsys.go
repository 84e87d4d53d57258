package fsys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// FS works on this node.
type FS struct {
	// HostMounts is the mount table of the namespace that Docker starts
	// containers from; nil = do not look.
	HostMounts *Table
}

var _ backend.Filesystem = FS{}

// Mount mounts; see backend.Filesystem.
func (f FS) Mount(ctx context.Context, m backend.Mount) error {
	return backend.Within(ctx, "mount "+m.Device, func() error { return f.mount(m) })
}

func (f FS) mount(m backend.Mount) error {
	there, err := mountedAt(m.Path)
	if err != nil {
		return err
	}
	if there != nil && there.Source != m.Device {
		return fmt.Errorf("mount %s on %s: %w, %s is mounted there", m.Device, m.Path, backend.ErrBusy, there.Source)
	}
	if there == nil {
		if err := os.MkdirAll(m.Path, 0o700); err != nil {
			return err
		}
		if err := mount.Mount(m.Device, m.Path, m.FSType, m.Options); err != nil {
			hint := "the kernel's log may say more"
			if errors.Is(err, unix.EBUSY) {
				hint = "containers of this node still have it, read-only after errors perhaps: stop all that use it"
			}
			if strings.HasPrefix(m.FSType, "ext") && (errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG)) { // EFSCORRUPTED, EFSBADCRC
				hint = damaged
			}
			err = fmt.Errorf("mount %s as %s with options %q: %w; %s", m.Device, m.FSType, m.Options, errno(err), hint)
			return errors.Join(err, removeEmpty(m.Path))
		}
	}
	if err := f.reachesHost(m.Path); err != nil {
		return errors.Join(err, f.unmount(m.Path, 0))
	}
	return nil
}

// Unmount unmounts; see backend.Filesystem.
func (f FS) Unmount(ctx context.Context, path string) error {
	return backend.Within(ctx, "unmount "+path, func() error { return f.unmount(path, 0) })
}

// LazyUnmount unmounts at once; see backend.Filesystem.
func (f FS) LazyUnmount(ctx context.Context, path string) error {
	return backend.Within(ctx, "detach "+path, func() error { return f.unmount(path, unix.MNT_DETACH) })
}

func (f FS) unmount(path string, flags int) error {
	err := unix.Unmount(path, flags|unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is %w: a process has a file or its working directory there", path, backend.ErrBusy)
	case err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT): // nothing is mounted there
		return &fs.PathError{Op: "unmount", Path: path, Err: err}
	}
	return removeEmpty(path)
}

// removeEmpty removes a mount point. What is in it is never touched.
func removeEmpty(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Mounted reads the mount table; see backend.Filesystem.
func (f FS) Mounted(_ context.Context, dir string) (map[string]backend.Mount, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return filepath.Dir(i.Mountpoint) != dir, false
	})
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	mounts := map[string]backend.Mount{}
	for _, i := range infos {
		mounts[i.Mountpoint] = backend.Mount{Device: i.Source, Path: i.Mountpoint, FSType: i.FSType, Options: i.Options}
	}
	return mounts, nil
}

func mountedAt(path string) (*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil || len(infos) == 0 {
		return nil, err
	}
	return infos[0], nil
}

// InitRoot readies the root of a new filesystem; see backend.Filesystem. Docker
// copies an image's content into an empty volume only, and lost+found would
// make it not empty; e2fsck makes it anew when it needs it.
func (f FS) InitRoot(ctx context.Context, path string, owner backend.Owner) error {
	return backend.Within(ctx, "prepare "+path, func() error {
		if err := os.Remove(filepath.Join(path, "lost+found")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		id := func(n *uint32) int {
			if n == nil {
				return -1 // chown leaves it
			}
			return int(*n)
		}
		if err := os.Chown(path, id(owner.UID), id(owner.GID)); err != nil {
			return err
		}
		if owner.Mode != nil {
			if err := unix.Chmod(path, *owner.Mode); err != nil {
				return &fs.PathError{Op: "chmod", Path: path, Err: err}
			}
		}
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		if err := unix.Syncfs(int(dir.Fd())); err != nil {
			return &fs.PathError{Op: "syncfs", Path: path, Err: err}
		}
		return nil
	})
}

// Subpath looks at a directory of a volume, which is not trusted: a link would have
// Docker mount what it names on the host; see backend.Filesystem.
func (f FS) Subpath(ctx context.Context, path, directory string) (string, error) {
	inside := filepath.Join(path, directory)
	return inside, backend.Within(ctx, "look at "+inside, func() error {
		info, err := os.Lstat(inside)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: the volume has no directory %s", backend.ErrUnexpectedContent, directory)
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			return fmt.Errorf("%w: the volume has no directory %s: it is a symbolic link, which is not followed", backend.ErrUnexpectedContent, directory)
		case !info.IsDir():
			return fmt.Errorf("%w: the volume has no directory %s: it is a file", backend.ErrUnexpectedContent, directory)
		}
		return nil
	})
}

// errno strips what a wrapper says a second time.
func errno(err error) error {
	var number unix.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}

func oneLine(text []byte) string { return strings.Join(strings.Fields(string(text)), " ") }
