package fsys

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// NeedsResize compares what the superblock says with the size of the device; see
// backend.Filesystem. A rest in which there is no room for a group of ext4 or xfs
// counts as space that is not taken.
func (f FS) NeedsResize(ctx context.Context, device, fstype string) (bool, error) {
	type sizes struct{ filesystem, device uint64 }
	answer := make(chan sizes, 1)
	err := backend.Within(ctx, "read "+device, func() error {
		file, err := os.Open(device)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		end, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		size, err := sizeOf(file, fstype)
		answer <- sizes{size, uint64(end)}
		return err
	})
	if err != nil {
		return false, err
	}
	s := <-answer
	if s.filesystem > s.device {
		return false, fmt.Errorf("%w: the filesystem is larger (%d bytes) than its device %s (%d): was the image made smaller? "+
			"What was cut off is lost; make the image as large again, and have it checked", backend.ErrUnexpectedContent, s.filesystem, device, s.device)
	}
	// A filesystem counts in blocks, of 4 KiB as a rule, of 64 KiB at most.
	return s.filesystem+64<<10 <= s.device, nil
}

// sizeOf reads the size of a filesystem, in bytes, from its superblock. Where the
// numbers are: Linux, fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, and
// include/uapi/linux/btrfs_tree.h.
func sizeOf(device *os.File, fstype string) (uint64, error) {
	super := make([]byte, 4096)
	at := map[string]int64{"ext2": 1024, "ext3": 1024, "ext4": 1024, "btrfs": 64 << 10}[fstype] // xfs: 0
	if _, err := device.ReadAt(super, at); err != nil {
		return 0, &os.PathError{Op: "read the superblock", Path: device.Name(), Err: err}
	}
	switch {
	case strings.HasPrefix(fstype, "ext"):
		blocks := uint64(binary.LittleEndian.Uint32(super[0x4:]))
		const has64Bits = 0x80
		if binary.LittleEndian.Uint32(super[0x60:])&has64Bits != 0 {
			blocks |= uint64(binary.LittleEndian.Uint32(super[0x150:])) << 32
		}
		return blocks << (10 + binary.LittleEndian.Uint32(super[0x18:])), nil
	case fstype == "xfs":
		return uint64(binary.BigEndian.Uint32(super[4:])) * binary.BigEndian.Uint64(super[8:]), nil
	case fstype == "btrfs":
		return binary.LittleEndian.Uint64(super[0x70:]), nil
	}
	return 0, fmt.Errorf("%w filesystem %q", backend.ErrInvalid, fstype)
}

// Resize runs the filesystem's own tool, while it is mounted; see backend.Filesystem.
func (f FS) Resize(ctx context.Context, m backend.Mount) error {
	var args []string
	switch {
	case strings.HasPrefix(m.FSType, "ext"):
		args = []string{"resize2fs", m.Device}
	case m.FSType == "xfs":
		args = []string{"xfs_growfs", "-d", m.Path}
	case m.FSType == "btrfs":
		args = []string{"btrfs", "filesystem", "resize", "max", m.Path}
	default:
		return fmt.Errorf("%w filesystem %q", backend.ErrInvalid, m.FSType)
	}
	_, err := run(ctx, args...)
	return err
}

// Usage is statfs(2); see backend.Filesystem.
func (f FS) Usage(ctx context.Context, path string) (size, used uint64, err error) {
	answer := make(chan unix.Statfs_t, 1)
	err = backend.Within(ctx, "statfs "+path, func() error {
		var s unix.Statfs_t
		err := unix.Statfs(path, &s)
		answer <- s
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	s := <-answer
	block := uint64(s.Frsize)
	return s.Blocks * block, (s.Blocks - s.Bfree) * block, nil
}
