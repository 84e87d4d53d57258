package fsys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Held reads the mount tables of all processes, one for each mount namespace; see
// backend.Filesystem. A namespace of a process of another user is not to be had without
// CAP_SYS_PTRACE, its mount table is.
func (f FS) Held(ctx context.Context, dir string, devices []string) (map[string]bool, error) {
	if f.HostMounts == nil {
		return nil, errors.New("who has volumes mounted cannot be told: the host's processes are not visible")
	}
	answer := make(chan map[string]bool, 1)
	err := backend.Within(ctx, "read the mount tables of this node", func() error {
		own, err := mountinfo.GetMounts(nil)
		if err != nil {
			return fmt.Errorf("read mountinfo: %w", err)
		}
		all, err := tables("/proc")
		if err != nil {
			return err
		}
		answer <- newLook(dir, own, all).held(devices)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-answer, nil
}

// tables reads the mount table of each namespace that a process is in, once. Two
// namespaces have no mount in common: the first line, which has its number, tells them
// from each other, and a process that sees less of one, after a chroot.
func tables(proc string) (all [][]*mountinfo.Info, err error) {
	processes, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		table, err := tableOf(filepath.Join(proc, p.Name(), "mountinfo"), known)
		if ended(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("mount table of process %s: %w", p.Name(), err)
		}
		all = append(all, table)
	}
	return all, nil
}

// ended tells of a process that it has, or is about to: then it has no namespace, which
// is EINVAL (Linux, fs/proc_namespace.c).
func ended(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}

// tableOf reads a mount table; nil if it is known.
func tableOf(file string, known map[string]bool) ([]*mountinfo.Info, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	begin := make([]byte, 4096) // no more than the kernel makes at a time
	n, err := f.Read(begin)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	first, _, _ := bytes.Cut(begin[:n], []byte("\n"))
	if known[string(first)] {
		return nil, nil
	}
	table, err := mountinfo.GetMountsFromReader(io.MultiReader(bytes.NewReader(begin[:n]), f), nil)
	if err == nil {
		known[string(first)] = true
	}
	return table, err
}

// look is one at all mount tables.
type look struct {
	own    []*mountinfo.Info
	tables [][]*mountinfo.Info
	at     location // of the directory
}

// location is a place in a filesystem, wherever that is mounted.
type location struct {
	major, minor int
	path         string
}

func newLook(dir string, own []*mountinfo.Info, tables [][]*mountinfo.Info) look {
	l := look{own: own, tables: tables}
	var home *mountinfo.Info
	for _, m := range own { // of two on one place the later is on top
		if in(dir, m.Mountpoint) && (home == nil || len(m.Mountpoint) >= len(home.Mountpoint)) {
			home = m
		}
	}
	if home != nil {
		l.at = locate(home, dir)
	}
	return l
}

func in(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// locate tells where in the filesystem of a mount a path is.
func locate(m *mountinfo.Info, at string) location {
	return location{m.Major, m.Minor, path.Join(m.Root, strings.TrimPrefix(at, strings.TrimSuffix(m.Mountpoint, "/")))}
}

// held tells for each device whether it is mounted anywhere else than in the directory.
func (l look) held(devices []string) map[string]bool {
	held := map[string]bool{}
	for _, device := range devices {
		is := l.matcher(device)
		held[device] = false
		for _, table := range l.tables {
			parents := map[int]*mountinfo.Info{}
			for _, m := range table {
				parents[m.ID] = m
			}
			for _, m := range table {
				if is(m) && !l.came(m, parents[m.Parent]) {
					held[device] = true
				}
			}
		}
	}
	return held
}

// came tells whether a mount is one of the directory, or a copy of it: in a namespace
// that has the host's tree, or a part of it, by propagation or as it was once. A copy is
// on the same directory of the same filesystem. It goes by propagation, or else with its
// mount point, which an unmount removes: the kernel then takes away all that is mounted
// there, in all namespaces (Linux, fs/namespace.c, __detach_mounts).
func (l look) came(m, parent *mountinfo.Info) bool {
	if parent == nil || !in(m.Mountpoint, parent.Mountpoint) {
		return false
	}
	at := locate(parent, m.Mountpoint)
	at.path = path.Dir(at.path)
	return at == l.at
}

// matcher tells the mounts of a device: by its name, as it was mounted, or its number,
// which is one of its own for a filesystem of several devices (btrfs).
func (l look) matcher(device string) func(*mountinfo.Info) bool {
	type number struct{ major, minor int }
	numbers := map[number]bool{}
	for _, m := range l.own {
		if m.Source == device {
			numbers[number{m.Major, m.Minor}] = true
		}
	}
	var stat unix.Stat_t
	if err := unix.Stat(device, &stat); err == nil && stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		numbers[number{int(unix.Major(stat.Rdev)), int(unix.Minor(stat.Rdev))}] = true
	}
	return func(m *mountinfo.Info) bool { return m.Source == device || numbers[number{m.Major, m.Minor}] }
}
