package rbd

import (
	"context"
	"encoding/binary"
	"slices"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Whole looks for what librbd makes last; see backend.Handle.
func (h *handle) Whole(ctx context.Context) (whole bool, err error) {
	err = h.call(ctx, "look whether the image is whole", reads, func() (err error) {
		whole = true
		if slices.Contains(h.image.Features, "object-map") {
			if whole, err = exists(h.ioctx, objectMap(h.image.ID)); err != nil {
				return err
			}
		}
		if parent := h.image.Parent; whole && parent != nil {
			whole, err = h.attached(parent)
		}
		return err
	})
	if err != nil {
		return false, err // a call left alone may still write to whole
	}
	return whole, nil
}

// attached tells whether the parent of a clone knows it: when the last clone of a snapshot
// that it knows is gone, so is the snapshot.
func (h *handle) attached(parent *backend.Parent) (bool, error) {
	ioctx, err := h.pool.Beside(parent.PoolSpec).ioctx(h.client)
	if err != nil {
		return false, err
	}
	defer ioctx.Destroy()
	children, err := childrenOf(ioctx, parent.ID, parent.SnapID)
	return slices.Contains(children, h.child()), err
}

// attach makes a clone known to its parent, if it is not: else librbd would leave the clone
// in the trash for ever, as it finds nothing there to take back. Of those of Ceph's first
// format, which are without the mark, the parent's header does not tell.
func (h *handle) attach() error {
	parent := h.image.Parent
	if parent == nil || !slices.Contains(h.image.Features, "operations") {
		return nil
	}
	d, err := ask(h.ioctx, h.header(), "op_features_get", nil)
	if err != nil || d.number(8)&markClone == 0 {
		return err
	}
	if known, err := h.attached(parent); err != nil || known {
		return err
	}
	ioctx, err := h.pool.Beside(parent.PoolSpec).ioctx(h.client)
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	in := append(binary.LittleEndian.AppendUint64(nil, parent.SnapID), h.child().encode()...)
	err = tell(ioctx, headerObject(parent.ID), "child_attach", in)
	if errno(err) == syscall.EEXIST {
		return nil
	}
	return err
}

// markClone is what the header of a clone of Ceph's second format has among the operations.
const markClone = 1 << 1

func (h *handle) child() child {
	return child{uint64(h.ioctx.GetPoolID()), h.image.ID, h.pool.cfg.Namespace}
}

func (c child) encode() []byte {
	data := append(binary.LittleEndian.AppendUint64(nil, c.pool), texts(c.id, c.namespace)...)
	return append(binary.LittleEndian.AppendUint32([]byte{2, 1}, uint32(len(data))), data...)
}

type child struct {
	pool      uint64
	id        string
	namespace string
}

// childrenOf are the clones of a snapshot, of Ceph's second format, that its image knows.
func childrenOf(ioctx *rados.IOContext, id string, snap uint64) (children []child, err error) {
	d, err := ask(ioctx, headerObject(id), "children_list", binary.LittleEndian.AppendUint64(nil, snap))
	if errno(err) == syscall.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for range d.number(4) {
		version, one := d.versioned()
		c := child{pool: one.number(8), id: one.text()}
		if version > 1 {
			c.namespace = one.text()
		}
		if d.short = d.short || one.short; d.short {
			break
		}
		children = append(children, c)
	}
	return children, d.err()
}
