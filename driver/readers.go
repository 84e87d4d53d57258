package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// noteReader notes that this node reads an image, by a control client, and marks on
// disk that it is so: the notes of before a crash are found without a look through
// the pool.
func (d *Driver) noteReader(ctx context.Context, volume, imageID, client string) error {
	mark := filepath.Join(d.reading, imageID)
	if text, err := os.ReadFile(mark); err != nil || string(text) != volume {
		if err = os.MkdirAll(d.reading, 0o700); err == nil {
			err = replaceFile(mark, []byte(volume))
		}
		if err != nil {
			return err
		}
	}
	return d.guards.AddReader(ctx, imageID, client)
}

// forgetReader takes the note of this node away, if it has nothing of the image
// mapped, and then the mark.
func (d *Driver) forgetReader(ctx context.Context, imageID string) error {
	mapped, err := d.mappings(ctx)
	if err != nil || slices.ContainsFunc(mapped, func(m backend.Mapping) bool { return m.ID == imageID }) {
		return err
	}
	if err = d.guards.RemoveReader(ctx, imageID); err != nil {
		return err
	}
	if err = os.Remove(filepath.Join(d.reading, imageID)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unread is forgetReader for when there is nothing to be done about an error: the
// next look at the marks does it again.
func (d *Driver) unread(ctx context.Context, volume, imageID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.patience)
	defer cancel()
	if err := d.forgetReader(ctx, imageID); err != nil {
		d.log.WithField("volume", volume).Warnf("the note that this node reads it stays for now: %v", err)
	}
}

// tidyReaders takes away the notes of this node for what it does not read any more:
// a plugin was killed, or Ceph was away.
func (d *Driver) tidyReaders(ctx context.Context) {
	marks, err := os.ReadDir(d.reading)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warnf("notes of what this node reads: %v", err)
	}
	for _, mark := range marks {
		volume, err := os.ReadFile(filepath.Join(d.reading, mark.Name()))
		if err != nil || ctx.Err() != nil {
			continue
		}
		turn, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		unlock, err := d.locks.lock(turn, string(volume), "reconcile")
		cancel()
		if err != nil {
			continue // it may be about to be mapped; next time
		}
		if err = d.forgetReader(ctx, mark.Name()); err != nil {
			d.log.WithField("volume", string(volume)).Debugf("reconcile: the note that this node reads it: %v", err)
		}
		unlock()
	}
}
