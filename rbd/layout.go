package rbd

import (
	"context"
	"fmt"
	"syscall"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Resize makes the image larger; see backend.Handle.
func (h *handle) Resize(ctx context.Context, size uint64) error {
	err := h.call(ctx, "resize", changes, func() error {
		is, err := h.img.GetSize()
		if err != nil || is == size {
			return err
		}
		if is > size {
			return fmt.Errorf("%w size: the image has %d bytes, and is not made smaller", backend.ErrInvalid, is)
		}
		return h.img.Resize(size)
	})
	if err == nil {
		h.image.Size = size
	}
	return err
}

// Layout tells how the image lies; see backend.Handle.
func (h *handle) Layout(ctx context.Context) (backend.Layout, error) {
	var l backend.Layout
	err := h.call(ctx, "look at the layout", reads, func() error {
		info, err := h.img.Stat()
		if err != nil {
			return err
		}
		l.ObjectSize = info.Obj_size
		if l.StripeUnit, err = h.img.GetStripeUnit(); err != nil {
			return err
		}
		if l.StripeCount, err = h.img.GetStripeCount(); err != nil {
			return err
		}
		pool, err := h.img.GetDataPoolID()
		if err != nil || pool == h.ioctx.GetPoolID() {
			return err
		}
		if l.DataPool, err = h.client.conn.GetPoolByID(pool); errno(err) == syscall.ENOENT {
			return fmt.Errorf("%w: the pool of its data, number %d, is gone", backend.ErrUnavailable, pool) // the image is not
		}
		return err
	})
	if err != nil {
		return backend.Layout{}, err
	}
	return l, nil
}

// spec names the image as Ceph's tools do.
func (h *handle) spec() string { return h.pool.poolSpec().String() + "/" + h.image.Name }
