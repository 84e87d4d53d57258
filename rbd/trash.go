package rbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/ceph/go-ceph/rbd/admin"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// removed marks an image that the plugin put into the trash: what others put there is
// for them to delete. The mark names the image, as a copy has it too, and the time at
// which it may go, as it stays when the image is restored: it is of that one entry.
const removed = "removed"

func mark(id string, until time.Time) string { return id + " " + until.UTC().Format(time.RFC3339) }

// isOurs tells whether the mark of an image is of this entry. The times are of one clock,
// a call apart.
func isOurs(mark string, entry rbd.TrashInfo) bool {
	id, until, _ := strings.Cut(mark, " ")
	end, err := time.Parse(time.RFC3339, until)
	return err == nil && id == entry.Id && end.Sub(entry.DefermentEndTime).Abs() < 5*time.Minute
}

// deferral is for how long an image is to be kept, by the clock of this node, so that its
// time is up by Ceph's: librbd notes when that will be by the clock of who puts it there.
func deferral(ioctx *rados.IOContext, keep time.Duration) (time.Duration, error) {
	if keep == 0 {
		return 0, nil
	}
	now, err := cephNow(ioctx)
	return between(time.Now(), now.Add(keep)), err
}

// between is never less than nothing: an image that is removed by a node whose clock is
// ahead stays for longer.
func between(now, end time.Time) time.Duration { return max(0, end.Sub(now).Round(time.Second)) }

// grace is the time for who is just at it: for the manager that is to delete what is not
// to be kept, for librbd on another node that moves an image to the trash.
const grace = time.Minute

// Purge empties the trash of what its time is up for, by Ceph's clock, and of what a
// removal that was cut short has left; see backend.Images.
func (p *Pool) Purge(ctx context.Context) (names []string, err error) {
	var trash []rbd.TrashInfo
	var now time.Time
	err = p.do(ctx, "list the trash", changes, func(_ *client, ioctx *rados.IOContext) (err error) {
		if trash, err = rbd.GetTrashList(ioctx); err == nil && len(trash) > 0 {
			now, err = cephNow(ioctx)
		}
		return err
	})
	if errors.Is(err, backend.ErrNotFound) { // nothing was ever removed here
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, entry := range trash {
		due := entry.DefermentEndTime
		if !due.After(entry.DeletionTime) {
			due = due.Add(grace)
		}
		if now.Before(due) {
			continue
		}
		var ours, waits bool
		err := p.do(ctx, "look at what is in the trash", changes, func(_ *client, ioctx *rados.IOContext) (err error) {
			ours, err = p.deletable(ioctx, entry, now)
			return err
		})
		if err == nil && !ours {
			continue
		}
		if err == nil {
			waits, err = p.freeClones(ctx, entry.Id)
		}
		if err == nil && !waits {
			err = p.emptyTrash(ctx, entry.Id, stay{since: entry.DeletionTime.Unix(), until: entry.DefermentEndTime.Unix()})
		}
		switch {
		case errors.Is(err, backend.ErrNotFound): // another node was faster
		case err != nil:
			errs = append(errs, fmt.Errorf("%s (%s/%s, in the trash): %w", entry.Name, p.poolSpec(), entry.Id, err))
		case !waits:
			names = append(names, entry.Name)
		}
	}
	return names, errors.Join(errs...)
}

// deletable tells whether an image, whose time in the trash is up, is ours to delete. A
// move to the trash that was cut short is completed, if the image is not there any more
// under its name.
func (p *Pool) deletable(ioctx *rados.IOContext, entry rbd.TrashInfo, now time.Time) (bool, error) {
	state, found, err := trashState(ioctx, entry.Id)
	if err != nil || !found {
		return false, err
	}
	held, err := heldID(ioctx, entry.Name)
	if err != nil || held == entry.Id { // killed as it began to go, or to come back: it may be in use
		return false, err
	}
	is, err := metadata(ioctx, entry.Id, removed)
	if err != nil {
		return false, err
	}
	ours := isOurs(is, entry)
	switch state {
	case inTrash:
		return ours, nil
	case removing: // it has been decided, and the header, with its mark, may be gone already
		there, err := exists(ioctx, headerObject(entry.Id))
		return ours || !there, err
	case moving:
		if !ours || now.Sub(entry.DefermentEndTime) < grace {
			return false, nil
		}
		t := traces{name: entry.Name, id: entry.Id, trashed: true, state: state}
		if t.listed, err = askText(ioctx, directory, "dir_get_id", entry.Name); err != nil {
			return false, err
		}
		if t.listed != entry.Id { // the name is another's by now
			t.listed = ""
		}
		return true, t.drop(ioctx)
	}
	return false, nil
}

// freeClones has the manager make clones independent of an image in the trash, and tells
// whether there are any. A copy that was never mounted is left: it has yet to be made
// complete, as a copy.
func (p *Pool) freeClones(ctx context.Context, id string) (any bool, err error) {
	var clones []rbd.ImageSpec
	err = p.do(ctx, "list clones", reads, func(_ *client, ioctx *rados.IOContext) error {
		img, err := rbd.OpenImageByIdReadOnly(ioctx, id, rbd.NoSnapshot)
		if errno(err) == syscall.ENOENT {
			if there, lookErr := exists(ioctx, headerObject(id)); lookErr != nil || there {
				return cmp.Or(lookErr, fmt.Errorf("%w: librbd does not find all of it; is it a clone whose parent is gone?", backend.ErrUnusable))
			}
			return nil // it is all but deleted
		}
		if err != nil {
			return err
		}
		defer func() { _ = img.Close() }()
		clones, err = img.ListChildrenAttributes()
		return err
	})
	if err != nil {
		return false, err
	}
	for _, c := range clones {
		if c.Trash { // it is flattened by nobody, but its own time will come
			continue
		}
		at := p.Beside(backend.PoolSpec{Pool: c.PoolName, Namespace: c.PoolNamespace})
		pending := false
		err := at.do(ctx, "look for a pending volume", reads, func(_ *client, ioctx *rados.IOContext) (err error) {
			if pending, err = exists(ioctx, prefix+"pending."+c.ImageName); err == nil && pending {
				var complete string
				complete, err = metadata(ioctx, c.ImageID, "complete")
				pending = complete != c.ImageID // else it is one that came back late
			}
			return err
		})
		if err == nil && !pending {
			err = at.flatten(ctx, c.ImageName)
		}
		if err != nil {
			return true, err
		}
	}
	return len(clones) > 0, nil
}

// emptyTrash deletes an image that is in the trash, and has been long enough. The manager
// looks at its time when it comes to it.
func (p *Pool) emptyTrash(ctx context.Context, id string, due stay) error {
	err := p.byManager(ctx, func(t *admin.TaskAdmin) error {
		_, err := t.AddTrashRemove(admin.NewImageSpec(p.cfg.Pool, p.cfg.Namespace, id))
		return err
	})
	if err == nil {
		return nil
	}
	return p.do(ctx, "empty the trash", reads, func(_ *client, ioctx *rados.IOContext) error {
		return deleteDue(ioctx, id, due)
	})
}

// deleteDue deletes an image whose stay in the trash is over, whatever this node's clock
// says. It may have been restored since somebody looked, and used, and be there anew, to be
// kept: so it is marked as going first, from when on nobody can restore it, and looked at
// then. ErrNotFound if it is not that stay any more.
func deleteDue(ioctx *rados.IOContext, id string, due stay) error {
	same := func() (stay, error) {
		now, found, err := trashStay(ioctx, id)
		if err == nil && (!found || now.since != due.since || now.until != due.until) {
			err = rbd.ErrNotFound
		}
		return now, err
	}
	now, err := same()
	if err != nil {
		return err
	}
	if now.state == inTrash {
		if err = setTrashState(ioctx, id, inTrash, removing); errno(err) == syscall.ESTALE { // somebody restores or deletes it
			return rbd.ErrNotFound
		}
		if err != nil {
			return err
		}
		if _, err = same(); err != nil {
			return errors.Join(setTrashState(ioctx, id, removing, inTrash), err)
		}
	}
	return rbd.TrashRemove(ioctx, id, true)
}
