package rbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Remove moves the image to the trash, which is done at once. If it is not to be
// kept there the manager is to empty it, which takes as long as the image is large
// and survives the death of this plugin. Without the manager we do it ourselves.
// The handle is closed in between: librbd deletes no image that has a watcher.
func (h *handle) Remove(ctx context.Context, keep time.Duration) error {
	var due stay
	err := h.call(ctx, "remove image", changes, func() (err error) {
		if keep, err = h.toTrash(keep); errno(err) == syscall.ENOENT {
			return h.unmoved(err)
		}
		if err == nil && keep == 0 {
			due, _, _ = trashStay(h.ioctx, h.image.ID) // without it Purge will
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
	// The volume is gone, whatever becomes of the data. If it is not found it was deleted by
	// others or, restored meanwhile, is not ours to delete.
	if err := h.pool.emptyTrash(ctx, h.image.ID, due); err != nil && !errors.Is(err, backend.ErrNotFound) {
		h.pool.cfg.Log.Warnf("the data of removed volume %s is still in the trash, delete it with rbd trash rm %s/%s: %v",
			h.image.Name, h.pool.poolSpec(), h.image.ID, err)
	}
	return nil
}

// unmoved tells what ENOENT means of a move to the trash. Only if the image has its name no
// longer it is that: whoever hears that it is not found forgets the volume. The first removal
// of a pool makes its trash, and without space for that librbd says ENOENT (seen with 16.2);
// so it does if rbd_directory has not the image, or not so, and if the parent of a clone is
// not found, be it for a moment.
func (h *handle) unmoved(err error) error {
	t, lookErr := look(h.ioctx, h.image.Name)
	header := false
	if lookErr == nil {
		header, lookErr = exists(h.ioctx, headerObject(h.image.ID))
	}
	if lookErr != nil { // the errno of the other one must not be taken for its answer
		return fmt.Errorf("%w (after: %s)", lookErr, err.Error())
	}
	if !header || t.held != h.image.ID && t.listed != h.image.ID {
		return rbd.ErrNotFound
	}
	openErr := h.inPlace()
	is, lookErr := askText(h.ioctx, directory, "dir_get_name", h.image.ID)
	switch {
	case lookErr != nil:
		return fmt.Errorf("%w (after: %s)", lookErr, err.Error())
	case is == "":
		return fmt.Errorf("%w: object %s has lost the image, id %s: it is whole, and rbd ls %s does not show it; its keys name_%s and id_%s are missing there",
			backend.ErrBusy, directory, h.image.ID, h.pool.poolSpec(), h.image.Name, h.image.ID)
	case is != h.image.Name:
		return fmt.Errorf("%w: Ceph lists the image as %q; if an rbd rename was cut short, the one of the two names that is not "+
			"wanted goes with rados -p %s --namespace '%s' rm %s", backend.ErrBusy, is, h.pool.cfg.Pool, h.pool.cfg.Namespace, idObject(h.image.Name))
	case openErr != nil:
		return h.pool.unfound(h.ioctx, h.image.Name)
	}
	return fmt.Errorf("it cannot be moved to the trash: is the cluster full? See ceph health detail (%s)", err.Error())
}

// toTrash moves the image to the trash, and tells for how long.
func (h *handle) toTrash(keep time.Duration) (time.Duration, error) {
	snaps, err := h.snapshots()
	if err != nil {
		return keep, err
	}
	if len(snaps) > 0 {
		return keep, fmt.Errorf("%w: the image has %d snapshots; see rbd snap ls %s, and remove them first", backend.ErrBusy, len(snaps), h.spec())
	}
	clones, lost, err := h.clones()
	if err != nil {
		return keep, err
	}
	if len(clones) > 0 || lost {
		keep = max(keep, time.Second) // no time at all would say that we see to it now
	}
	for _, step := range []func() error{h.inPlace, h.takeBack, h.attach} {
		if err := step(); err != nil {
			return keep, err
		}
	}
	delay, err := deferral(h.ioctx, keep)
	if err != nil {
		return keep, err
	}
	if err := h.setMeta(map[string]string{removed: mark(h.image.ID, time.Now().Add(delay))}); err != nil {
		return keep, err
	}
	return keep, rbd.GetImage(h.ioctx, h.image.Name).Trash(delay)
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

// takeBack ends what a removal, or a restoration, that was killed has left of this image
// in the trash, though it has its name: the next removal would keep the times of then.
func (h *handle) takeBack() error {
	state, trashed, err := trashState(h.ioctx, h.image.ID)
	switch {
	case err != nil || !trashed:
		return err
	case state == restoring:
		return rbd.TrashRestore(h.ioctx, h.image.ID, h.image.Name)
	case state == moving:
		return tell(h.ioctx, trashList, "trash_remove", text(h.image.ID))
	}
	return fmt.Errorf("%w: the image is in the trash, and yet there under its name; see rbd trash ls --all %s", backend.ErrBusy, h.pool.poolSpec())
}
