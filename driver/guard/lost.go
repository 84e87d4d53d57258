package guard

import (
	"context"
	"errors"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Lost tells whether a mapping has lost its right to write: its client is
// fenced, or another has the guard. The guard of a mounted volume that is
// missing altogether, deleted by hand perhaps, is put back: whoever had it in
// between would have fenced us. known are clients of which it was asked for many volumes at
// once whether they are fenced; nil = not.
func (g *Guards) Lost(ctx context.Context, m backend.Mapping, known map[string]bool) (bool, error) {
	if known[m.Addr] {
		return true, nil
	}
	held, version, err := g.Load(ctx, m.ID)
	missing := errors.Is(err, backend.ErrNotFound)
	if err == nil && held.Authorizes(m) && held.Node != g.Node.Name {
		err = g.rename(ctx, m, held, version)
	}
	if err != nil && !missing {
		return false, err
	}
	if !missing && (known != nil || !held.Authorizes(m)) {
		return !held.Authorizes(m), nil
	}
	// Asked after the guard was read: who deletes a guard has fenced first.
	fenced, err := g.Fences.Fenced(ctx, m.Addr)
	if err != nil || fenced[m.Addr] || !missing {
		return fenced[m.Addr], err
	}
	if mounted, err := g.Local.IsMounted(ctx, m.Name); err != nil || !mounted {
		return true, err
	}
	_, err = g.Records.CompareAndSwap(ctx, guardKey(m.ID), 0, Record{
		Node: g.Node.Name, Boot: g.Node.Boot, State: Mapped, Addrs: []string{m.Addr}, Since: g.Now(),
	})
	if err == nil {
		g.Log.WithField("volume", m.Name).Warn("the guard was missing although the volume is mapped here: put back")
	}
	return errors.Is(err, backend.ErrConflict), err
}

// rename gives the guard of a mapping the name that this node has by now: by it an
// operator finds what the node has.
func (g *Guards) rename(ctx context.Context, m backend.Mapping, held Record, version backend.Version) error {
	before := held.Node
	held.Node, held.Boot = g.Node.Name, g.Node.Boot
	_, err := g.Records.CompareAndSwap(ctx, guardKey(m.ID), version, held)
	if err == nil {
		g.Log.WithField("volume", m.Name).Infof("the guard named this node %s, as it was called before: it is %s now", before, g.Node.Name)
	}
	return err
}
