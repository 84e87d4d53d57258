package rbd_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
)

// copied makes the clone "b" of the image "a", by way of its snapshot "s".
func (o *objects) copied() (parent, clone backend.Image, snap uint64) {
	o.t.Helper()
	ctx, parent := o.t.Context(), o.written("a")
	h, err := o.pool.Open(ctx, "a", backend.ReadWrite)
	if err != nil {
		o.t.Fatal(err)
	}
	defer func() { _ = h.Close(ctx) }()
	if err := h.CreateSnapshot(ctx, "s"); err != nil {
		o.t.Fatal(err)
	}
	snaps, err := h.Snapshots(ctx)
	if err != nil {
		o.t.Fatal(err)
	}
	from := backend.Parent{PoolSpec: backend.PoolSpec{Pool: o.cfg.Pool, Namespace: o.cfg.Namespace}, Image: "a", ID: parent.ID, Snap: "s", SnapID: snaps[0].ID}
	if err := o.pool.Create(ctx, backend.ImageSpec{Name: "b", Size: parent.Size, Features: backendtest.Features, Parent: &from}); err != nil {
		o.t.Fatal(err)
	}
	b := o.open("b")
	defer func() { _ = b.Close(ctx) }()
	return parent, b.Image(), snaps[0].ID
}

func (o *objects) open(name string) backend.Handle {
	o.t.Helper()
	h, err := o.pool.Open(o.t.Context(), name, backend.ReadWrite)
	if err != nil {
		o.t.Fatal(err)
	}
	return h
}

// detach has the parent not know its clone.
func (o *objects) detach(parent, clone string, snap uint64) {
	o.t.Helper()
	ioctx := fresh(o.t, o.cfg)
	var spec []byte
	spec = binary.LittleEndian.AppendUint64(spec, uint64(ioctx.GetPoolID()))
	spec = append(append(spec, encoded(clone)...), encoded(o.cfg.Namespace)...)
	in := append(binary.LittleEndian.AppendUint64(nil, snap), 2, 1)
	in = append(binary.LittleEndian.AppendUint32(in, uint32(len(spec))), spec...)
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec("rbd", "child_detach", in)
	if err := op.Operate(ioctx, "rbd_header."+parent, rados.OperationNoFlag); err != nil {
		o.t.Fatal(err)
	}
}

// A create or a clone that was killed after it had made the header: it is told, and the
// image can be removed and made anew, with nothing left of it.
func TestWhatWasNotMadeToItsEndIsTold(t *testing.T) {
	for name, cut := range map[string]func(o *objects, parent, clone backend.Image, snap uint64){
		"object map": func(o *objects, _, clone backend.Image, _ uint64) { o.rados("rm", "rbd_object_map."+clone.ID) },
		"object map, parent": func(o *objects, parent, clone backend.Image, snap uint64) {
			o.detach(parent.ID, clone.ID, snap)
			o.rados("rmomapkey", "rbd_header."+clone.ID, "parent")
			o.rados("rm", "rbd_object_map."+clone.ID)
		},
		"child attached": func(o *objects, parent, clone backend.Image, snap uint64) { o.detach(parent.ID, clone.ID, snap) },
		"child attached, feature": func(o *objects, parent, clone backend.Image, snap uint64) {
			o.detach(parent.ID, clone.ID, snap)
			o.set("rbd_header."+clone.ID, "op_features", make([]byte, 8))
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			parent, clone, snap := o.copied()
			h := o.open("b")
			if whole, err := h.Whole(t.Context()); err != nil || !whole {
				t.Fatalf("a new clone is whole: %v, %v", whole, err)
			}
			_ = h.Close(t.Context())
			cut(o, parent, clone, snap)
			h = o.open("b")
			if whole, err := h.Whole(t.Context()); err != nil || whole {
				t.Fatalf("it is whole: %v, %v", whole, err)
			}
			if err := h.Remove(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			o.gone(clone.ID)
			from := backend.Parent{PoolSpec: backend.PoolSpec{Pool: o.cfg.Pool, Namespace: o.cfg.Namespace}, Image: "a", ID: parent.ID, Snap: "s", SnapID: snap}
			if err := o.pool.Create(t.Context(), backend.ImageSpec{Name: "b", Size: parent.Size, Features: backendtest.Features, Parent: &from}); err != nil {
				t.Fatal(err)
			}
			a := o.open("a")
			if err := a.RemoveSnapshot(t.Context(), "s"); err != nil {
				t.Fatal(err)
			}
			_ = a.Close(t.Context())
			h = o.open("b")
			if used, _, err := h.DiskUsage(t.Context()); err != nil || used == 0 {
				t.Errorf("the copy holds %d, %v", used, err)
			}
			_ = h.Close(t.Context())
			if left := o.rados("ls"); strings.Contains(left, clone.ID) {
				t.Errorf("left of what was half made: %s", left)
			}
		})
	}
}

// A clone whose parent is gone is refused with what to do, and that works.
func TestAClonesParentIsGone(t *testing.T) {
	o := newObjects(t)
	parent, clone, snap := o.copied()
	o.detach(parent.ID, clone.ID, snap)
	o.rbd("snap", "rm", "--no-progress", o.spec("a@s"))
	_, err := o.pool.Open(t.Context(), "b", backend.ReadOnly)
	if err == nil || !strings.Contains(err.Error(), "rbd rm "+o.spec("b")) {
		t.Fatal(err)
	}
	if err := o.create("b"); err == nil || !strings.Contains(err.Error(), "rbd rm "+o.spec("b")) {
		t.Error(err)
	}
	if left := o.rados("ls"); !strings.Contains(left, "rbd_header."+clone.ID) {
		t.Errorf("it was removed: %s", left)
	}
	o.rbd("rm", "--no-progress", o.spec("b"))
	if err := o.create("b"); err != nil {
		t.Error(err)
	}
}

// The parent of a clone is not found any more while the clone is being removed: it is still
// there under its name, and nobody is told that it is gone, nor anything of its parent.
func TestAParentIsLostWhileItsCloneIsRemoved(t *testing.T) {
	o := newObjects(t)
	parent, clone, snap := o.copied()
	b := o.open("b")
	a := o.open("a")
	if err := a.RemoveSnapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := a.Remove(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	_ = a.Close(t.Context())
	entry := o.get("rbd_trash", "id_"+parent.ID)
	o.rados("rmomapkey", "rbd_trash", "id_"+parent.ID) // nothing is found by an id that has no name
	err := b.Remove(t.Context(), time.Hour)
	if !errors.Is(err, backend.ErrUnusable) || errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), "is it a clone whose parent") {
		t.Errorf("remove: %v", err)
	}
	from := &backend.Parent{PoolSpec: backend.PoolSpec{Pool: o.cfg.Pool, Namespace: o.cfg.Namespace}, Image: "b", ID: clone.ID, Snap: "none", SnapID: snap}
	if err := o.pool.Create(t.Context(), backend.ImageSpec{Name: "c", Size: clone.Size, Parent: from}); !errors.Is(err, backend.ErrUnusable) {
		t.Errorf("copy: %v", err)
	}
	if left := o.rados("ls"); o.inTrash(clone.ID) || !strings.Contains(left, "rbd_id.b\n") {
		t.Errorf("it was removed: %s", left)
	}
	o.set("rbd_trash", "id_"+parent.ID, entry)
	if err := b.Remove(t.Context(), time.Hour); err != nil || !o.inTrash(clone.ID) {
		t.Errorf("found again: %v", err)
	}
	_ = b.Close(t.Context())
}

// A clone that has lost its entries in rbd_directory, as while it is being removed: librbd
// lists no clones of its parent then, and says ENOENT. The parent is there all the same, and
// is not "removed already"; what rbd_directory has lost cannot be removed, and is told.
func TestACloneWithoutItsNameDoesNotHideItsParent(t *testing.T) {
	o := newObjects(t)
	parent, clone, _ := o.copied()
	o.rados("rmomapkey", "rbd_directory", "id_"+clone.ID)
	o.rados("rmomapkey", "rbd_directory", "name_b")
	b := o.open("b")
	if err := b.Remove(t.Context(), time.Hour); err == nil || errors.Is(err, backend.ErrNotFound) {
		t.Errorf("remove what rbd_directory has lost: %v", err)
	}
	_ = b.Close(t.Context())
	a := o.open("a")
	if clones, err := a.Clones(t.Context()); err != nil || len(clones) != 1 {
		t.Errorf("clones: %v, %v", clones, err)
	}
	if err := a.RemoveSnapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := a.Remove(t.Context(), 0); err != nil {
		t.Errorf("remove the parent: %v", err)
	}
	_ = a.Close(t.Context())
	if !o.inTrash(parent.ID) {
		t.Error("the parent is not in the trash, where it is to stay for its clone")
	}
}
