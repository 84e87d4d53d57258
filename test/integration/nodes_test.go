package integration

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// An image as wetopi's and vpaprots' plugins make them: no exclusive-lock, no
// metadata, a filesystem on it. It is guarded and fenced all the same.
func TestAnImageOfAnOlderPluginMovesFromADeadNode(t *testing.T) {
	testbed.WatchTimeout(t, 10)
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	file := filepath.Join(t.TempDir(), "ext4")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	testbed.Run(t, "mkfs.ext4", "-q", file)
	testbed.RBD(t, "import", "--no-progress", "--image-feature", "layering", file, cfg.Pool+"/"+cfg.Namespace+"/old")

	put(t, one.mount("old"), "kept")
	id := one.id("old")
	if info := testbed.RBD(t, "info", cfg.Pool+"/"+cfg.Namespace+"/old"); !strings.Contains(info, backend.FeatureLock) {
		t.Errorf("the feature was not switched on:\n%s", info)
	}
	g, held := two.guard("old")
	if !held || g.Node != "one" {
		t.Fatalf("guard %+v", g)
	}
	testbed.KillServer(t, one.dir, id)
	expect(t, two.mount("old"), "kept")
	if until := testbed.BlocklistedUntil(t, g.Addrs[0]); time.Until(until) < 4*365*24*time.Hour {
		t.Errorf("fenced until %v only", until)
	}
	one.Reconcile(one.context(time.Minute))
	two.unmount("old")
}

// Two nodes create the same volume at the same time, as swarm makes them.
func TestTwoNodesCreateTheSameVolume(t *testing.T) {
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	both := func(name, size1, size2 string) (errs []error) {
		errs = make([]error, 2)
		var wg sync.WaitGroup
		wg.Go(func() { errs[0] = one.Create(one.context(time.Minute), name, map[string]string{"size": size1}) })
		wg.Go(func() { errs[1] = two.Create(two.context(time.Minute), name, map[string]string{"size": size2}) })
		wg.Wait()
		return errs
	}
	for range 5 {
		for _, err := range both("same", "64M", "65536K") {
			if err != nil {
				t.Error(err)
			}
		}
		errs := both("other", "64M", "128M")
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("of two creates that do not agree one must win: %v", errs)
		}
		if err := errors.Join(errs...); !strings.Contains(err.Error(), "size") || strings.Contains(err.Error(), "\n") {
			t.Errorf("it does not name the difference in a line: %v", err)
		}
		put(t, one.mount("other"), "x")
		one.unmount("other")
		for _, name := range []string{"same", "other"} {
			if err := two.Remove(two.context(time.Minute), name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// One node mounts a volume while another removes it: one of them has its way,
// and the other is told.
func TestRemoveMeetsMount(t *testing.T) {
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	mounted := 0
	for round := range 6 {
		one.create("v", map[string]string{"size": "16M"})
		var mount, remove error
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Duration(round) * 4 * time.Millisecond)
			_, mount = one.Mount(one.context(time.Minute), "v", "id")
		})
		wg.Go(func() { remove = two.Remove(two.context(time.Minute), "v") })
		wg.Wait()
		switch {
		case mount == nil && errors.Is(remove, backend.ErrInUse):
			mounted++
			one.unmount("v")
			if err := two.Remove(two.context(time.Minute), "v"); err != nil {
				t.Fatal(err)
			}
		case remove == nil && (errors.Is(mount, backend.ErrNotFound) || errors.Is(mount, backend.ErrInUse)):
		default:
			t.Fatalf("round %d: mount: %v; remove: %v", round, mount, remove)
		}
	}
	t.Logf("mount was faster %d times of 6", mounted)
}

// What an image leaves that was deleted by hand.
func TestSweepOnAPool(t *testing.T) {
	cfg := testbed.Namespace(t)
	one := newNode(t, cfg, "one")
	one.create("v", map[string]string{"size": "16M"})
	put(t, one.mount("v"), "kept")
	gone := guard.Record{Node: "two", State: "mapped", Addrs: []string{"192.0.2.1:0/1"}}
	if _, err := one.pool.CompareAndSwap(one.context(time.Minute), "guard.1234567890ab", 0, gone); err != nil {
		t.Fatal(err)
	}
	one.Sweep(one.context(time.Minute))
	keys, err := one.pool.List(one.context(time.Minute), "guard.")
	if err != nil || !slices.Equal(keys, []string{"guard." + one.id("v")}) {
		t.Errorf("guards left: %v, %v", keys, err)
	}
	one.unmount("v")
}
