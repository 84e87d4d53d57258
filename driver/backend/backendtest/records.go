package backendtest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Records is the contract of backend.Records. connect returns a new client of
// one and the same empty pool each time.
func Records(t *testing.T, connect func(*testing.T) Ceph) {
	type record struct{ Text string }
	t.Run("compare and swap", func(t *testing.T) {
		a, b, ctx := connect(t), connect(t), testContext(t)
		var r record
		_, err := a.Load(ctx, "k", &r)
		want(t, err, backend.ErrNotFound)

		v1, err := a.CompareAndSwap(ctx, "k", 0, record{"one"})
		must(t, err)
		_, err = b.CompareAndSwap(ctx, "k", 0, record{"late"})
		want(t, err, backend.ErrConflict)
		got, err := b.Load(ctx, "k", &r)
		must(t, err)
		if got != v1 || r.Text != "one" {
			t.Fatalf("read %v of version %d, wrote version %d", r, got, v1)
		}
		v2, err := b.CompareAndSwap(ctx, "k", got, record{"two"})
		must(t, err)
		_, err = a.CompareAndSwap(ctx, "k", v1, record{"stale"})
		want(t, err, backend.ErrConflict)
		want(t, a.Delete(ctx, "k", v1), backend.ErrConflict)
		must(t, a.Delete(ctx, "k", v2))
		_, err = a.Load(ctx, "k", &r)
		want(t, err, backend.ErrNotFound)
	})
	t.Run("what was deleted and made again is another version", func(t *testing.T) {
		a, ctx := connect(t), testContext(t)
		v1, err := a.CompareAndSwap(ctx, "again", 0, record{"one"})
		must(t, err)
		must(t, a.Delete(ctx, "again", v1))
		_, err = a.CompareAndSwap(ctx, "again", v1, record{"stale"})
		want(t, err, backend.ErrConflict)
		v2, err := a.CompareAndSwap(ctx, "again", 0, record{"one"})
		must(t, err)
		if v1 == v2 {
			t.Error("the version came again")
		}
		_, err = a.CompareAndSwap(ctx, "again", v1, record{"stale"})
		want(t, err, backend.ErrConflict)
		want(t, a.Delete(ctx, "again", v1), backend.ErrConflict)
	})
	t.Run("the keys of one kind", func(t *testing.T) {
		a, b, ctx := connect(t), connect(t), testContext(t)
		Create(t, a, "image", 8*mib)
		for _, key := range []string{"kind.b", "kind.a", "kin", "other.kind.c"} {
			_, err := a.CompareAndSwap(ctx, key, 0, record{key})
			must(t, err)
		}
		keys, err := b.List(ctx, "kind.")
		must(t, err)
		if !slices.Equal(keys, []string{"kind.a", "kind.b"}) {
			t.Errorf("got %v", keys)
		}
	})
	t.Run("of many writers one wins each round", func(t *testing.T) {
		ctx := testContext(t)
		clients := []Ceph{connect(t), connect(t)}
		version := backend.Version(0)
		for round := range 10 {
			var won atomic.Uint64
			var wins atomic.Int32
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					v, err := clients[i%2].CompareAndSwap(ctx, "race", version, record{fmt.Sprint(round, i)})
					if err == nil {
						won.Store(uint64(v))
						wins.Add(1)
					} else if !errors.Is(err, backend.ErrConflict) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if wins.Load() != 1 {
				t.Fatalf("round %d: %d writers won", round, wins.Load())
			}
			version = backend.Version(won.Load())
		}
	})
}

// Fences is the contract of backend.Fences. connect returns a new client of the
// same pool each time.
func Fences(t *testing.T, connect func(*testing.T) Ceph) {
	t.Run("a fenced client cannot write, and its watch is gone", func(t *testing.T) {
		a, b, ctx := connect(t), connect(t), testContext(t)
		Create(t, a, "a", 8*mib)
		h, err := a.Open(ctx, "a", backend.ReadWrite)
		must(t, err)
		fenced, err := b.Fenced(ctx, h.ClientAddr())
		must(t, err)
		if fenced[h.ClientAddr()] {
			t.Fatal("fenced before it was")
		}
		must(t, b.Fence(ctx, h.ClientAddr(), "192.0.2.1:0/1"))
		must(t, b.Fence(ctx, h.ClientAddr())) // again
		fenced, err = b.Fenced(ctx, h.ClientAddr(), "192.0.2.1:0/1", "192.0.2.1:0/2")
		must(t, err)
		if !maps.Equal(fenced, map[string]bool{h.ClientAddr(): true, "192.0.2.1:0/1": true}) {
			t.Errorf("fenced: %v", fenced)
		}
		// An OSD hears of a fence from the monitors in its own time, and at once from a client that
		// knows of it, as this one does.
		if w := Watchers(t, b, "a"); len(w) != 0 {
			t.Errorf("watchers after the fence: %v", w)
		}
		want(t, h.SetMeta(ctx, map[string]string{"x": "1"}), backend.ErrUnavailable)
		_ = h.Close(ctx)
	})
}
