package fsys

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// The calls of include/uapi/linux/fs.h, as amd64, arm64 and most others number them.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Freeze is fsfreeze --freeze; see backend.Filesystem.
func (f FS) Freeze(ctx context.Context, path string) error {
	return backend.Within(ctx, "freeze "+path, func() error {
		err := freeze(path, fiFreeze, unix.EBUSY)
		if err == nil && ctx.Err() != nil { // too late: nobody waits for it any more
			err = freeze(path, fiThaw, unix.EINVAL)
		}
		return err
	})
}

// Thaw is fsfreeze --unfreeze; see backend.Filesystem.
func (f FS) Thaw(ctx context.Context, path string) error {
	return backend.Within(ctx, "thaw "+path, func() error { return freeze(path, fiThaw, unix.EINVAL) })
}

// freeze makes one of the two calls; already is what the kernel says when there is
// nothing to do.
func freeze(path string, call uint, already unix.Errno) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	err = unix.IoctlSetInt(int(dir.Fd()), call, 0)
	if errors.Is(err, already) {
		return nil
	}
	return err
}
