package backendtest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Ceph is what one control client can do.
type Ceph interface {
	backend.Images
	backend.Records
	backend.Fences
}

const (
	mib     = 1 << 20
	timeout = 30 * time.Second
)

// Features are those of the images in these suites.
var Features = []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	return ctx
}

func want(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v, want %v", err, kind)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Create makes an image and opens it read-only for its description.
func Create(t *testing.T, c Ceph, name string, size uint64) backend.Image {
	t.Helper()
	ctx := testContext(t)
	must(t, c.Create(ctx, backend.ImageSpec{Name: name, Size: size, Features: Features}))
	h, err := c.Open(ctx, name, backend.ReadOnly)
	must(t, err)
	must(t, h.Close(ctx))
	return h.Image()
}

// Watchers lists the watchers of an image.
func Watchers(t *testing.T, c Ceph, name string) []string {
	t.Helper()
	ctx := testContext(t)
	h, err := c.Open(ctx, name, backend.ReadOnly)
	must(t, err)
	watchers, err := h.Watchers(ctx)
	must(t, err)
	must(t, h.Close(ctx))
	return watchers
}

// Images is the contract of backend.Images and backend.Handle. connect returns a
// new client of an empty pool.
func Images(t *testing.T, connect func(*testing.T) Ceph) {
	t.Run("what was created is found as it was asked for", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		must(t, c.Create(ctx, backend.ImageSpec{Name: "a", Size: 8 * mib, ObjectSize: 1 * mib, Features: Features}))
		h, err := c.Open(ctx, "a", backend.ReadOnly)
		must(t, err)
		image := h.Image()
		if image.Name != "a" || image.ID == "" || image.Size != 8*mib || time.Since(image.Created) > time.Hour {
			t.Errorf("got %+v", image)
		}
		if got := slices.Sorted(slices.Values(image.Features)); !slices.Equal(got, slices.Sorted(slices.Values(Features))) {
			t.Errorf("features: got %v", got)
		}
		if whole, err := h.Whole(ctx); err != nil || !whole {
			t.Errorf("it is whole: %v, %v", whole, err)
		}
		used, known, err := h.DiskUsage(ctx)
		must(t, err)
		empty, sure, err := h.Empty(ctx)
		must(t, err)
		if used != 0 || !known || !empty || !sure {
			t.Errorf("a new image uses %d bytes (known: %v), and is empty: %v (sure: %v)", used, known, empty, sure)
		}
		must(t, h.Close(ctx))
		must(t, h.Close(ctx))
	})
	t.Run("what is on an image without an account of its objects is found at its ends", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		must(t, c.Create(ctx, backend.ImageSpec{Name: "a", Size: 4 << 40, ObjectSize: 4 * mib, Features: []string{"layering", "exclusive-lock"}}))
		h, err := c.Open(ctx, "a", backend.ReadOnly)
		must(t, err)
		_, known, err := h.DiskUsage(ctx)
		must(t, err)
		empty, sure, err := h.Empty(ctx)
		must(t, err)
		if known || !empty || sure {
			t.Errorf("used is known: %v; empty: %v, sure: %v", known, empty, sure)
		}
		must(t, h.Close(ctx))
	})
	t.Run("a taken name is refused and its image left alone", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		before := Create(t, c, "a", 8*mib)
		want(t, c.Create(ctx, backend.ImageSpec{Name: "a", Size: 16 * mib, Features: Features}), backend.ErrExists)
		h, err := c.Open(ctx, "a", backend.ReadOnly)
		must(t, err)
		if h.Image().ID != before.ID || h.Image().Size != 8*mib {
			t.Errorf("got %+v, was %+v", h.Image(), before)
		}
		must(t, h.Close(ctx))
	})
	t.Run("of many creates of one name one wins", func(t *testing.T) {
		ctx := testContext(t)
		clients := []Ceph{connect(t)}
		var won atomic.Int32
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				err := clients[0].Create(ctx, backend.ImageSpec{Name: "a", Size: 8 * mib, Features: Features})
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, backend.ErrExists) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d creates won", won.Load())
		}
	})
	t.Run("names are sorted and only those that volumes can have", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		for _, name := range []string{"b", "a", ".hidden", "c.1"} {
			Create(t, c, name, 8*mib)
		}
		names, err := c.Names(ctx)
		must(t, err)
		if !slices.Equal(names, []string{"a", "b", "c.1"}) {
			t.Errorf("got %v", names)
		}
	})
	t.Run("what is missing is not found", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		if exists, err := c.Exists(ctx, "a"); err != nil || exists {
			t.Errorf("exists: %v, %v", exists, err)
		}
		Create(t, c, "b", 8*mib)
		if exists, err := c.Exists(ctx, "b"); err != nil || !exists {
			t.Errorf("exists: %v, %v", exists, err)
		}
		_, err := c.Open(ctx, "a", backend.ReadOnly)
		want(t, err, backend.ErrNotFound)
		_, err = c.Open(ctx, "a", backend.ReadWrite)
		want(t, err, backend.ErrNotFound)
	})
	t.Run("only a read-write client is a watcher, until it closes", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		Create(t, c, "a", 8*mib)
		if w := Watchers(t, c, "a"); len(w) != 0 {
			t.Fatalf("watchers of an image that nobody uses: %v", w)
		}
		h, err := c.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		if w := Watchers(t, c, "a"); !slices.Equal(w, []string{h.ClientAddr()}) {
			t.Errorf("watchers %v, the client is %s", w, h.ClientAddr())
		}
		must(t, h.Close(ctx))
		if w := Watchers(t, c, "a"); len(w) != 0 {
			t.Errorf("watchers after close: %v", w)
		}
	})
	t.Run("metadata is set key by key and read afresh", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		Create(t, c, "a", 8*mib)
		reader, err := c.Open(ctx, "a", backend.ReadOnly)
		must(t, err)
		meta, err := reader.Meta(ctx)
		must(t, err)
		if len(meta) != 0 {
			t.Fatalf("metadata of a new image: %v", meta)
		}
		h, err := c.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		must(t, h.SetMeta(ctx, map[string]string{"x": "1", "y": "two words"}))
		must(t, h.SetMeta(ctx, map[string]string{"x": "3"}))
		must(t, h.Close(ctx))
		meta, err = reader.Meta(ctx)
		must(t, err)
		if !maps.Equal(meta, map[string]string{"x": "3", "y": "two words"}) {
			t.Errorf("got %v", meta)
		}
		must(t, reader.Close(ctx))
	})
	t.Run("a removed image is gone and its name free; another of its name is safe", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		first := Create(t, c, "a", 8*mib)
		h, err := c.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		stale, err := c.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		must(t, h.Remove(ctx, 0))
		must(t, h.Close(ctx))
		second := Create(t, c, "a", 8*mib)
		if first.ID == second.ID {
			t.Fatal("the id came again")
		}
		want(t, stale.Remove(ctx, 0), backend.ErrNotFound)
		must(t, stale.Close(ctx))
		names, err := c.Names(ctx)
		must(t, err)
		if !slices.Equal(names, []string{"a"}) {
			t.Errorf("got %v", names)
		}
	})
	t.Run("an image is found by its id as long as there is anything of it", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		id := Create(t, c, "a", 8*mib).ID
		if now, err := c.ID(ctx, "a"); err != nil || now != id {
			t.Errorf("the id of a is %q, %v; want %s", now, err, id)
		}
		for id, want := range map[string]bool{id: true, id + "0": false} {
			if there, err := c.HasID(ctx, id); err != nil || there != want {
				t.Errorf("id %s is there: %v, %v", id, there, err)
			}
		}
		h, err := c.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		must(t, h.Remove(ctx, 0))
		_, err = c.ID(ctx, "a")
		want(t, err, backend.ErrNotFound)
		for ctx.Err() == nil { // the manager empties the trash when it has time
			there, err := c.HasID(ctx, id)
			must(t, err)
			if !there {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Error("it is still there after it was removed")
	})
	t.Run("the feature exclusive-lock can be given later", func(t *testing.T) {
		c, ctx := connect(t), testContext(t)
		must(t, c.Create(ctx, backend.ImageSpec{Name: "a", Size: 8 * mib, Features: []string{"layering"}}))
		h, err := c.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		must(t, h.EnableExclusiveLock(ctx))
		must(t, h.EnableExclusiveLock(ctx))
		for _, open := range []func() (backend.Handle, error){
			func() (backend.Handle, error) { return h, nil },
			func() (backend.Handle, error) { return c.Open(ctx, "a", backend.ReadOnly) },
		} {
			h, err := open()
			must(t, err)
			if got := slices.Sorted(slices.Values(h.Image().Features)); !slices.Equal(got, []string{backend.FeatureLock, "layering"}) {
				t.Errorf("features %v", got)
			}
			must(t, h.Close(ctx))
		}
	})
	t.Run("a call ends with its context", func(t *testing.T) {
		c := connect(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := c.Names(ctx)
		want(t, err, backend.ErrUnavailable)
		_, err = c.Open(ctx, "a", backend.ReadOnly)
		want(t, err, backend.ErrUnavailable)
	})
}
