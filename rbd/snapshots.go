package rbd

import (
	"context"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// maxDepth is where Depth stops to count.
const maxDepth = 64

// Snapshots lists the snapshots; see backend.Handle.
func (h *handle) Snapshots(ctx context.Context) ([]backend.Snapshot, error) {
	var snaps []backend.Snapshot
	err := h.call(ctx, "list snapshots", reads, func() (err error) {
		snaps, err = h.snapshots()
		return err
	})
	if err != nil {
		return nil, err
	}
	return snaps, nil
}

// snapshots are those that somebody made and has not removed: of the others, as
// clones need them, librbd tells as well.
func (h *handle) snapshots() (snaps []backend.Snapshot, err error) {
	all, err := h.img.GetSnapshotNames()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		kind, err := h.img.GetSnapNamespaceType(s.Id)
		if errno(err) == syscall.ENOENT {
			if err = current(h.img); err == nil { // removed meanwhile
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		if kind != rbd.SnapNamespaceTypeUser {
			continue
		}
		created, err := h.img.GetSnapTimestamp(s.Id)
		if errno(err) == syscall.ENOENT {
			if err = current(h.img); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		snaps = append(snaps, backend.Snapshot{Name: s.Name, ID: s.Id, Size: s.Size, Created: time.Unix(created.Sec, created.Nsec)})
	}
	return snaps, nil
}

// CreateSnapshot makes a snapshot; see backend.Handle.
func (h *handle) CreateSnapshot(ctx context.Context, name string) error {
	return h.call(ctx, "make snapshot", changes, func() error {
		_, err := h.img.CreateSnapshot(name)
		return err
	})
}

// RemoveSnapshot removes a snapshot; see backend.Handle. One that is protected, for clones
// of Ceph's first format, is busy.
func (h *handle) RemoveSnapshot(ctx context.Context, name string) error {
	return h.call(ctx, "remove snapshot", changes, func() error { return h.img.GetSnapshot(name).Remove() })
}

// Rollback goes back to a snapshot; see backend.Handle.
func (h *handle) Rollback(ctx context.Context, name string) error {
	return h.call(ctx, "roll back", changes, func() error { return h.img.GetSnapshot(name).Rollback() })
}

// Clones lists the clones; see backend.Handle.
func (h *handle) Clones(ctx context.Context) ([]string, error) {
	var names []string
	err := h.call(ctx, "list clones", reads, func() error {
		clones, lost, err := h.clones()
		for _, c := range clones {
			name := backend.PoolSpec{Pool: c.PoolName, Namespace: c.PoolNamespace}.String() + "/" + c.ImageName
			if c.Trash {
				name += " (in the trash)"
			}
			names = append(names, name)
		}
		if lost {
			names = append(names, "one that has no name")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return names, nil
}

// clones lists the clones. If one of them has no entry in rbd_directory, as while it is being
// removed, or by damage, librbd says ENOENT and lists none: lost.
func (h *handle) clones() (clones []rbd.ImageSpec, lost bool, err error) {
	clones, err = h.img.ListChildrenAttributes()
	if errno(err) == syscall.ENOENT {
		return nil, true, nil
	}
	return clones, false, err
}

// Depth goes up from parent to parent; see backend.Handle.
func (h *handle) Depth(ctx context.Context) (int, error) {
	depth := 0
	err := h.call(ctx, "look for ancestors", reads, func() error {
		parent := h.image.Parent
		for depth = 0; parent != nil && depth < maxDepth; depth++ {
			var err error
			if parent, err = h.pool.Beside(parent.PoolSpec).grandparent(h.client, parent.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return depth, nil
}

func (p *Pool) grandparent(c *client, id string) (*backend.Parent, error) {
	ioctx, err := p.ioctx(c)
	if err != nil {
		return nil, err
	}
	defer ioctx.Destroy()
	img, err := rbd.OpenImageByIdReadOnly(ioctx, id, rbd.NoSnapshot)
	if err != nil {
		return nil, err
	}
	defer func() { _ = img.Close() }()
	return parentOf(img)
}

// Flatten leaves it to the manager; see backend.Handle.
func (h *handle) Flatten(ctx context.Context) error { return h.pool.flatten(ctx, h.image.Name) }
