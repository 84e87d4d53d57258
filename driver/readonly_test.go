package driver_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

func TestSharedVolumes(t *testing.T) { inVirtualTime(t, testSharedVolumes) }

func testSharedVolumes(t *testing.T) {
	c, one, two := origin(t)
	one.create("w", map[string]string{"snapshot": "v@s"})
	one.mount("w", "1")
	two.mount("w", "1")
	one.mount("w", "2")
	if err := two.write("w", "ext4 spoilt"); err == nil {
		t.Error("it was written")
	}
	two.holds("w", "ext4 data")
	check(t, one.Driver.Remove(within(t, soon), "w"), backend.ErrBusy, "2 containers")
	check(t, one.Rollback(within(t, soon), "w", "x"), backend.ErrNotFound)
	one.unmount("w", "1")
	one.unmount("w", "2")
	check(t, one.Driver.Remove(within(t, soon), "w"), backend.ErrInUse, two.client.Addr(), "read-only by node two", "Guard.Fence")
	// The plugin comes back, and so does its watch; a container has it meanwhile.
	release, err := two.Hold(two.path("w"))
	if err != nil {
		t.Fatal(err)
	}
	two.restart()
	two.Reconcile(within(t, ever))
	check(t, one.Driver.Remove(within(t, soon), "w"), backend.ErrInUse, two.client.Addr())
	two.client.Kill()
	two.reconnect()
	two.Reconcile(within(t, ever))
	check(t, one.Driver.Remove(within(t, soon), "w"), backend.ErrInUse, two.client.Addr())
	release()
	two.Reconcile(within(t, ever))
	if d := two.device("w"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	if err := one.Driver.Remove(within(t, ever), "w"); err != nil {
		t.Error(err)
	}
	// A copy of a read-only volume is not read-only.
	one.create("w", map[string]string{"snapshot": "v@s"})
	one.mount("w", "1")
	one.create("x", map[string]string{"from": "w"})
	two.mount("x", "1")
	if err := two.write("x", "ext4 own"); err != nil {
		t.Error(err)
	}
	// By hand: what is mounted to be written to is not shared.
	h, err := one.client.Open(within(t, ever), "x", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetMeta(within(t, ever), map[string]string{"readonly": "true"}); err != nil {
		t.Fatal(err)
	}
	one.refused("x", "1", backend.ErrInUse, "node two")
	two.unmount("x", "1")
	one.mount("x", "1")
	two.mount("x", "1")
	if _, _, held := one.guard("x"); held || len(c.Flattened()) != 0 {
		t.Error("there is a guard of a read-only volume")
	}
	// Larger or not, nobody may write to it.
	c.Resize("x", 2<<30)
	if one.grows() {
		t.Error("a read-only filesystem was to be grown")
	}
}

func TestAReadOnlyVolumeThatWasWritableMeanwhile(t *testing.T) {
	c, one, two := origin(t)
	one.create("x", map[string]string{"from": "v", "readonly": "true"})
	one.mount("x", "1")
	if m, _ := one.mountOf("x"); !strings.HasSuffix(m.Options, "noatime,commit=9,errors=remount-ro,ro") {
		t.Errorf("mounted with %s", m.Options)
	}
	one.unmount("x", "1")
	readonly := func(value string) {
		t.Helper()
		h, err := two.client.Open(within(t, ever), "x", backend.ReadOnly)
		if err == nil {
			err = h.SetMeta(within(t, ever), map[string]string{"readonly": value})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// What comes back by a roll-back may have a journal to replay.
	c.Snapshot("x", "s")
	check(t, one.Rollback(within(t, ever), "x", "s"), backend.ErrInvalid, "read-only")
	readonly("false")
	if err := one.Rollback(within(t, ever), "x", "s"); err != nil {
		t.Fatal(err)
	}
	readonly("true")
	seen := order(one, "Filesystem.Check")
	one.mount("x", "1")
	if len(*seen) != 1 {
		t.Error("it was shared as it came back")
	}
	one.unmount("x", "1")
	// It becomes writable just when it was found to be read-only.
	one.tap.on(func(call string) error {
		if call == "Images.Open to write" {
			readonly("false")
		}
		return nil
	})
	one.refused("x", "1", backend.ErrInUse, "made writable again meanwhile")
	one.tap.on(nil)
	one.mount("x", "1")
	if err := one.write("x", "ext4 own"); err != nil {
		t.Error(err)
	}
}

// Whoever waits for a volume whose holder is no watcher takes that for dead.
func TestWhoSealsAVolumeIsAWatcherThroughout(t *testing.T) {
	synctest.Test(t, testWhoSealsAVolumeIsAWatcherThroughout)
}

func testWhoSealsAVolumeIsAWatcherThroughout(t *testing.T) {
	for name, options := range map[string]map[string]string{"w": {"snapshot": "v@s"}, "x": {"from": "v", "readonly": "true"}} {
		_, one, two := origin(t)
		one.create(name, options)
		looked := 0
		look := func(call string) {
			g, _, held := two.guard(name)
			if !held || g.State != "mapped" {
				return
			}
			looked++
			watchers := watchersOf(t, two, name)
			if !slices.ContainsFunc(g.Addrs, func(a string) bool { return slices.Contains(watchers, a) }) {
				t.Errorf("%s, at %s: the guard names %v, and watchers are %v", name, call, g.Addrs, watchers)
			}
			if _, err := two.Driver.Mount(within(t, 20*time.Millisecond), name, "2"); err == nil { // swarm asks again and again
				t.Errorf("%s, at %s: the other node has it", name, call)
			}
		}
		one.tap.on(func(call string) error { look("before " + call); return nil })
		one.tap.then = func(call string) { look("after " + call) }
		one.mount(name, "1")
		one.tap.before, one.tap.then = nil, nil
		if looked < 10 || strings.Contains(two.log.String(), "fenced") {
			t.Errorf("%s: looked %d times; the log of the node that waits:\n%s", name, looked, two.log)
		}
		two.mount(name, "1")
	}
}

// Made read-only while a container writes to it, it stays as it is, and so does its guard.
func TestAVolumeIsNotSealedUnderAContainer(t *testing.T) {
	synctest.Test(t, testAVolumeIsNotSealedUnderAContainer)
}

func testAVolumeIsNotSealedUnderAContainer(t *testing.T) {
	_, one, _ := origin(t)
	one.create("x", map[string]string{"from": "v"})
	one.mount("x", "1")
	h, err := one.client.Open(within(t, ever), "x", backend.ReadOnly)
	if err == nil {
		err = h.SetMeta(within(t, ever), map[string]string{"readonly": "true"})
	}
	if err != nil {
		t.Fatal(err)
	}
	release, err := one.Hold(one.path("x"))
	if err != nil {
		t.Fatal(err)
	}
	before := one.guardOf("x")
	one.restart()
	one.mount("x", "2")
	if after := one.guardOf("x"); !slices.Equal(before.Addrs, after.Addrs) {
		t.Errorf("the guard names %v, and named %v", after.Addrs, before.Addrs)
	}
	if err := one.write("x", "ext4 more"); err != nil {
		t.Error(err)
	}
	release()
	one.unmount("x", "2")
	one.mount("x", "3")
	if err := one.write("x", "ext4 spoilt"); err == nil {
		t.Error("it was written")
	}
}
