package krbd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// explain says what the kernel's error numbers mean when it maps
// (drivers/block/rbd.c, do_rbd_add; net/ceph), and what its log says besides.
func explain(err error, log string) error {
	if log == "" {
		log = "see the kernel's log"
	} else {
		log = "the kernel's log says: " + log
	}
	var file *fs.PathError
	switch {
	case errors.As(err, &file): // of the file in sysfs, not of the image
		return fmt.Errorf("%w: is /sys of the host there, and writable?", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: the kernel finds no such pool, namespace, image or snapshot (%w)", backend.ErrNotFound, err)
	case errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: the image has features that this kernel does not know (%w); %s", backend.ErrInvalid, err, log)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the kernel does not know an option, for example ms_mode before Linux 5.11 (RBD_MS_MODE=legacy is without) (%w); %s",
			backend.ErrInvalid, err, log)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the key lacks caps (the README lists them), the kernel does not find it, or the plugin lacks CAP_SYS_ADMIN on the host; %s", err, log)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: Ceph refuses the key, or the key lacks caps; the README lists them; %s", err, log)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another client has the image's lock: %w; rbd lock ls tells which", backend.ErrInUse, err)
	case errors.Is(err, unix.ETIMEDOUT):
		return fmt.Errorf("%w: neither the monitors nor an OSD answered the kernel within a minute, or another client kept the image's lock "+
			"for so long (rbd lock ls): %w; %s", backend.ErrUnavailable, err, log)
	}
	return fmt.Errorf("%w; %s", err, log)
}

// kernelLog is the file of the kernel's log, read from now on; -1 = none. It is
// no os.File: those make a descriptor block when they are asked for it.
type kernelLog int

// listen begins to read the kernel's log. Where it may not (kernel.dmesg_restrict
// wants CAP_SYSLOG), errors say less.
func (m *Mapper) listen() kernelLog {
	fd, err := unix.Open(or(m.Kmsg, "/dev/kmsg"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		_ = unix.Close(fd)
		return -1
	}
	return kernelLog(fd)
}

func (l kernelLog) close() {
	if l >= 0 {
		_ = unix.Close(int(l))
	}
}

// said returns what rbd and libceph have logged since, the last three lines:
// other mappings may have their words among them. A read of /dev/kmsg is one
// record: "priority,number,time,flags;text".
func (l kernelLog) said() string {
	if l < 0 {
		return ""
	}
	var lines []string
	for buf := make([]byte, 8192); ; {
		n, err := unix.Read(int(l), buf)
		if errors.Is(err, unix.EPIPE) { // the oldest have been overwritten meanwhile
			continue
		}
		if n <= 0 {
			break
		}
		_, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		ours := strings.HasPrefix(text, "rbd: ") || strings.HasPrefix(text, "libceph: ")
		if ours && !strings.HasSuffix(text, " session established") && !strings.Contains(text, " fsid ") { // what every map says
			lines = append(lines, text)
		}
	}
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
