package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// ErrCut is the end of a call that Cut has cut short.
var ErrCut = errors.New("killed within a call")

// Cut has the next call that makes or removes an image end after so many of its steps,
// as librbd's does when its process is killed then. To make an image: the name, the image,
// its object map; of a clone then its parent, its entry at the parent, and its metadata. To
// remove one: the entry in the trash, its name there, the name in the directory.
func (c *Cluster) Cut(steps int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = &steps
}

// Whole tells whether no call that was to make the image was cut short.
func (c *Cluster) Whole(image string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.images[image]
	return i != nil && i.whole()
}

// Detach takes a clone from the list of its parent's.
func (c *Cluster) Detach(image string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[image].attached = false
}

// steps takes steps, one after the other.
func (c *Cluster) steps(all ...func()) error {
	cut := c.cut
	c.cut = nil
	for n, step := range all {
		if cut != nil && n >= *cut {
			return ErrCut
		}
		step()
	}
	return nil
}

// make makes an image, or a clone of a snapshot.
func (c *Cluster) make(made *image, parent *image, s *snapshot) error {
	steps := []func(){
		func() { c.names[made.Name] = true },
		func() { c.images[made.Name] = made; delete(c.names, made.Name) },
		func() { made.mapped = true },
	}
	made.mapped, made.attached = false, true
	if parent != nil {
		made.Size = s.Size
		steps = append(steps,
			func() {
				made.Parent, made.attached, made.disk, made.locked = made.spec.Parent, false, s.disk, parent.locked
			},
			func() { made.attached = true },
			func() { maps.Copy(made.meta, parent.meta) },
		)
	}
	return c.steps(steps...)
}

func (i *image) whole() bool { return i.mapped && i.attached }

// lost tells whether the snapshot is gone of which an image is a clone that nobody knows.
func (c *Cluster) lost(i *image) bool {
	if i.Parent == nil || i.attached {
		return false
	}
	parent := c.byID(i.Parent.PoolSpec, i.Parent.ID)
	if parent == nil {
		return true
	}
	for _, s := range parent.snaps {
		if s.ID == i.Parent.SnapID {
			return false
		}
	}
	return true
}

func (h *handle) Whole(ctx context.Context) (whole bool, err error) {
	return whole, h.do(ctx, func(i *image) error {
		whole = i.whole()
		return nil
	})
}

// find finds an image by its name, if it can be opened.
func (c *Cluster) find(name string) (*image, error) {
	i := c.images[name]
	switch {
	case i == nil:
		return nil, fmt.Errorf("open image: %w", backend.ErrNoVolume)
	case c.lost(i):
		return nil, fmt.Errorf("open image: %w: the snapshot that it is a clone of is gone", backend.ErrUnusable)
	}
	return i, nil
}
