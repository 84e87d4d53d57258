package fsys

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// mkfs are the arguments for each filesystem, for a device that was never
// written and for one that may have been. Never written: reading gives zeroes,
// so nothing has to be discarded or zeroed, and a thin image stays thin (ext4
// of 100 GiB writes 5 MiB instead of 530). Else mkfs discards first, which it
// does by default. mke2fs knows assume_storage_prezeroed from 1.47.0 on.
var mkfs = map[string]struct{ always, fresh []string }{
	"ext4":  {[]string{"mkfs.ext4", "-q", "-F", "-m", "0", "-e", "remount-ro"}, []string{"-E", "nodiscard,assume_storage_prezeroed=1"}},
	"xfs":   {[]string{"mkfs.xfs", "-q", "-f", "-c", oldest}, []string{"-K"}},
	"btrfs": {[]string{"mkfs.btrfs", "-q", "-f"}, []string{"-K"}},
}

// oldest keeps mkfs.xfs from features that the oldest kernel of a swarm may not know: the
// defaults of xfsprogs 7.2 (parent pointers, exchange-range) want Linux 6.10. The user's
// options override it. Releases that do not know the option have older defaults.
const oldest = "defaults=/usr/share/xfsprogs/mkfs/lts_6.1.conf"

// Format makes a filesystem; see backend.Filesystem. The user's options come
// last, so that they win over ours, and behind the device, so that no word of
// them can be taken for it.
func (f FS) Format(ctx context.Context, device, fstype string, options []string, fresh bool) error {
	tool, ok := mkfs[fstype]
	if !ok {
		return fmt.Errorf("%w filesystem %q", backend.ErrInvalid, fstype)
	}
	args := append([]string{}, tool.always...)
	if fresh {
		args = append(args, tool.fresh...)
	}
	args = append(append(args, device), options...)
	// Exclusively open, a device is nobody's mount. mkfs looks too, but only
	// into its own mount namespace.
	busy, err := inUse(device)
	if err != nil {
		return err
	}
	if busy {
		return fmt.Errorf("%s: %w, so it is not formatted", device, backend.ErrBusy)
	}
	return besideDead(ctx, func() error {
		_, err := run(ctx, args...)
		if err != nil && strings.Contains(err.Error(), "unknown option -c "+oldest) {
			i := slices.Index(args, oldest)
			_, err = run(ctx, slices.Delete(slices.Clone(args), i-1, i+1)...)
		}
		return err
	})
}

// besideDead tries again for as long as a dead device of another volume may stay: the
// plugin looks every 15 s. mkfs.btrfs looks at the file behind each loop device of the
// node, and gives up at one whose image server has died.
func besideDead(ctx context.Context, try func() error) error {
	for end := time.Now().Add(20 * time.Second); ; {
		err := try()
		if err == nil || !strings.Contains(err.Error(), "cannot check mount status") || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Probe asks blkid; see backend.Filesystem. Its exit code 2 means "nothing
// found" and also "cannot be read"; 8 means that several things are there.
func (f FS) Probe(ctx context.Context, device string) (string, error) {
	out, err := run(ctx, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		if err := readable(device); err != nil {
			return "", fmt.Errorf("%w: %s cannot be read: %w", backend.ErrUnexpectedContent, device, err)
		}
		return "", fmt.Errorf("%w: no filesystem is recognised on %s", backend.ErrUnexpectedContent, device)
	}
	if exit != nil && exit.Exited() {
		return "", fmt.Errorf("%w: %w", backend.ErrUnexpectedContent, err)
	}
	if err != nil { // stopped, it has said nothing of the device
		return "", err
	}
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			found[key] = value
		}
	}
	switch fstype := found["TYPE"]; {
	case mkfs[fstype].always != nil || fstype == "ext2" || fstype == "ext3":
		return fstype, nil
	case fstype != "":
		return "", fmt.Errorf("%w: %s holds %s, which cannot be mounted as a volume", backend.ErrUnexpectedContent, device, fstype)
	}
	return "", fmt.Errorf("%w: %s holds a partition table (%s), not a filesystem", backend.ErrUnexpectedContent, device, found["PTTYPE"])
}

func readable(device string) error {
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	_, err = file.ReadAt(make([]byte, 128<<10), 0) // all superblocks are in there
	return err
}

// Check runs e2fsck on ext4 that is mounted nowhere and was not left in order;
// see backend.Filesystem. xfs and btrfs replay their log when they are mounted
// and are never repaired without a human.
func (f FS) Check(ctx context.Context, device, fstype string) error {
	if !strings.HasPrefix(fstype, "ext") {
		return nil
	}
	if busy, err := inUse(device); err != nil || busy {
		return err
	}
	found := make(chan condition, 1)
	if err := backend.Within(ctx, "read "+device, func() error {
		c, err := conditionOf(device)
		found <- c
		return err
	}); err != nil {
		return err
	}
	args := []string{"e2fsck", "-p", "-C", "3", device}
	switch <-found {
	case inOrder:
		return nil
	case counted: // without -f it calls this one clean, and leaves the count
		args = slices.Insert(args, 1, "-f")
	}
	told, progress, err := os.Pipe()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { _ = told.Close() }()
		follow(ctx, told)
	}()
	_, err = runWith(ctx, progress, args...)
	if ctx.Err() == nil { // else a tool that cannot be killed still has the pipe
		<-ended
	}
	return checked(err)
}

// follow notes what e2fsck -C tells of its way: pass, how far, of how much.
func follow(ctx context.Context, told io.Reader) {
	for lines := bufio.NewScanner(told); lines.Scan(); {
		var pass int
		var at, of uint64
		if n, _ := fmt.Sscan(lines.Text(), &pass, &at, &of); n == 3 && of > 0 {
			driver.Progress(ctx, fmt.Sprintf("pass %d of 5, %d %%", pass, 100*at/of))
		}
	}
}

// checked reads how e2fsck -p ended. Only its own exit code tells that it has
// looked at all: 1 and 2, errors were corrected; 4, some were left, for a human. Of
// one that was stopped, that found no memory or could not read, nothing follows for
// the filesystem, corrected or damaged.
func checked(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Exited() {
		return err
	}
	const corrected, left, failed = 1 | 2, 4, 8 | 16 | 32 | 128
	switch code := exit.ExitCode(); {
	case code&failed != 0:
		return err
	case code&left != 0:
		return fmt.Errorf("%w; %s", err, damaged)
	case code&^corrected == 0:
		return nil
	}
	return err
}

const damaged = "the filesystem is damaged: map the image by hand on a node where it is not in use and run e2fsck"

// condition is how an ext4 was left.
type condition int

const (
	doubtful condition = iota // to be checked
	inOrder
	counted // in order, but for a count of errors that nobody has taken away
)

// conditionOf tells whether e2fsck -p would do nothing: unmounted, no error noted,
// no journal to replay, no check wanted after so many mounts or days. What it
// looks at besides, the group descriptors and the journal's inode, the kernel
// looks at when it mounts. Most mounts are of this kind, and reading the
// superblock (Linux, fs/ext4/ext4.h) takes no process.
func conditionOf(device string) (condition, error) {
	file, err := os.Open(device)
	if err != nil {
		return doubtful, err
	}
	defer func() { _ = file.Close() }()
	super := make([]byte, 1024)
	if _, err := file.ReadAt(super, 1024); err != nil {
		return doubtful, &os.PathError{Op: "read the superblock", Path: device, Err: err}
	}
	short := func(at int) uint16 { return binary.LittleEndian.Uint16(super[at:]) }
	long := func(at int) uint32 { return binary.LittleEndian.Uint32(super[at:]) }
	const (
		maxMounts, magic, state, checkInterval, incompat, errorCount = 0x36, 0x38, 0x3a, 0x44, 0x60, 0x194

		valid, needsRecovery = 1, 4
	)
	switch {
	case short(magic) != 0xef53 || short(state) != valid || short(incompat)&needsRecovery != 0 ||
		int16(short(maxMounts)) > 0 || long(checkInterval) != 0:
		return doubtful, nil
	case long(errorCount) != 0:
		return counted, nil
	}
	return inOrder, nil
}

// inUse tells whether a filesystem of the device is mounted, wherever: the
// kernel gives a mounted device to nobody else exclusively.
func inUse(device string) (bool, error) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s: %w", device, err)
	}
	return false, unix.Close(fd)
}

// run runs a tool; its error says what the tool said.
func run(ctx context.Context, args ...string) ([]byte, error) { return runWith(ctx, nil, args...) }

// runWith is run with a file that the tool has as number 3, and that is closed when it
// has ended; nil = none.
func runWith(ctx context.Context, third *os.File, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/proc" // no word of the user's shall name a file that it could write
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if third != nil {
		cmd.ExtraFiles = []*os.File{third}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// A tool in the midst of I/O that never ends cannot be killed.
	if err := backend.Within(ctx, args[0], func() error {
		if third != nil {
			defer func() { _ = third.Close() }()
		}
		return cmd.Run()
	}); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: stopped: %w", args[0], ctx.Err())
		}
		if said := oneLine(append(errs.Bytes(), out.Bytes()...)); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return nil, fmt.Errorf("%s: %w", args[0], err)
	}
	return out.Bytes(), nil
}
