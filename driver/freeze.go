package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// freezeTime bounds for how long the writers of a volume are held up.
const freezeTime = 10 * time.Second

// mark is the file that tells that a volume may be frozen, for as long as it may: a
// plugin that is killed meanwhile leaves it to the next one. The kernel can be asked
// to thaw, but not whether there is anything to thaw; and to thaw a filesystem that
// is not frozen waits, beyond any signal, for whoever writes its dirty pages out:
// while Ceph is away, for ever (Linux, fs/super.c: both want s_umount).
func (d *Driver) mark(volume string) string { return filepath.Join(d.frozen, volume) }

// freeze writes out a mounted volume and holds its writers up until thaw. Only who
// has the volume's turn may do either: a mark that another took away too early would
// leave for ever frozen what is just about to be.
func (d *Driver) freeze(ctx context.Context, volume string) error {
	err := os.MkdirAll(d.frozen, 0o700)
	if err == nil {
		err = os.WriteFile(d.mark(volume), nil, 0o600)
	}
	if err != nil {
		return err
	}
	return d.fs.Freeze(ctx, d.path(volume))
}

// thaw ends a freeze; nil if there was none.
func (d *Driver) thaw(ctx context.Context, volume string) error {
	mark := d.mark(volume)
	if _, err := os.Stat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := d.fs.Thaw(ctx, d.path(volume)); err != nil {
		return err
	}
	return os.Remove(mark)
}

// thawAll ends what a plugin that was killed has frozen, and what a snapshot that is
// under way has, which takes its mark away itself. A mark of what is not
// mounted stays: Docker may have taken the mount away from a plugin that is dead,
// while containers have it still, and the next mount will thaw it.
func (d *Driver) thawAll(ctx context.Context) {
	marks, err := os.ReadDir(d.frozen)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(marks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	mounts, mountsErr := d.fs.Mounted(ctx, d.mounts)
	if err = errors.Join(err, mountsErr); err != nil {
		d.log.Warnf("thaw: %v", err)
	}
	var wg sync.WaitGroup
	for _, mark := range marks {
		volume := mark.Name()
		if _, mounted := mounts[d.path(volume)]; !mounted {
			continue
		}
		wg.Go(func() {
			d.survive("thaw", volume, func() { d.thawMarked(ctx, volume) })
		})
	}
	wg.Wait()
}

// thawMarked takes turns with who works on the volume, but does not wait for it: it may
// be the writer that the freeze holds up.
func (d *Driver) thawMarked(ctx context.Context, volume string) {
	turn, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	unlock, err := d.locks.lock(turn, volume, "thaw")
	if err == nil {
		defer unlock()
		err = d.thaw(ctx, volume)
	} else {
		err = d.fs.Thaw(ctx, d.path(volume))
	}
	if err != nil {
		d.log.WithField("volume", volume).Warnf("thaw: %v", err)
	}
}
