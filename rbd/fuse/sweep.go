package fuse

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Sweep removes what a killed plugin has left of mappings that never came up:
// lock files that nobody holds, and mount points with nothing on them, and ends the
// children that have no filesystem, in its own time. It is for the start, when no Map
// is under way.
func (m *Mapper) Sweep() error {
	locks, err := filepath.Glob(m.lockfile("*"))
	if err != nil {
		return err
	}
	for _, lock := range locks {
		key := strings.TrimSuffix(filepath.Base(lock), ".lock")
		pid, err := childPid(lock)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		used, err := m.used(key)
		if err != nil {
			return err
		}
		alive, err := childAlive(lock)
		if err != nil {
			return err
		}
		if alive && !used {
			go m.orphan(key, pid)
		}
		if used || alive {
			continue
		}
		if err := m.tidy(key); err != nil {
			return err
		}
	}
	return nil
}

// used tells whether anything is mounted where a child's filesystem belongs, or any loop
// device is on a file of it: of whatever pool, which the settings may have been changed to.
func (m *Mapper) used(key string) (bool, error) {
	mounted, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(m.mountpoint(key)))
	if err != nil || len(mounted) > 0 {
		return true, err
	}
	device, err := loopBelow(sysBlock, m.mountpoint(key)+"/")
	return device != "", err
}

// orphan ends a child without a filesystem, whose image it keeps from everybody else:
// on its way up it ends by itself, but on its way down it may hang (see closed).
func (m *Mapper) orphan(key string, pid int) {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if pid <= 1 || m.waitForChild(ctx, key) == nil {
		return
	}
	used, err := m.used(key)
	is, pidErr := childPid(m.lockfile(key))
	alive, aliveErr := childAlive(m.lockfile(key))
	if used || !alive || is != pid || errors.Join(err, pidErr, aliveErr) != nil {
		return
	}
	m.Log.Warnf("image server %d of %s has no filesystem, and has not ended in %v: killed", pid, key, closing)
	_ = unix.Kill(pid, unix.SIGKILL)
}
