package guard

import (
	"context"
	"errors"
	"fmt"
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

// Reader is a node that has an image mapped to read it.
type Reader struct {
	Node  string    `json:"node"`
	Boot  string    `json:"boot"` // boot id of the node's kernel
	Addr  string    `json:"addr"` // the node's control client, "ip:0/nonce"
	Since time.Time `json:"since"`
}

// record shows a reader as what it would be.
func (r Reader) record() Record {
	return Record{Node: r.Node, Boot: r.Boot, State: Reading, Addrs: []string{r.Addr}, Since: r.Since}
}

// readerList is the record.
type readerList struct {
	Readers []Reader `json:"readers"`
}

func readersKey(imageID string) string { return "readers." + imageID }

// Readers are the notes of those who read an image, this node included; none is no error.
func (g *Guards) Readers(ctx context.Context, imageID string) ([]Reader, backend.Version, error) {
	var list readerList
	version, err := g.Records.Load(ctx, readersKey(imageID), &list)
	if errors.Is(err, backend.ErrNotFound) {
		return nil, 0, nil
	}
	return list.Readers, version, err
}

// changeReaders changes the record; again, if another node was faster.
func (g *Guards) changeReaders(ctx context.Context, imageID string, change func([]Reader) []Reader) error {
	for {
		all, version, err := g.Readers(ctx, imageID)
		if err != nil {
			return err
		}
		next := change(slices.Clone(all))
		switch {
		case slices.Equal(all, next):
			return nil
		case len(next) == 0:
			err = g.Records.Delete(ctx, readersKey(imageID), version)
		default:
			_, err = g.Records.CompareAndSwap(ctx, readersKey(imageID), version, readerList{next})
		}
		if !errors.Is(err, backend.ErrConflict) && !errors.Is(err, backend.ErrNotFound) || !backend.Pause(ctx, g.pollInterval()) {
			return err
		}
	}
}

// OwnReader tells whether a reader is this node: of its name, and since this boot or of
// an address that it has. Nodes may share a kernel, and clones a name; where it is in
// doubt the note is another's, and stays until an operator takes it away.
func (g *Guards) OwnReader(r Reader) (bool, error) {
	if r.Node == g.Node.Name && r.Boot == g.Node.Boot {
		return true, nil
	}
	return g.isNamed(Record{Node: r.Node, Addrs: []string{r.Addr}})
}

// others are the readers that are not this node.
func (g *Guards) others(all []Reader) (others []Reader, err error) {
	for _, r := range all {
		own, err := g.OwnReader(r)
		if err != nil {
			return nil, err
		}
		if !own {
			others = append(others, r)
		}
	}
	return others, nil
}

// RefuseReaders is backend.ErrInUse if other nodes read the image.
func (g *Guards) RefuseReaders(ctx context.Context, imageID string) error {
	all, _, err := g.Readers(ctx, imageID)
	if err != nil {
		return err
	}
	others, err := g.others(all)
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

// WaitUntilFree waits until nobody has the guard of an image: it may be about to be
// removed, or to be written to.
func (g *Guards) WaitUntilFree(ctx context.Context, imageID string) error {
	var inUse error
	for {
		held, _, err := g.Load(ctx, imageID)
		switch {
		case errors.Is(err, backend.ErrNotFound):
			return nil
		case err != nil && (inUse == nil || ctx.Err() == nil):
			return err
		case err != nil:
			return inUse // says more than that the time was up
		}
		inUse = &InUseError{held}
		if !backend.Pause(ctx, g.pollInterval()) {
			return inUse
		}
	}
}

// AddReader notes that this node reads an image, by a control client.
func (g *Guards) AddReader(ctx context.Context, imageID, client string) error {
	var hosts error
	err := g.changeReaders(ctx, imageID, func(all []Reader) []Reader {
		if slices.ContainsFunc(all, func(r Reader) bool { return r.Boot == g.Node.Boot && r.Node == g.Node.Name && r.Addr == client }) {
			return all
		}
		var others []Reader
		if others, hosts = g.others(all); hosts != nil {
			return all
		}
		return append(others, Reader{Node: g.Node.Name, Boot: g.Node.Boot, Addr: client, Since: g.Now()})
	})
	return errors.Join(hosts, err)
}

// RemoveReader takes the note of this node away.
func (g *Guards) RemoveReader(ctx context.Context, imageID string) error {
	var hosts error
	err := g.changeReaders(ctx, imageID, func(all []Reader) (others []Reader) {
		if others, hosts = g.others(all); hosts != nil {
			return all
		}
		return others
	})
	return errors.Join(hosts, err)
}
