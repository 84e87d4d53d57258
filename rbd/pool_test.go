package rbd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	ceph "github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func connect(t *testing.T, cfg rbd.Config) *rbd.Pool {
	p := rbd.New(cfg)
	t.Cleanup(p.Close)
	return p
}

func TestContracts(t *testing.T) {
	t.Run("Images", func(t *testing.T) {
		backendtest.Images(t, func(t *testing.T) backendtest.Ceph { return connect(t, testbed.Namespace(t)) })
	})
	t.Run("Snapshots", func(t *testing.T) {
		backendtest.Snapshots(t, func(t *testing.T) (backendtest.Ceph, backend.PoolSpec) {
			cfg := testbed.Namespace(t)
			return connect(t, cfg), backend.PoolSpec{Pool: cfg.Pool, Namespace: cfg.Namespace}
		})
	})
	t.Run("Records", func(t *testing.T) {
		cfg := testbed.Namespace(t)
		backendtest.Records(t, func(t *testing.T) backendtest.Ceph { return connect(t, cfg) })
	})
	t.Run("Fences", func(t *testing.T) {
		cfg := testbed.Namespace(t)
		backendtest.Fences(t, func(t *testing.T) backendtest.Ceph { return connect(t, cfg) })
	})
}

func TestAClientThatWasFencedIsReplaced(t *testing.T) {
	cfg := testbed.Namespace(t)
	p, other := connect(t, cfg), connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Fence(t.Context(), h.ClientAddr()); err != nil {
		t.Fatal(err)
	}
	backendtest.Watchers(t, other, image.Name) // its OSD knows of the fence, as from any client that takes over
	if err := h.SetMeta(t.Context(), map[string]string{"x": "1"}); !errors.Is(err, backend.ErrUnavailable) {
		t.Fatalf("the fenced client: %v", err)
	}
	again, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if again.ClientAddr() == h.ClientAddr() {
		t.Error("the fenced client is still in use")
	}
	if err := again.SetMeta(t.Context(), map[string]string{"x": "1"}); err != nil {
		t.Error(err)
	}
	_ = again.Close(t.Context())
	_ = h.Close(t.Context())
}

// A change that was left under way may land at any time: its client must not
// be the one that the next operation, and its guard, stands on.
func TestAClientWithAChangeLeftUnderWayIsRetired(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	wakeUp := lockedByASleeper(t, image.Name, cfg)
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.CreateSnapshot(ctx, "later"); !errors.Is(err, backend.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	wakeUp()
	again, err := p.Open(t.Context(), image.Name, backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	if again.ClientAddr() == h.ClientAddr() {
		t.Error("the client is still in use")
	}
	_ = again.Close(t.Context())
	_ = h.Close(t.Context())
}

// A request that has ended begins nothing: a removal, say, would be done when nobody waits
// for it any more.
func TestARequestThatHasEndedBeginsNothing(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for what, err := range map[string]error{
		"create": p.Create(ended, backend.ImageSpec{Name: "b", Size: 8 << 20, Features: backendtest.Features}),
		"set":    h.SetMeta(ended, map[string]string{"x": "1"}), "remove": h.Remove(ended, 0),
	} {
		if !errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	if names, err := p.Names(t.Context()); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("images: %v, %v", names, err)
	}
	if meta, err := h.Meta(t.Context()); err != nil || len(meta) > 0 {
		t.Errorf("metadata: %v, %v", meta, err)
	}
	_ = h.Close(t.Context())
}

func TestFenceLastsForYears(t *testing.T) {
	p := connect(t, testbed.Namespace(t))
	if err := p.Fence(t.Context(), "192.0.2.77:0/7"); err != nil {
		t.Fatal(err)
	}
	until := testbed.BlocklistedUntil(t, "192.0.2.77:0/7")
	if left := time.Until(until); left < 4*365*24*time.Hour {
		t.Errorf("the fence lasts until %v", until)
	}
}

func TestTroubleIsNeverNotFound(t *testing.T) {
	good := testbed.Namespace(t)
	for name, change := range map[string]func(*rbd.Config){
		"no such pool":      func(c *rbd.Config) { c.Pool = "missing" },
		"no such namespace": func(c *rbd.Config) { c.Namespace = "missing" },
		"no such user":      func(c *rbd.Config) { c.User = "client.missing" },
		"no configuration":  func(c *rbd.Config) { c.ConfFile = "/nonexistent/ceph.conf" },
		"a key without cap": func(c *rbd.Config) { c.User, c.Pool = "client.docker", "other" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			change(&cfg)
			_, err := connect(t, cfg).Open(t.Context(), "a", backend.ReadOnly)
			if !errors.Is(err, backend.ErrUnavailable) || errors.Is(err, backend.ErrNotFound) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSnapshotsKeepAnImage(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	testbed.RBD(t, "snap", "create", cfg.Pool+"/"+cfg.Namespace+"/a@s")
	h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(t.Context(), 0); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("removed: %v", err)
	}
	testbed.RBD(t, "snap", "rm", "--no-progress", cfg.Pool+"/"+cfg.Namespace+"/a@s")
	if err := h.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// The manager deletes the data of what was removed; without its cap, or without
// a manager, we do it ourselves.
func TestTheDataOfARemovedImageIsDeleted(t *testing.T) {
	cfg := testbed.Namespace(t)
	for _, user := range []string{"client.tests", "client.nomgr"} {
		t.Run(user, func(t *testing.T) {
			cfg := cfg
			if user == "client.nomgr" {
				cfg.User, cfg.Keyring = user, testbed.User(t, user, "mon", "profile rbd", "osd", "profile rbd")
			}
			p := connect(t, cfg)
			image := backendtest.Create(t, p, "a", 8<<20)
			h, err := p.Open(t.Context(), image.Name, backend.ReadWrite)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Remove(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				left := testbed.RBD(t, "trash", "ls", "--all", cfg.Pool+"/"+cfg.Namespace)
				if left == "" {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("in the trash: %s", left)
				}
			}
		})
	}
}

// Killed in the midst of librbd's own create, the plugin leaves a name without
// an image.
func TestAnImageThatWasHalfMadeIsMadeAnew(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	at := []string{"-c", testbed.Conf(), "-p", cfg.Pool, "-N", cfg.Namespace}
	image := backendtest.Create(t, p, "a", 8<<20)
	testbed.Run(t, "rados", append(at, "rm", "rbd_header."+image.ID, "rbd_object_map."+image.ID)...)
	if exists, err := p.Exists(t.Context(), "a"); err != nil || exists {
		t.Errorf("exists: %v, %v", exists, err)
	}
	again := backendtest.Create(t, p, "a", 16<<20)
	if again.ID == image.ID || again.Size != 16<<20 {
		t.Errorf("made anew: %+v, was %+v", again, image)
	}
	names, err := p.Names(t.Context())
	if err != nil || len(names) != 1 {
		t.Errorf("names: %v, %v", names, err)
	}
}

// A clone that was never written holds what its parent holds.
func TestACloneIsNotEmpty(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	at := cfg.Pool + "/" + cfg.Namespace + "/"
	testbed.Run(t, "sh", "-c", "head -c 8M /dev/urandom | rbd -c "+testbed.Conf()+" import --no-progress - "+at+"golden")
	testbed.RBD(t, "snap", "create", at+"golden@s")
	testbed.RBD(t, "clone", "--rbd-default-clone-format", "2", at+"golden@s", at+"clone")
	h, err := p.Open(t.Context(), "clone", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	used, known, err := h.DiskUsage(t.Context())
	if err != nil || used == 0 || !known {
		t.Errorf("used: %d, %v, %v", used, known, err)
	}
	if empty, sure, err := h.Empty(t.Context()); err != nil || empty || !sure {
		t.Errorf("empty: %v, %v, %v", empty, sure, err)
	}
	_ = h.Close(t.Context())
}

func TestARecordThatIsNotOursIsLeftAlone(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	testbed.Run(t, "sh", "-c", "echo not json | rados -c "+testbed.Conf()+" -p "+cfg.Pool+" -N "+cfg.Namespace+" put docker_volume.guard.x -")
	var g guard.Record
	_, err := p.Load(t.Context(), "guard.x", &g)
	if err == nil || errors.Is(err, backend.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// An image of format 1 has no id, so it cannot be guarded.
func TestAnImageOfFormat1IsRefused(t *testing.T) {
	cfg := testbed.Namespace(t)
	name := "format-1"
	t.Setenv("RBD_FORCE_ALLOW_V1", "1") // what librbd's own tests do
	testbed.RBD(t, "create", "--image-format", "1", "--size", "8M", "rbd/"+name)
	t.Cleanup(func() { testbed.RBD(t, "rm", "--no-progress", "rbd/"+name) })
	cfg.Namespace = "" // there are none in a namespace
	p := connect(t, cfg)
	_, err := p.Open(t.Context(), name, backend.ReadOnly)
	if !errors.Is(err, backend.ErrUnusable) || !strings.Contains(err.Error(), "rbd migration prepare") {
		t.Error(err)
	}
}

// Without Unlock the next writer would fence the dead one a second time.
func TestTheLockOfAFencedClientIsBroken(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	image := backendtest.Create(t, p, "a", 8<<20)
	conn, err := rbd.Connect(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Shutdown()
	addr, err := conn.GetAddrs()
	if err != nil {
		t.Fatal(err)
	}
	ioctx, err := conn.OpenIOContext(cfg.Pool)
	if err != nil {
		t.Fatal(err)
	}
	defer ioctx.Destroy()
	ioctx.SetNamespace(cfg.Namespace)
	owner, err := ceph.OpenImage(ioctx, image.Name, ceph.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Close() }()
	if err := owner.LockAcquire(ceph.LockModeExclusive); err != nil {
		t.Fatal(err)
	}
	owners := func() []string {
		t.Helper()
		all, err := ioctx.ListLockers("rbd_header."+image.ID, "rbd_lock")
		if err != nil {
			t.Fatal(err)
		}
		return all.Addrs
	}
	h, err := p.Open(t.Context(), image.Name, backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close(t.Context()) }()
	if err := h.BreakLock(t.Context()); err != nil || len(owners()) != 1 {
		t.Errorf("the lock of a live client: %v, %v", owners(), err)
	}
	if err := p.Fence(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	ioctx = fresh(t, cfg) // the other's is fenced
	if err := h.BreakLock(t.Context()); err != nil || len(owners()) != 0 {
		t.Errorf("owners %v, %v", owners(), err)
	}
	if err := h.BreakLock(t.Context()); err != nil {
		t.Error("nothing is locked:", err)
	}
}

// fresh is a context of a client of its own.
func fresh(t *testing.T, cfg rbd.Config) *rados.IOContext {
	t.Helper()
	conn, err := rbd.Connect(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Shutdown)
	ioctx, err := conn.OpenIOContext(cfg.Pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ioctx.Destroy)
	ioctx.SetNamespace(cfg.Namespace)
	return ioctx
}

// The id tells the devices of one cluster from those of another.
func TestWhichClusterItIs(t *testing.T) {
	whole, err := os.ReadFile(testbed.Conf())
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^\s*fsid\s*=\s*(\S+)$`)
	is := line.FindStringSubmatch(string(whole))
	if is == nil {
		t.Fatalf("the cluster's configuration has no fsid: %s", whole)
	}
	const other = "00000000-95df-4e57-9d4d-36c3516b51ca"
	for _, row := range []struct{ name, fsid, want, kernelSays string }{
		{"the file says it", is[0], is[1], ""},
		{"the file does not", "", is[1], ""},
		{"the file names another", "fsid = " + other, other, "has fsid = " + other + ", but the cluster is " + is[1]},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := testbed.Namespace(t)
			cfg.ConfFile = filepath.Join(t.TempDir(), "ceph.conf")
			if err := os.WriteFile(cfg.ConfFile, line.ReplaceAll(whole, []byte(row.fsid)), 0o600); err != nil {
				t.Fatal(err)
			}
			p := connect(t, cfg)
			for range 2 {
				if got, err := p.FSID(t.Context()); err != nil || got != row.want {
					t.Errorf("got %q, %v; want %q", got, err, row.want)
				}
			}
			_, err := p.Kernel(t.Context())
			if (err == nil) != (row.kernelSays == "") || err != nil && (!errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), row.kernelSays)) {
				t.Errorf("what the kernel has to be told: %v", err)
			}
		})
	}
}

// A pool that is deleted under a connected client, or made anew under the same
// name: nothing in it may look as if it were just not there.
func TestAPoolThatIsDeleted(t *testing.T) {
	const pool = "doomed"
	testbed.Ceph(t, "osd", "pool", "create", pool)
	remove := func() { testbed.Ceph(t, "osd", "pool", "rm", pool, pool, "--yes-i-really-really-mean-it") }
	t.Cleanup(remove)
	testbed.RBD(t, "pool", "init", pool)
	p := connect(t, rbd.Config{Cluster: "ceph", ConfFile: testbed.Conf(), User: "client.tests", Pool: pool, Log: testbed.Log(t)})
	backendtest.Create(t, p, "a", 8<<20)
	remove()
	for name, ask := range map[string]func() error{
		"names": func() error { _, err := p.Names(t.Context()); return err },
		"open":  func() error { _, err := p.Open(t.Context(), "a", backend.ReadOnly); return err },
		"load":  func() error { _, err := p.Load(t.Context(), "x", new(any)); return err },
	} {
		if err := ask(); !errors.Is(err, backend.ErrUnavailable) || errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), "no pool of this name") {
			t.Errorf("%s: %v", name, err)
		}
	}
	testbed.Ceph(t, "osd", "pool", "create", pool)
	testbed.RBD(t, "pool", "init", pool)
	if names, err := p.Names(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("of the new pool: %v, %v", names, err)
	}
	backendtest.Create(t, p, "b", 8<<20)
}

// Without space nothing new can be written, and nobody waits for some; what needs
// none, such as giving a guard back, is done.
func TestAFullCluster(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	backendtest.Create(t, p, "a", 8<<20)
	version, err := p.CompareAndSwap(t.Context(), "guard", 0, "mine")
	if err != nil {
		t.Fatal(err)
	}
	fill := func(state string) {
		testbed.Ceph(t, "tell", "osd.0", "injectfull", state, "1000000")
		is := func() bool { return strings.Contains(testbed.Ceph(t, "health", "--format", "json"), `"POOL_FULL"`) }
		for end := time.Now().Add(30 * time.Second); is() != (state == "full"); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the cluster does not know that it is filled: %s", state)
			}
		}
	}
	fill("full")
	t.Cleanup(func() { fill("none") })
	full := p.Create(t.Context(), backend.ImageSpec{Name: "b", Size: 8 << 20, Features: []string{"exclusive-lock"}})
	if full == nil || !strings.Contains(full.Error(), "is full, or over its quota") {
		t.Errorf("create: %v", full)
	}
	if _, err := p.CompareAndSwap(t.Context(), "other", 0, "new"); err == nil || !strings.Contains(err.Error(), "is full, or over its quota") {
		t.Errorf("a new record: %v", err)
	}
	if err := p.Delete(t.Context(), "guard", version); err != nil {
		t.Errorf("giving back: %v", err)
	}
	h, err := p.Open(t.Context(), "a", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	// The first removal of a namespace makes its trash, for which there is no space.
	if err := h.Remove(t.Context(), 0); err == nil || errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), "is the cluster full?") {
		t.Errorf("removing without a trash: %v", err)
	}
	_ = h.Close(t.Context())
	fill("none")
	remove := func(name string) {
		t.Helper()
		h, err := p.Open(t.Context(), name, backend.ReadWrite)
		if err == nil {
			err = h.Remove(t.Context(), 0)
		}
		if err != nil {
			t.Errorf("removing %s: %v", name, err)
		}
	}
	backendtest.Create(t, p, "c", 8<<20)
	remove("c")
	fill("full")
	remove("a")
}

// Large images without a valid account of their objects, as rbd feature enable leaves
// them: to ask for each object takes minutes, and would go on when nobody waits any more.
func TestALargeImageIsLookedAtWithoutAWalk(t *testing.T) {
	cfg := testbed.Namespace(t)
	p := connect(t, cfg)
	at := cfg.Pool + "/" + cfg.Namespace + "/"
	const size = 4 << 40
	for name, object := range map[string]uint64{"nothing": 0, "at its beginning": 7, "at its end": size/(4<<20) - 9} {
		t.Run(name, func(t *testing.T) {
			image := "i" + strings.ReplaceAll(name, " ", "")
			testbed.RBD(t, "create", "--size", "4T", "--image-feature", "layering,exclusive-lock", at+image)
			testbed.RBD(t, "feature", "enable", at+image, "object-map", "fast-diff")
			h, err := p.Open(t.Context(), image, backend.ReadWrite)
			if err != nil {
				t.Fatal(err)
			}
			if object != 0 {
				object := fmt.Sprintf("rbd_data.%s.%016x", h.Image().ID, object)
				testbed.Run(t, "sh", "-c", "echo x | rados -c "+testbed.Conf()+" -p "+cfg.Pool+" -N "+cfg.Namespace+" put "+object+" -")
			}
			start := testbed.Operations(t)
			used, known, err := h.DiskUsage(t.Context())
			if err != nil || known {
				t.Errorf("used: %d, %v, %v", used, known, err)
			}
			empty, sure, err := h.Empty(t.Context())
			if err != nil || empty != (object == 0) || sure {
				t.Errorf("empty: %v, %v, %v", empty, sure, err)
			}
			if n := testbed.Operations(t) - start; n > 2000 {
				t.Errorf("%d operations on the cluster, of a million objects", n)
			}
			_ = h.Close(t.Context())
		})
	}
}
