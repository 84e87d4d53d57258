package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// sysBlock is where sysfs has the block devices.
const sysBlock = "/sys/block"

// attachLoop returns a loop device on the file, open. Direct I/O: else the
// pages would be cached twice, and a flush would not reach the file. Autoclear:
// closed by everybody, the device is free again.
func attachLoop(configure func(*os.File, *unix.LoopConfig) error, file string, mode backend.OpenMode) (*os.File, error) {
	config := unix.LoopConfig{}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	open := os.O_RDWR
	if mode == backend.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		open = os.O_RDONLY
	}
	copy(config.Info.File_name[:], file)
	backing, err := os.OpenFile(file, open|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = backing.Close() }()
	config.Fd = uint32(backing.Fd())

	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		if err = configure(dev, &config); err == nil {
			var size uint64
			if size, err = loopSize(dev.Name()); size > 0 {
				return dev, nil
			}
			if err == nil {
				err = fmt.Errorf("%w: it has no size, as its server did not tell it", backend.ErrUnavailable)
			}
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: another process was faster
			return nil, fmt.Errorf("set up %s on %s: %w", dev.Name(), file, err)
		}
	}
	return nil, fmt.Errorf("find a free loop device: other processes take them all")
}

// configureLoop sets up a free loop device, EBUSY if it is not free any more.
func configureLoop(dev *os.File, config *unix.LoopConfig) error {
	err := unix.IoctlLoopConfigure(int(dev.Fd()), config)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) { // the kernel may be older than 5.8
		err = configureInSteps(dev, config)
	}
	return err
}

// configureInSteps is LOOP_CONFIGURE by what kernels before 5.8 have. A process that dies in
// between leaves a device that is found by its backing file, as any other.
func configureInSteps(dev *os.File, config *unix.LoopConfig) error {
	fd := int(dev.Fd())
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_FD, int(config.Fd)); err != nil {
		return err
	}
	var failed error
	for range 50 { // EAGAIN: somebody, udev say, has just read from it, and pages of that are still there
		if failed = unix.IoctlLoopSetStatus64(fd, &config.Info); !errors.Is(failed, unix.EAGAIN) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if failed == nil {
		failed = unix.IoctlSetInt(fd, unix.LOOP_SET_DIRECT_IO, 1)
	}
	if failed != nil {
		_ = clearFd(dev)
	}
	return failed
}

// detachLoop frees a loop device that nobody uses; ErrBusy if anybody does. A
// mounted filesystem, in whatever mount namespace, has its device exclusively.
func detachLoop(device string) error {
	dev, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is %w: a container or another process has it mounted", device, backend.ErrBusy)
	}
	if err != nil {
		return err
	}
	defer func() { _ = dev.Close() }()
	if err := dev.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", device, err)
	}
	return clearFd(dev)
}

// clearLoop frees a loop device whoever uses it: with a user left, the kernel
// does it when the last one closes it. Its backing file is dead.
func clearLoop(device string) {
	if dev, err := os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		_ = clearFd(dev)
		_ = dev.Close()
	}
}

func clearFd(dev *os.File) error {
	err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) { // ENXIO: free already
		return fmt.Errorf("free %s: %w", dev.Name(), err)
	}
	return nil
}

// attribute reads one of a loop device, a number.
func attribute(block, device, name string) (n uint64, err error) {
	text, err := os.ReadFile(filepath.Join(block, filepath.Base(device), name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// loopSize is the size of a loop device in bytes.
func loopSize(device string) (uint64, error) {
	sectors, err := attribute(sysBlock, device, "size")
	return sectors * 512, err
}

// growLoop gives a loop device the size that its file has now. The kernel learns
// of that when somebody asks for it.
func growLoop(device, file string) (size uint64, err error) {
	if size, err = loopSize(device); err != nil {
		return 0, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(file, &stat); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	if uint64(stat.Size)/512*512 <= size {
		return size, nil
	}
	if err := setCapacity(device); err != nil {
		return 0, fmt.Errorf("grow %s: %w", device, err)
	}
	return loopSize(device)
}

// setCapacity has another process ask the kernel to look at the file's size, one that does
// not die with this one: from Linux 6.17 on LOOP_SET_CAPACITY asks the file's filesystem,
// and when its caller is killed before the answer it sets the capacity to 0, under whatever
// is mounted there (drivers/block/loop.c, lo_calculate_size; seen on 6.18).
func setCapacity(device string) error {
	cmd := exec.CommandContext(context.Background(), "losetup", "--set-capacity", device) // no end of a request kills it either
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// loopOf finds the loop device on a file, "" if there is none. The name is all
// that may be asked for: LOOP_GET_STATUS asks the filesystem of the file, and
// waits for a server that has stopped.
func loopOf(block, file string) (string, error) {
	return findLoop(block, func(name string) bool { return name == file })
}

// loopBelow finds a loop device on any file whose name begins so, "" if there is none.
func loopBelow(block, prefix string) (string, error) {
	return findLoop(block, func(name string) bool { return strings.HasPrefix(name, prefix) })
}

func findLoop(block string, is func(file string) bool) (string, error) {
	devices, err := os.ReadDir(block)
	if err != nil {
		return "", err
	}
	for _, device := range devices {
		if !strings.HasPrefix(device.Name(), "loop") {
			continue
		}
		name, err := os.ReadFile(filepath.Join(block, device.Name(), "loop", "backing_file"))
		if free(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		if is(strings.TrimSuffix(string(name), "\n")) {
			return "/dev/" + device.Name(), nil
		}
	}
	return "", nil
}

// free tells of a loop device whose attribute was read that it is, or was freed since.
func free(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}
