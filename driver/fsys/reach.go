package fsys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Table is the mount table of a namespace. It is that of the process by which it was
// opened, but outlives it: the kernel gives whoever has /proc/PID/mountinfo open the
// table of the namespace in which the process was then, whatever becomes of the
// process, and whoever gets its number.
type Table struct {
	mu   sync.Mutex // a read goes from the beginning to the end
	file *os.File
}

// OpenTable opens the mountinfo file of a process.
func OpenTable(path string) (*Table, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &Table{file: file}, nil
}

// Close ends it.
func (t *Table) Close() error { return t.file.Close() }

// mounts reads the table as it is now.
func (t *Table) mounts(filter mountinfo.FilterFunc) ([]*mountinfo.Info, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return mountinfo.GetMountsFromReader(t.file, filter)
}

// reachesHost fails if the mount is not in the host's mount table. After a crash
// of dockerd, or its restart with live-restore, the plugin's directory may have
// stopped propagating: containers would then write to the host's disk (moby,
// daemon/pkg/plugin: restore does not share the mount again; and after a crash,
// seen with 20.10, what is left of the old plugin may unmount the new one's).
func (f FS) reachesHost(path string) error {
	if f.HostMounts == nil {
		return nil
	}
	here, err := mountedAt(path)
	if err != nil || here == nil {
		return errors.Join(err, fmt.Errorf("%s vanished from the mount table", path))
	}
	host, err := f.HostMounts.mounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Major != here.Major || i.Minor != here.Minor || filepath.Base(i.Mountpoint) != filepath.Base(path), false
	})
	if err != nil {
		return fmt.Errorf("mount table of the host: %w", err)
	}
	if len(host) == 0 {
		return fmt.Errorf("%w; try again, and if it stays so disable and enable the plugin to make its directory shared again (%s is not in %s)",
			backend.ErrNotPropagated, path, f.HostMounts.file.Name())
	}
	return nil
}

// CheckPropagation mounts an empty tmpfs for a moment; see backend.Filesystem.
func (f FS) CheckPropagation(ctx context.Context, dir string) error {
	if f.HostMounts == nil {
		return nil
	}
	path := filepath.Join(dir, ".probe") // no volume is called so
	// A plugin that ends in the midst of it waits: what has propagated would stay.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return backend.Within(ctx, "mount "+path, func() error {
		if err := f.unmount(path, unix.MNT_DETACH); err != nil { // of a plugin that was killed
			return err
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := mount.Mount("tmpfs", path, "tmpfs", "size=4k,mode=0700"); err != nil {
			return errors.Join(&fs.PathError{Op: "mount tmpfs", Path: path, Err: errno(err)}, removeEmpty(path))
		}
		return errors.Join(f.reachesHost(path), f.unmount(path, unix.MNT_DETACH))
	})
}
