package rbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/ceph/go-ceph/rbd/admin"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// Remove moves the image to the trash, which is done at once. If it is not to be
// kept there the manager is to empty it, which takes as long as the image is large
// and survives the death of this plugin. Without the manager we do it ourselves.
// The handle is closed in between: librbd deletes no image that has a watcher.
func (h *handle) Remove(ctx context.Context, keep time.Duration) error {
	err := h.call(ctx, "remove image", changes, func() error {
		snaps, err := h.snapshots()
		if err != nil {
			return err
		}
		if len(snaps) > 0 {
			return fmt.Errorf("%w: the image has %d snapshots; see rbd snap ls %s, and remove them first", driver.ErrBusy, len(snaps), h.spec())
		}
		clones, err := h.img.ListChildrenAttributes()
		if err != nil {
			return err
		}
		if len(clones) > 0 {
			keep = max(keep, time.Second) // no time at all would say that we see to it now
		}
		if err := h.inPlace(); err != nil {
			return err
		}
		if keep > 0 {
			if err := setMeta(h.img, map[string]string{removed: time.Now().UTC().Format(time.RFC3339)}); err != nil {
				return err
			}
		}
		err = rbd.GetImage(h.ioctx, h.image.Name).Trash(keep)
		// The first removal of a pool makes its trash. Without space for that librbd
		// says ENOENT (seen with 16.2), and the image is where it was.
		if errno(err) == syscall.ENOENT && h.inPlace() == nil {
			return fmt.Errorf("it cannot be moved to the trash: is the cluster full? See ceph health detail (%s)", err.Error())
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := h.Close(ctx); err != nil {
		h.pool.cfg.Log.Warnf("close %s before its data is deleted: %v", h.image.Name, err)
	}
	if keep > 0 { // Purge will
		return nil
	}
	// The volume is gone, whatever becomes of the data.
	if err := h.pool.emptyTrash(ctx, h.image.ID); err != nil {
		h.pool.cfg.Log.Warnf("the data of removed volume %s is still in the trash, delete it with rbd trash rm %s/%s: %v",
			h.image.Name, h.pool.place(), h.image.ID, err)
	}
	return nil
}

// removed marks an image that the plugin put into the trash: what others put there,
// with a time before which it must not go, is for them to delete.
const removed = "removed"

// Purge empties the trash of what its time is up for; see driver.Images. Whether
// it is, the clocks of who put it there and of the manager say: an entry is some
// hours older or younger where they differ by hours.
func (p *Pool) Purge(ctx context.Context) (names []string, err error) {
	var trash []rbd.TrashInfo
	err = p.do(ctx, "list the trash", reads, func(_ *client, ioctx *rados.IOContext) (err error) {
		trash, err = rbd.GetTrashList(ioctx)
		return err
	})
	if errors.Is(err, driver.ErrNotFound) { // nothing was ever removed here
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, entry := range trash {
		if !entry.DefermentEndTime.After(entry.DeletionTime) || time.Now().Before(entry.DefermentEndTime) {
			continue
		}
		ours, waits, err := p.freeClones(ctx, entry.Id)
		if err == nil && !ours {
			continue
		}
		if err == nil && !waits {
			err = p.emptyTrash(ctx, entry.Id)
		}
		switch {
		case errors.Is(err, driver.ErrNotFound): // another node was faster
		case err != nil:
			errs = append(errs, fmt.Errorf("%s (%s/%s, in the trash): %w", entry.Name, p.place(), entry.Id, err))
		case !waits:
			names = append(names, entry.Name)
		}
	}
	return names, errors.Join(errs...)
}

// freeClones has the manager make clones independent of an image in the trash, if
// that is ours. It tells whether there are any. A copy that was never mounted is left:
// it has yet to be made complete, as a copy.
func (p *Pool) freeClones(ctx context.Context, id string) (ours, any bool, err error) {
	var clones []rbd.ImageSpec
	err = p.do(ctx, "list clones", reads, func(_ *client, ioctx *rados.IOContext) error {
		img, err := rbd.OpenImageByIdReadOnly(ioctx, id, rbd.NoSnapshot)
		if err != nil {
			return err
		}
		defer func() { _ = img.Close() }()
		if _, err := img.GetMetadata(prefix + removed); errno(err) == syscall.ENOENT {
			return nil
		} else if err != nil {
			return err
		}
		ours = true
		clones, err = img.ListChildrenAttributes()
		return err
	})
	if err != nil || !ours {
		return false, false, err
	}
	for _, c := range clones {
		if c.Trash { // it is flattened by nobody, but its own time will come
			continue
		}
		at := p.Beside(driver.Place{Pool: c.PoolName, Namespace: c.PoolNamespace})
		err := at.do(ctx, "look for a promise", reads, func(_ *client, ioctx *rados.IOContext) error {
			_, err := ioctx.Stat(prefix + "blank." + c.ImageName)
			return err
		})
		if errors.Is(err, driver.ErrNotFound) {
			err = at.flatten(ctx, c.ImageName)
		}
		if err != nil {
			return true, true, err
		}
	}
	return true, len(clones) > 0, nil
}

// inPlace makes sure that the name is still that of this image.
func (h *handle) inPlace() error {
	there, err := rbd.OpenImageReadOnly(h.ioctx, h.image.Name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	id, err := there.GetId()
	if err := errors.Join(err, there.Close()); err != nil {
		return err
	}
	if id != h.image.ID {
		return rbd.ErrNotFound
	}
	return nil
}

// emptyTrash deletes an image that is in the trash, and has been long enough.
func (p *Pool) emptyTrash(ctx context.Context, id string) error {
	err := p.byManager(ctx, func(t *admin.TaskAdmin) error {
		_, err := t.AddTrashRemove(admin.NewImageSpec(p.cfg.Pool, p.cfg.Namespace, id))
		return err
	})
	if err == nil {
		return nil
	}
	return p.do(ctx, "empty the trash", reads, func(_ *client, ioctx *rados.IOContext) error {
		return rbd.TrashRemove(ioctx, id, false)
	})
}
