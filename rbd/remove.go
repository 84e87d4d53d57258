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

// Remove moves the image to the trash, which is done at once, and has the
// manager empty it, which takes as long as the image is large and survives the
// death of this plugin. Without the manager we do it ourselves. The handle is
// closed in between: librbd deletes no image that has a watcher.
func (h *handle) Remove(ctx context.Context) error {
	err := h.call(ctx, "remove image", changes, func() error {
		snaps, err := h.img.GetSnapshotNames()
		if err != nil {
			return err
		}
		if len(snaps) > 0 {
			return fmt.Errorf("%w: the image has %d snapshots; see rbd snap ls %s", driver.ErrBusy, len(snaps), h.image.Name)
		}
		if err := h.inPlace(); err != nil {
			return err
		}
		err = rbd.GetImage(h.ioctx, h.image.Name).Trash(0)
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
	// The volume is gone, whatever becomes of the data.
	if err := h.pool.emptyTrash(ctx, h.image.ID); err != nil {
		h.pool.cfg.Log.Warnf("the data of removed volume %s is still in the trash, delete it with rbd trash rm %s/%s: %v",
			h.image.Name, h.pool.cfg.Pool, h.image.ID, err)
	}
	return nil
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

// emptyTrash deletes an image that is in the trash.
func (p *Pool) emptyTrash(ctx context.Context, id string) error {
	if p.byManager(ctx, id) == nil {
		return nil
	}
	return p.do(ctx, "empty the trash", reads, func(_ *client, ioctx *rados.IOContext) error {
		return rbd.TrashRemove(ioctx, id, true)
	})
}

// byManager has the manager do it. A manager that hangs, or has no space to note
// the task, answers late or never, and librados must not be the one to give up:
// after rados_mon_op_timeout rados_mgr_command returns, and when the answer comes
// it is written to what was its stack (16.2: the process crashes). So it gets a
// connection without that limit; one at a time, as it may hang.
func (p *Pool) byManager(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := p.manager.take(ctx); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer p.manager.free()
		conn, err := Connect(p.cfg, map[string]string{
			"client_mount_timeout": timeouts["client_mount_timeout"], "admin_socket": "", "rados_mon_op_timeout": "0",
		})
		if err == nil {
			_, err = admin.NewFromConn(conn).Task().AddTrashRemove(admin.NewImageSpec(p.cfg.Pool, p.cfg.Namespace, id))
			conn.Shutdown()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
