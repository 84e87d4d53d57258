package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// The readers of a read-only volume are noted beside its image, from before it is
// mapped until it is unmapped: a mapping that only reads is no watcher, and the
// plugin that watches for it may be away. Whoever wants to remove the image or to
// write to it has the guard first and then looks for readers; who reads is noted
// first and then looks for the guard. So one of the two sees the other.

// guardReading is the state of who reads without a guard.
const guardReading = "reading"

// Reader is a node that has an image mapped to read it.
type Reader struct {
	Node  string    `json:"node"`
	Boot  string    `json:"boot"` // boot id of the node's kernel
	Addr  string    `json:"addr"` // the node's control client, "ip:0/nonce"
	Since time.Time `json:"since"`
}

// guard shows a reader as what it would be.
func (r Reader) guard() Guard {
	return Guard{Node: r.Node, Boot: r.Boot, State: guardReading, Addrs: []string{r.Addr}, Since: r.Since}
}

// readerList is the record.
type readerList struct {
	Readers []Reader `json:"readers"`
}

func readersKey(imageID string) string { return "readers." + imageID }

func (d *Driver) loadReaders(ctx context.Context, imageID string) ([]Reader, backend.Version, error) {
	var list readerList
	version, err := d.records.Load(ctx, readersKey(imageID), &list)
	if errors.Is(err, backend.ErrNotFound) {
		return nil, 0, nil
	}
	return list.Readers, version, err
}

// changeReaders changes the record; again, if another node was faster.
func (d *Driver) changeReaders(ctx context.Context, imageID string, change func([]Reader) []Reader) error {
	for {
		all, version, err := d.loadReaders(ctx, imageID)
		if err != nil {
			return err
		}
		next := change(slices.Clone(all))
		switch {
		case slices.Equal(all, next):
			return nil
		case len(next) == 0:
			err = d.records.Delete(ctx, readersKey(imageID), version)
		default:
			_, err = d.records.Swap(ctx, readersKey(imageID), version, readerList{next})
		}
		if !errors.Is(err, backend.ErrLost) && !errors.Is(err, backend.ErrNotFound) || !d.pause(ctx, d.glance()) {
			return err
		}
	}
}

// ownReader tells whether a reader is this node: of its name, and since this boot or of
// an address that it has. Nodes may share a kernel, and clones a name; where it is in
// doubt the note is another's, and stays until an operator takes it away.
func (d *Driver) ownReader(r Reader) (bool, error) {
	if r.Node == d.node.Name && r.Boot == d.node.Boot {
		return true, nil
	}
	return d.isNamed(Guard{Node: r.Node, Addrs: []string{r.Addr}})
}

// others are the readers that are not this node.
func (d *Driver) others(all []Reader) (others []Reader, err error) {
	for _, r := range all {
		own, err := d.ownReader(r)
		if err != nil {
			return nil, err
		}
		if !own {
			others = append(others, r)
		}
	}
	return others, nil
}

// readElsewhere is ErrInUse if other nodes read the image.
func (d *Driver) readElsewhere(ctx context.Context, imageID string) error {
	all, _, err := d.loadReaders(ctx, imageID)
	if err != nil {
		return err
	}
	others, err := d.others(all)
	if err != nil || len(others) == 0 {
		return err
	}
	var said []string
	for _, r := range others {
		said = append(said, fmt.Sprintf("node %s (%s) since %s", r.Node, r.Addr, r.Since.Format(time.RFC3339)))
	}
	return fmt.Errorf("%w: mounted read-only by %s; stop what uses it there, or, if that node is gone for good, take its note away with Guard.Fence",
		backend.ErrInUse, strings.Join(said, ", "))
}

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
	var hosts error
	err := d.changeReaders(ctx, imageID, func(all []Reader) []Reader {
		if slices.ContainsFunc(all, func(r Reader) bool { return r.Boot == d.node.Boot && r.Node == d.node.Name && r.Addr == client }) {
			return all
		}
		var others []Reader
		if others, hosts = d.others(all); hosts != nil {
			return all
		}
		return append(others, Reader{Node: d.node.Name, Boot: d.node.Boot, Addr: client, Since: d.now()})
	})
	return errors.Join(hosts, err)
}

// forgetReader takes the note of this node away, if it has nothing of the image
// mapped, and then the mark.
func (d *Driver) forgetReader(ctx context.Context, imageID string) error {
	mapped, err := d.mappings(ctx)
	if err != nil || slices.ContainsFunc(mapped, func(m backend.Mapping) bool { return m.ID == imageID }) {
		return err
	}
	var hosts error
	err = d.changeReaders(ctx, imageID, func(all []Reader) (others []Reader) {
		if others, hosts = d.others(all); hosts != nil {
			return all
		}
		return others
	})
	if err = errors.Join(hosts, err); err != nil {
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

// unguarded waits until nobody has the guard of an image: it may be about to be
// removed, or to be written to.
func (d *Driver) unguarded(ctx context.Context, imageID string) error {
	var inUse error
	for {
		guard, _, err := d.loadGuard(ctx, imageID)
		switch {
		case errors.Is(err, backend.ErrNotFound):
			return nil
		case err != nil && (inUse == nil || ctx.Err() == nil):
			return err
		case err != nil:
			return inUse // says more than that the time was up
		}
		if inUse = inUseBy(guard); !d.pause(ctx, d.glance()) {
			return inUse
		}
	}
}
