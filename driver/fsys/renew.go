package fsys

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// RegenerateUUID gives a copy of xfs or btrfs an id of its own; see backend.Filesystem. ext4
// minds no second one of the same id.
//
// A log that has to be replayed is first, by mounting. btrfstune of btrfs-progs 6.2
// leaves a filesystem with one that cannot be mounted any more; xfs_db refuses, and
// exits with 0. A snapshot of a frozen btrfs has none, one of xfs always has.
func (f FS) RegenerateUUID(ctx context.Context, m backend.Mount) error {
	switch m.FSType {
	case "btrfs":
		log, err := f.hasLog(ctx, m.Device)
		if err != nil {
			return err
		}
		// Only if it must be: while the original is mounted here, a kernel before 6.7
		// refuses to mount what it takes for another device of the same filesystem.
		if log {
			if err := f.replay(ctx, m, ""); err != nil {
				return fmt.Errorf("%w; if its original is mounted on this node, mount the copy elsewhere first, or make the copy again here, "+
					"where the original is frozen for it", err)
			}
		}
		_, err = run(ctx, "btrfstune", "-f", "-m", m.Device)
		return err
	case "xfs":
		if err := f.replay(ctx, m, "nouuid"); err != nil { // the original may be mounted here
			return err
		}
		out, err := run(ctx, "xfs_db", "-x", "-c", "uuid generate", m.Device) // what xfs_admin, a shell script, does
		if err == nil && bytes.Contains(out, []byte("ERROR")) {
			err = fmt.Errorf("xfs_db: %s", oneLine(out))
		}
		return err
	}
	return nil
}

func (f FS) replay(ctx context.Context, m backend.Mount, options string) error {
	m.Options = options
	if err := f.Mount(ctx, m); err != nil {
		return err
	}
	return f.Unmount(ctx, m.Path)
}

// hasLog tells whether btrfs has writes in its log tree that were synced and are not
// yet where they belong: log_root of the superblock.
func (f FS) hasLog(ctx context.Context, device string) (has bool, err error) {
	err = backend.Within(ctx, "read "+device, func() error {
		file, err := os.Open(device)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		root := make([]byte, 8)
		_, err = file.ReadAt(root, 64<<10+0x60)
		has = binary.LittleEndian.Uint64(root) != 0
		return err
	})
	if err != nil {
		return false, err
	}
	return has, nil
}
