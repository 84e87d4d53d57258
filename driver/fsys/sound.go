package fsys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// CheckHealth reads the mount table and what the kernel counts, and opens the root; see
// backend.Filesystem. btrfs becomes read-only after an error, and the mount table
// shows it. Of ext4 it shows nothing from Linux 6.12 on, nor in the stable 6.1 of
// then (SB_RDONLY is not set any more), before 7.x says emergency_ro. xfs shuts
// down, and an ext4 whose device has gone: to open is then EIO.
func (f FS) CheckHealth(ctx context.Context, m backend.Mount) error {
	return backend.Within(ctx, "look at "+m.Path, func() error {
		here, err := mountedAt(m.Path)
		if err != nil || here == nil {
			return err
		}
		asked := slices.Contains(strings.Split(here.Options, ","), "ro") // of the mount; what errors do shows in those of the filesystem
		for _, o := range strings.Split(here.VFSOptions, ",") {
			if o == "emergency_ro" || o == "shutdown" || o == "ro" && !asked {
				return fmt.Errorf("%w: errors have made the filesystem on %s read-only (%s)", backend.ErrUnexpectedContent, m.Device, o)
			}
		}
		if n := errorsOf(here); n > 0 && !asked {
			return fmt.Errorf("%w: errors have stopped the filesystem on %s (the kernel counts %d; its log says which)", backend.ErrUnexpectedContent, m.Device, n)
		}
		root, err := os.Open(m.Path)
		if errors.Is(err, unix.EIO) {
			return fmt.Errorf("%w: errors have shut down the filesystem on %s", backend.ErrUnexpectedContent, m.Device)
		}
		if err == nil {
			_ = root.Close()
		}
		return err
	})
}

// errorsOf is how many errors a mounted ext4 has met: they are counted in the
// superblock, of which sysfs shows the copy in memory. Those of earlier mounts are
// not among them: Check has e2fsck take them away. 0 where the kernel does not say.
func errorsOf(mount *mountinfo.Info) uint64 {
	if !strings.HasPrefix(mount.FSType, "ext") {
		return 0
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", mount.Major, mount.Minor))
	if err != nil {
		return 0
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "errors_count"))
	if err != nil { // the kernel's ext2 and ext3 of their own, where it has them
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}
