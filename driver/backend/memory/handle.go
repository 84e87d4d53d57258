package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Manager is the address of the manager.
const Manager = "10.0.0.250:0/1"

type handle struct {
	client *Client
	image  *image
	mode   backend.OpenMode
	closed bool
}

func (h *handle) Image() backend.Image { return h.image.Image }
func (h *handle) ClientAddr() string   { return h.client.addr }

func (h *handle) Watchers(ctx context.Context) ([]string, error) {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return slices.Sorted(maps.Keys(h.image.watchers)), nil
}

func (h *handle) Managers(ctx context.Context) (addrs []string, err error) {
	return addrs, h.do(ctx, func(*image) error {
		addrs = []string{Manager}
		return nil
	})
}

func (h *handle) DiskUsage(ctx context.Context) (used uint64, known bool, err error) {
	return used, known, h.do(ctx, func(i *image) error {
		if known = i.accounted(); known {
			used = uint64(len(i.data))
		}
		return nil
	})
}

func (h *handle) Empty(ctx context.Context) (empty, sure bool, err error) {
	return empty, sure, h.do(ctx, func(i *image) error {
		empty, sure = len(i.data) == 0, i.accounted()
		return nil
	})
}

func (i *image) accounted() bool { return slices.Contains(i.Features, "fast-diff") && !i.unaccounted }

func (h *handle) Meta(ctx context.Context) (map[string]string, error) {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return maps.Clone(h.image.meta), nil
}

func (h *handle) SetMeta(ctx context.Context, meta map[string]string) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	maps.Copy(h.image.meta, meta)
	return nil
}

func (h *handle) BreakLock(ctx context.Context) error {
	leave, err := h.client.enter(ctx)
	if err == nil {
		leave()
	}
	return err
}

func (h *handle) EnableExclusiveLock(ctx context.Context) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if !slices.Contains(h.image.Features, backend.FeatureLock) {
		h.image.Features = append(slices.Clone(h.image.Features), backend.FeatureLock)
	}
	return nil
}

func (h *handle) Remove(ctx context.Context, keep time.Duration) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	c := h.client.cluster
	switch {
	case c.images[h.image.Name] != h.image:
		err = fmt.Errorf("remove image: %w", backend.ErrNotFound)
	case len(h.image.snaps) > 0:
		err = fmt.Errorf("remove image: %w: it has snapshots", backend.ErrBusy)
	default:
		needed := len(c.clones(h.image)) > 0
		err = c.steps(
			func() {}, // entry in the trash, of which nobody knows
			func() {
				delete(c.images, h.image.Name)
				c.names[h.image.Name] = true
				if keep > 0 || needed {
					c.trash = append(c.trash, trashed{h.image, time.Now().Add(keep)})
				}
			},
			func() { delete(c.names, h.image.Name) },
		)
	}
	leave()
	if err != nil {
		return err
	}
	return h.Close(ctx)
}

// do makes a call that has no answer but an error.
func (h *handle) do(ctx context.Context, call func(i *image) error) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return call(h.image)
}

func (h *handle) Resize(ctx context.Context, size uint64) error {
	return h.do(ctx, func(i *image) error {
		if size < i.Size {
			return fmt.Errorf("%w size: images are not made smaller", backend.ErrInvalid)
		}
		i.Size = size
		return nil
	})
}

func (h *handle) Encrypt(ctx context.Context, e backend.Encryption) error {
	return h.do(ctx, func(i *image) error {
		i.locked, i.data = &e, []byte("noise")
		return nil
	})
}

func (h *handle) Layout(ctx context.Context) (l backend.Layout, err error) {
	return l, h.do(ctx, func(i *image) error {
		l = backend.Layout{ObjectSize: cmp.Or(i.spec.ObjectSize, 4<<20), DataPool: i.spec.DataPool, StripeCount: cmp.Or(i.spec.StripeCount, 1)}
		l.StripeUnit = cmp.Or(i.spec.StripeUnit, l.ObjectSize)
		return nil
	})
}

func (h *handle) Snapshots(ctx context.Context) (all []backend.Snapshot, err error) {
	return all, h.do(ctx, func(i *image) error {
		for _, s := range i.snaps {
			all = append(all, s.Snapshot)
		}
		return nil
	})
}

// find is the place of a snapshot in the list.
func (i *image) find(name string) (int, error) {
	n := slices.IndexFunc(i.snaps, func(s snapshot) bool { return s.Name == name })
	if n < 0 {
		return n, fmt.Errorf("snapshot %s: %w", name, backend.ErrNotFound)
	}
	return n, nil
}

func (h *handle) CreateSnapshot(ctx context.Context, name string) error {
	return h.do(ctx, func(i *image) error {
		if _, err := i.find(name); err == nil {
			return fmt.Errorf("snapshot %s: %w", name, backend.ErrExists)
		}
		i.snap(name, h.client.cluster.number())
		return nil
	})
}

func (h *handle) RemoveSnapshot(ctx context.Context, name string) error {
	return h.do(ctx, func(i *image) error {
		n, err := i.find(name)
		if err == nil {
			i.snaps = slices.Delete(i.snaps, n, n+1)
		}
		return err
	})
}

func (h *handle) Rollback(ctx context.Context, name string) error {
	return h.do(ctx, func(i *image) error {
		n, err := i.find(name)
		if err == nil {
			i.disk = i.snaps[n].disk
		}
		return err
	})
}

func (h *handle) Clones(ctx context.Context) (names []string, err error) {
	return names, h.do(ctx, func(i *image) error {
		names = h.client.cluster.clones(i)
		return nil
	})
}

func (h *handle) Depth(ctx context.Context) (depth int, err error) {
	return depth, h.do(ctx, func(i *image) error {
		for i != nil && i.Parent != nil {
			i = h.client.cluster.byID(i.Parent.PoolSpec, i.Parent.ID)
			depth++
		}
		return nil
	})
}

func (h *handle) Flatten(ctx context.Context) error {
	return h.do(ctx, func(i *image) error {
		c := h.client.cluster
		c.flatten = append(c.flatten, c.spec.String()+"/"+i.Name)
		return nil
	})
}

func (h *handle) Close(context.Context) error {
	h.client.cluster.mu.Lock()
	defer h.client.cluster.mu.Unlock()
	if h.closed || h.mode == backend.ReadOnly {
		return nil
	}
	h.closed = true
	if h.image.watchers[h.client.addr]--; h.image.watchers[h.client.addr] <= 0 {
		delete(h.image.watchers, h.client.addr)
	}
	return nil
}
