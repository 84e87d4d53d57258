package backendtest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// opened opens an image until the test ends.
func opened(t *testing.T, c Ceph, name string, mode backend.OpenMode) backend.Handle {
	t.Helper()
	h, err := c.Open(testContext(t), name, mode)
	must(t, err)
	t.Cleanup(func() { _ = h.Close(testContext(t)) })
	return h
}

func snapNames(t *testing.T, h backend.Handle) (names []string) {
	t.Helper()
	all, err := h.Snapshots(testContext(t))
	must(t, err)
	for _, s := range all {
		names = append(names, s.Name)
	}
	return names
}

// Snapshots is the contract of what backend.Handle promises of snapshots, clones and
// the trash. connect returns a new client of an empty pool, which is this one.
func Snapshots(t *testing.T, connect func(*testing.T) (Ceph, backend.PoolSpec)) {
	parentOf := func(t *testing.T, c Ceph, pool backend.PoolSpec, snap string) backend.Parent {
		t.Helper()
		ctx, image := testContext(t), Create(t, c, "a", 8*mib)
		h := opened(t, c, "a", backend.ReadWrite)
		must(t, h.SetMeta(ctx, map[string]string{"x": "1"}))
		must(t, h.CreateSnapshot(ctx, snap))
		all, err := h.Snapshots(ctx)
		must(t, err)
		if len(all) != 1 || all[0].Name != snap || all[0].Size != 8*mib || time.Since(all[0].Created).Abs() > time.Minute {
			t.Fatalf("snapshots: %+v", all)
		}
		must(t, h.Close(ctx))
		return backend.Parent{PoolSpec: pool, Image: "a", ID: image.ID, Snap: snap, SnapID: all[0].ID}
	}
	t.Run("snapshots are made once, listed and removed", func(t *testing.T) {
		c, pool := connect(t)
		parentOf(t, c, pool, "one")
		ctx, h := testContext(t), opened(t, c, "a", backend.ReadWrite)
		want(t, h.CreateSnapshot(ctx, "one"), backend.ErrExists)
		must(t, h.CreateSnapshot(ctx, "two"))
		if names := snapNames(t, h); !slices.Equal(names, []string{"one", "two"}) {
			t.Errorf("got %v", names)
		}
		want(t, h.Rollback(ctx, "three"), backend.ErrNotFound)
		must(t, h.Rollback(ctx, "one"))
		must(t, h.RemoveSnapshot(ctx, "one"))
		want(t, h.RemoveSnapshot(ctx, "one"), backend.ErrNotFound)
		want(t, h.Remove(ctx, 0), backend.ErrBusy)
		must(t, h.RemoveSnapshot(ctx, "two"))
		if names := snapNames(t, h); len(names) != 0 {
			t.Errorf("got %v", names)
		}
		must(t, h.Remove(ctx, 0))
	})
	t.Run("a clone has its parent's metadata, and outlives the snapshot", func(t *testing.T) {
		c, pool := connect(t)
		from := parentOf(t, c, pool, "one")
		ctx := testContext(t)
		must(t, c.Create(ctx, backend.ImageSpec{Name: "b", Size: 16 * mib, Features: Features, Parent: &from}))
		want(t, c.Create(ctx, backend.ImageSpec{Name: "b", Size: 16 * mib, Features: Features, Parent: &from}), backend.ErrExists)
		b := opened(t, c, "b", backend.ReadWrite)
		if p := b.Image().Parent; b.Image().Size != 8*mib || p == nil || p.PoolSpec != pool || p.ID != from.ID || p.SnapID != from.SnapID || p.Image != "a" {
			t.Errorf("the clone is %+v, its parent %+v", b.Image(), b.Image().Parent)
		}
		if whole, err := b.Whole(ctx); err != nil || !whole {
			t.Errorf("a new clone is whole: %v, %v", whole, err)
		}
		meta, err := b.Meta(ctx)
		must(t, err)
		if meta["x"] != "1" {
			t.Errorf("metadata of the clone: %v", meta)
		}
		a := opened(t, c, "a", backend.ReadWrite)
		must(t, a.RemoveSnapshot(ctx, "one"))
		if names := snapNames(t, a); len(names) != 0 {
			t.Errorf("snapshots that only clones need: %v", names)
		}
		clones, err := a.Clones(ctx)
		must(t, err)
		if !slices.Equal(clones, []string{pool.String() + "/b"}) {
			t.Errorf("clones: %v", clones)
		}
		for h, want := range map[backend.Handle]int{a: 0, b: 1} {
			if depth, err := h.Depth(ctx); err != nil || depth != want {
				t.Errorf("depth of %s: %d, %v", h.Image().Name, depth, err)
			}
		}
		must(t, b.Resize(ctx, 16*mib))
		must(t, b.Resize(ctx, 16*mib))
		want(t, b.Resize(ctx, 8*mib), backend.ErrInvalid)
		if b.Image().Size != 16*mib || opened(t, c, "b", backend.ReadOnly).Image().Size != 16*mib {
			t.Errorf("size after resize: %d", b.Image().Size)
		}
		from.SnapID++
		want(t, c.Create(ctx, backend.ImageSpec{Name: "c", Size: 8 * mib, Features: Features, Parent: &from}), backend.ErrInvalid)
	})
	t.Run("what is removed is kept in the trash for its time, and as long as there are clones", func(t *testing.T) {
		c, pool := connect(t)
		if names, err := c.Purge(testContext(t)); err != nil || len(names) != 0 {
			t.Errorf("purge of a trash that was never used: %v, %v", names, err)
		}
		from := parentOf(t, c, pool, "one")
		ctx := testContext(t)
		must(t, c.Create(ctx, backend.ImageSpec{Name: "b", Size: 8 * mib, Features: Features, Parent: &from}))
		for name, keep := range map[string]time.Duration{"hour": time.Hour, "second": time.Second, "none": 0} {
			Create(t, c, name, 8*mib)
			must(t, opened(t, c, name, backend.ReadWrite).Remove(ctx, keep))
		}
		a := opened(t, c, "a", backend.ReadWrite)
		must(t, a.RemoveSnapshot(ctx, "one"))
		must(t, a.Remove(ctx, 0)) // and yet it stays
		names, err := c.Names(ctx)
		must(t, err)
		if !slices.Equal(names, []string{"b"}) {
			t.Errorf("images: %v", names)
		}
		time.Sleep(2 * time.Second)
		names, err = c.Purge(ctx)
		must(t, err)
		if !slices.Equal(names, []string{"second"}) {
			t.Errorf("purged: %v", names)
		}
		if there, err := c.HasID(ctx, from.ID); err != nil || !there {
			t.Errorf("the parent of a clone is there: %v, %v", there, err)
		}
		b := opened(t, c, "b", backend.ReadOnly)
		if b.Image().Parent != nil && strings.Compare(b.Image().Parent.ID, from.ID) != 0 { // the manager may be at it already
			t.Errorf("the clone's parent: %+v", b.Image().Parent)
		}
	})
	t.Run("the layout is told", func(t *testing.T) {
		c, _ := connect(t)
		ctx := testContext(t)
		must(t, c.Create(ctx, backend.ImageSpec{Name: "a", Size: 8 * mib, ObjectSize: 1 * mib, StripeUnit: 64 << 10, StripeCount: 4, Features: Features}))
		layout, err := opened(t, c, "a", backend.ReadOnly).Layout(ctx)
		must(t, err)
		if layout != (backend.Layout{ObjectSize: 1 * mib, StripeUnit: 64 << 10, StripeCount: 4}) {
			t.Errorf("got %+v", layout)
		}
	})
}
