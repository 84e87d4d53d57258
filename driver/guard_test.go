package driver_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
)

func twoNodes(t *testing.T) (c *memory.Cluster, one, two *node) {
	c = memory.NewCluster()
	return c, newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
}

func TestALiveHolderIsNamedAndLeftAlone(t *testing.T) {
	synctest.Test(t, testALiveHolderIsNamedAndLeftAlone)
}

func testALiveHolderIsNamedAndLeftAlone(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	g, _, _ := one.guard("v")
	two.refused("v", "2", backend.ErrInUse, "mount volume v", "node one", g.Addrs[0], g.Since.Format("2006-01-02T15:04"))
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error("the holder noticed:", err)
	}
	check(t, two.Driver.Remove(within(t, ever), "v"), backend.ErrInUse, "remove volume v", "node one")
}

func TestTheNextNodeHasTheVolumeWhenTheFirstLetsGo(t *testing.T) {
	_, one, two := twoNodes(t)
	two.poll = time.Second // much longer than to unmap and then give the guard back
	two.start()
	one.create("v", nil)
	one.mount("v", "1")
	got := make(chan error)
	go func() {
		_, err := two.Driver.Mount(within(t, ever), "v", "2")
		got <- err
	}()
	if err := one.write("v", "ext4 data"); err != nil {
		t.Fatal(err)
	}
	one.unmount("v", "1")
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	two.holds("v", "ext4 data")
	if strings.Contains(two.log.String(), "fenced") {
		t.Error("a planned move fenced somebody")
	}
}

// The holder lets go right after its guard was read: what then looks like its
// death is none.
func TestWhoLetsGoWhileItIsLookedAtIsNotFenced(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	two.tap.on(func(call string) error {
		if call == "Handle.Watchers" {
			two.tap.on(nil)
			one.unmount("v", "1")
		}
		return nil
	})
	two.mount("v", "2")
	if strings.Contains(two.log.String(), "fenced") {
		t.Error("a planned move fenced somebody")
	}
}

func TestADeadHolderIsFencedForGood(t *testing.T) { inVirtualTime(t, testADeadHolderIsFencedForGood) }

func testADeadHolderIsFencedForGood(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	stale := one.device("v")
	g, _, _ := one.guard("v")
	one.crash()
	one.Host.Cut() // partitioned: the kernel, the mount and its containers live on
	two.mount("v", "2")
	if err := one.Host.Write(stale, "ext4 corrupt"); err == nil {
		t.Error("the old mapping can write")
	}
	if fenced, err := two.client.Fenced(within(t, ever), g.Addrs...); err != nil || !fenced[g.Addrs[0]] {
		t.Errorf("fenced: %v, %v", fenced, err)
	}

	one.start() // the node comes back
	one.Reconcile(within(t, ever))
	if d := one.device("v"); d != "" {
		t.Errorf("the returned node still has %s", d)
	}
	if !strings.Contains(one.log.String(), "dropping the mapping") {
		t.Errorf("it does not say so:\n%s", one.log)
	}
	one.refused("v", "3", backend.ErrInUse, "node two")
	if err := two.write("v", "ext4 data"); err != nil {
		t.Error("the new holder noticed:", err)
	}
}

// A paused node wakes up in the midst of its mount, when the guard is another's.
func TestAHolderThatDidNotMapYetIsNotFencedAndLosesItsSwap(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call == "Mapper.Map" { // the guard says mapping; now the node stands still
			one.tap.on(nil)
			one.client.Kill()
			two.mount("v", "2")
			if err := two.write("v", "ext4 data"); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	one.refused("v", "1", backend.ErrConflict)
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	two.holds("v", "ext4 data")
	if strings.Contains(two.log.String(), "fenced") {
		t.Error("somebody was fenced who had written nothing")
	}
}

// The holder pauses when the filesystem is made and not yet marked. The next
// one makes its own; what the first does when it wakes up must change nothing.
func TestAPausedFormatterChangesNothing(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call == "Handle.SetMeta" {
			one.tap.on(nil)
			one.client.Kill()
			one.Host.Cut()
			two.mount("v", "2")
			if err := two.write("v", "ext4 data"); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if _, err := one.Driver.Mount(within(t, ever), "v", "1"); err == nil {
		t.Error("it was mounted twice")
	}
	two.unmount("v", "2")
	two.mount("v", "3")
	two.holds("v", "ext4 data")
}

// Between the look at the guard and the swap another node has formatted,
// filled and released the volume: what was known before is out of date.
func TestWhatWasReadBeforeTheGuardIsReadAgain(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call == "Records.CompareAndSwap guard" {
			one.tap.on(nil)
			two.mount("v", "2")
			if err := two.write("v", "ext4 data"); err != nil {
				t.Error(err)
			}
			two.unmount("v", "2")
		}
		return nil
	})
	one.mount("v", "1")
	one.holds("v", "ext4 data")
}

func TestTheSameNodeAfterARebootDoesNotWait(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Fatal(err)
	}
	// The old client is still a watcher: Ceph gives it up after 30 s only.
	old, err := one.cluster.Connect(one.IP).Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close(context.Background()) }()
	g, version, _ := one.guard("v")
	g.Addrs = []string{old.ClientAddr()}
	one.reboot()
	if _, err := one.client.CompareAndSwap(within(t, ever), "guard."+old.Image().ID, version, g); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Driver.Mount(within(t, soon*5), "v", "2"); err != nil {
		t.Fatal(err)
	}
	one.holds("v", "ext4 data")
}

func TestAClonedMachineIsAnotherNode(t *testing.T) { inVirtualTime(t, testAClonedMachineIsAnotherNode) }

func testAClonedMachineIsAnotherNode(t *testing.T) {
	c, one, _ := twoNodes(t)
	clone := newNode(t, c, "one", "10.0.0.9")
	clone.boot = one.boot
	clone.start()
	one.create("v", nil)
	one.mount("v", "1")
	clone.refused("v", "2", backend.ErrInUse, "node one", "10.0.0.1")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error(err)
	}
}

func TestAWatcherThatIsNotOursIsInUse(t *testing.T) {
	synctest.Test(t, testAWatcherThatIsNotOursIsInUse)
}

func testAWatcherThatIsNotOursIsInUse(t *testing.T) {
	c, one, two := twoNodes(t)
	one.create("v", nil)
	vm, err := c.Connect("10.9.9.9").Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	one.refused("v", "1", backend.ErrInUse, vm.ClientAddr(), "no volume of this plugin")
	if _, _, held := one.guard("v"); held {
		t.Error("the guard was not given back")
	}
	if err := vm.SetMeta(within(t, ever), map[string]string{"x": "1"}); err != nil {
		t.Error("the virtual machine was fenced")
	}
	_ = vm.Close(context.Background())
	two.mount("v", "2")
}

func TestAGuardDeletedByHandIsPutBack(t *testing.T) {
	synctest.Test(t, testAGuardDeletedByHandIsPutBack)
}

func testAGuardDeletedByHandIsPutBack(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	before, version, _ := one.guard("v")
	if err := one.client.Delete(within(t, ever), "guard."+h.Image().ID, version); err != nil {
		t.Fatal(err)
	}
	one.Reconcile(within(t, ever))
	after, _, ok := one.guard("v")
	if !ok || !slices.Equal(after.Addrs, before.Addrs) || after.Node != "one" {
		t.Errorf("the guard is %+v, was %+v", after, before)
	}
	two.refused("v", "2", backend.ErrInUse, "node one")
}

func TestAMountWithoutReferencesIsLetGo(t *testing.T) {
	synctest.Test(t, testAMountWithoutReferencesIsLetGo)
}

func testAMountWithoutReferencesIsLetGo(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	release, err := one.Host.Hold(one.path("v"))
	if err != nil {
		t.Fatal(err)
	}
	one.restart() // a crashed engine sends no Unmount either
	one.Reconcile(within(t, ever))
	if one.device("v") == "" || one.Path(context.Background(), "v") == "" {
		t.Fatal("it was taken from a container that uses it")
	}
	two.refused("v", "2", backend.ErrInUse, "node one")
	release()
	one.Reconcile(within(t, ever))
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	two.mount("v", "2")
}

func TestALateUnmountOfBeforeARestartDoesNoHarm(t *testing.T) {
	synctest.Test(t, testALateUnmountOfBeforeARestartDoesNoHarm)
}

func testALateUnmountOfBeforeARestartDoesNoHarm(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "old")
	release, err := one.Host.Hold(one.path("v"))
	if err != nil {
		t.Fatal(err)
	}
	one.restart()
	one.unmount("v", "unknown") // another container's, from before
	one.holds("v", "ext4")
	one.mount("v", "new")
	one.unmount("v", "old") // this one has references of its own
	if one.Path(context.Background(), "v") == "" {
		t.Error("unmounted under a container that had just mounted it")
	}
	release()
	one.unmount("v", "new")
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
}

func TestABrokenDataPathIsReplaced(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	one.Host.Break(h.Image().ID)
	one.mount("v", "2")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error(err)
	}
	one.unmount("v", "1") // of a container that had the broken one
	if one.Path(context.Background(), "v") == "" {
		t.Error("the new mount went with the old reference")
	}
	one.unmount("v", "2")
}

// An operator has fenced the node; nobody has taken over yet.
func TestAFencedMappingIsDropped(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	g, _, _ := one.guard("v")
	if err := two.client.Fence(within(t, ever), g.Addrs...); err != nil {
		t.Fatal(err)
	}
	one.Reconcile(within(t, ever))
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	one.mount("v", "2")
	one.holds("v", "ext4")
}

// A node stands still in the midst of a removal, and another takes the volume:
// when the first wakes up, nothing may be removed.
func TestALateRemovalRemovesNothing(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call == "Handle.Remove" {
			one.tap.on(nil)
			one.client.Kill()
			two.mount("v", "2")
		}
		return nil
	})
	if err := one.Driver.Remove(within(t, ever), "v"); err == nil {
		t.Error("it was removed")
	}
	two.holds("v", "ext4")
	two.unmount("v", "2")
	two.mount("v", "3")
}

// The plugin dies before it has mapped. Its control client may be a watcher for
// another 30 s, and every notification of librbd would wait for it.
func TestTheDeadControlClientOfTheSameNodeIsFenced(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	dead := ""
	one.tap.on(func(call string) error {
		if call == "Mapper.Map" {
			g, _, _ := one.guard("v")
			dead = g.Addrs[0]
			one.tap.die()
		}
		return nil
	})
	if _, err := one.Driver.Mount(within(t, ever), "v", "1"); err == nil || dead == "" {
		t.Fatal("it was mounted")
	}
	one.start() // and Ceph still believes in the dead one
	one.mount("v", "1")
	if fenced, err := one.client.Fenced(within(t, ever), dead); err != nil || !fenced[dead] {
		t.Errorf("fenced: %v, %v", fenced, err)
	}
}

// Somebody has overwritten the guard by hand: what is in doubt is not ours.
func TestAMappingUnderAnothersGuardIsDropped(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	g, version, _ := one.guard("v")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	g.Node, g.Addrs = "two", []string{"10.0.0.2:0/77"}
	if _, err := one.client.CompareAndSwap(within(t, ever), "guard."+h.Image().ID, version, g); err != nil {
		t.Fatal(err)
	}
	one.Reconcile(within(t, ever))
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
}

// The plugin dies between its guard and its watch. Ceph has no watcher of it,
// so nobody waits: neither the next node nor this one.
func TestNobodyWaitsForAGuardWithoutAWatcher(t *testing.T) {
	for name, next := range map[string]func(one, two *node) *node{
		"another node": func(_, two *node) *node { return two },
		"the same":     func(one, _ *node) *node { one.start(); return one },
	} {
		t.Run(name, func(t *testing.T) {
			_, one, two := twoNodes(t)
			one.create("v", nil)
			one.tap.on(func(call string) error {
				if call == "Images.Open to write" {
					one.tap.die()
					return errCrashed
				}
				return nil
			})
			if _, err := one.Driver.Mount(within(t, ever), "v", "1"); err == nil {
				t.Fatal("it was mounted")
			}
			if g, _, _ := one.guard("v"); g.State != "mapping" {
				t.Fatalf("guard %+v", g)
			}
			next(one, two).mount("v", "2")
		})
	}
}

// An image of wetopi's plugin, say.
func TestAnImageWithoutExclusiveLockGetsIt(t *testing.T) {
	synctest.Test(t, testAnImageWithoutExclusiveLockGetsIt)
}

func testAnImageWithoutExclusiveLockGetsIt(t *testing.T) {
	c, one, two := twoNodes(t)
	maker := c.Connect("10.9.9.9")
	if err := maker.Create(within(t, ever), backend.ImageSpec{Name: "v", Size: 8 << 20, Features: []string{"layering"}}); err != nil {
		t.Fatal(err)
	}
	h, err := maker.Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	features := func() []string {
		h, err := maker.Open(within(t, ever), "v", backend.ReadOnly)
		if err != nil {
			t.Fatal(err)
		}
		return h.Image().Features
	}
	one.refused("v", "1", backend.ErrInUse, "10.9.9.9")
	if slices.Contains(features(), backend.FeatureLock) {
		t.Error("it was switched on while somebody used the image")
	}
	_ = h.Close(context.Background())
	device, err := one.Host.Map(within(t, ever), h.Image(), backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.Host.Write(device.Device, "ext4 old"); err != nil {
		t.Fatal(err)
	}
	if err := one.Host.Unmap(within(t, ever), device.ID); err != nil {
		t.Fatal(err)
	}
	one.mount("v", "1")
	if !slices.Contains(features(), backend.FeatureLock) {
		t.Errorf("features %v", features())
	}
	stale := one.device("v")
	one.crash()
	one.Host.Cut()
	two.mount("v", "2")
	two.holds("v", "ext4 old")
	if err := one.Host.Write(stale, "ext4 corrupt"); err == nil {
		t.Error("the old mapping can write")
	}
}

// While it waits for somebody else's watch, a node loses the guard that it had.
// It must see that: two could else wait for each other's watch.
func TestTheGuardIsLostWhileWaitingForWatchers(t *testing.T) {
	synctest.Test(t, testTheGuardIsLostWhileWaitingForWatchers)
}

func testTheGuardIsLostWhileWaitingForWatchers(t *testing.T) {
	c, one, two := twoNodes(t)
	one.create("v", nil)
	vm, err := c.Connect("10.9.9.9").Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	opened := false
	one.tap.on(func(call string) error {
		switch {
		case call == "Images.Open to write":
			opened = true
		case call == "Records.Load" && opened: // it has seen the other watcher
			one.tap.on(nil)
			if _, err := two.FenceNode(within(t, ever), "one", ""); err != nil {
				t.Error(err)
			}
			one.tap.Client = one.cluster.Connect(one.IP)
			_ = vm.Close(context.Background())
		}
		return nil
	})
	one.mount("v", "1")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error(err)
	}
	two.refused("v", "2", backend.ErrInUse, "node one")
}

// After a node has looked at what it has mapped, and before it reads the guard,
// another takes the volume over and lets it go again.
func TestAStaleMappingUnderAFreeGuardIsDropped(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	if _, err := one.Host.Hold(one.path("v")); err != nil {
		t.Fatal(err)
	}
	one.restart()
	one.tap.on(func(call string) error {
		if call == "Images.Open" {
			one.tap.on(nil)
			one.Host.Cut()
			two.mount("v", "2")
			if err := two.write("v", "ext4 two"); err != nil {
				t.Error(err)
			}
			two.unmount("v", "2")
		}
		return nil
	})
	one.mount("v", "3")
	one.holds("v", "ext4 two")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error(err)
	}
}

// A mount that containers would not see is undone. When no volume is in use here
// the plugin ends: Docker's start of it is the cure.
func TestAHiddenMountEndsThePluginIfThatHarmsNobody(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.create("w", nil)
	one.mount("w", "1")
	one.tap.on(func(call string) error {
		if call == "Filesystem.Mount" {
			return backend.ErrNotPropagated
		}
		return nil
	})
	one.refused("v", "1", backend.ErrNotPropagated, "mount volume v")
	if one.ended != 0 {
		t.Error("the plugin has ended under a container")
	}
	one.unmount("w", "1")
	one.refused("v", "1", backend.ErrNotPropagated)
	if d := one.device("v"); one.ended != 1 || d != "" {
		t.Errorf("ended %d times; v is mapped as %q", one.ended, d)
	}
}

// It does so before somebody wants to mount, too.
func TestHiddenMountsAreNoticedByThemselves(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	one.tap.on(func(call string) error {
		if call == "Filesystem.CheckPropagation" {
			return backend.ErrNotPropagated
		}
		return nil
	})
	one.Reconcile(within(t, ever))
	if one.ended != 0 {
		t.Error("the plugin has ended under a container")
	}
	one.unmount("v", "1")
	one.Reconcile(within(t, ever))
	if one.ended != 1 {
		t.Errorf("ended %d times", one.ended)
	}
}

// A mount that errors have made read-only is seen in the status, and made anew
// for the next container, unless others still have it.
func TestAMountThatErrorsHaveMadeReadOnlyIsMadeAnew(t *testing.T) {
	synctest.Test(t, testAMountThatErrorsHaveMadeReadOnlyIsMadeAnew)
}

func testAMountThatErrorsHaveMadeReadOnlyIsMadeAnew(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	if err := one.write("v", "ext4 kept"); err != nil {
		t.Fatal(err)
	}
	one.Spoil(one.device("v"))
	v, err := one.Get(within(t, ever), "v")
	if err != nil || !strings.Contains(fmt.Sprint(v.Status["error"]), "read-only; restart its containers") {
		t.Errorf("status: %v, %v", v.Status, err)
	}
	release, err := one.Hold(one.path("v"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = one.Driver.Mount(within(t, ever), "v", "2")
	check(t, err, backend.ErrBusy, "read-only", "stop all of them")
	one.Reconcile(within(t, ever))
	if one.device("v") == "" {
		t.Error("unmapped under a container")
	}
	release()
	before := one.device("v")
	one.mount("v", "2")
	if one.device("v") == before {
		t.Error("mounted as it was")
	}
	one.holds("v", "ext4 kept")
	v, err = one.Get(within(t, ever), "v")
	if err != nil || v.Status["error"] != nil {
		t.Errorf("status: %v, %v", v.Status, err)
	}
	one.unmount("v", "1") // of the container from before
	if one.device("v") == "" {
		t.Error("unmapped under a container")
	}
	one.unmount("v", "2")
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
}

// What a kernel is still at, for a request that has ended, is waited for and
// taken away: its watcher is no stranger.
func TestALateMapIsTakenAwayBeforeTheNext(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call != "Mapper.Unmap" {
			return nil
		}
		one.tap.on(nil) // it is mapped at this very moment
		h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
		if err != nil {
			return err
		}
		_, err = one.Host.Map(within(t, ever), h.Image(), backend.ReadWrite)
		return err
	})
	one.mount("v", "1")
	if one.tap.before != nil {
		t.Error("the mapper was not asked to wait for what it is still at")
	}
}

// From the last swap on the guard names the mapping alone: a control client that
// went on watching would be a stranger to the next node, should this one die.
func TestOnlyWhatTheGuardNamesWatches(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	one.unmount("v", "1")
	looked := 0
	one.tap.on(func(call string) error {
		if call == "Filesystem.Check" || call == "Filesystem.Mount" {
			looked++
			h, err := two.client.Open(within(t, ever), "v", backend.ReadOnly)
			if err != nil {
				return err
			}
			watchers, err := h.Watchers(within(t, ever))
			g, _, _ := two.guard("v")
			if !slices.Equal(watchers, g.Addrs) {
				t.Errorf("before %s the watchers are %v, the guard names %v", call, watchers, g.Addrs)
			}
			return err
		}
		return nil
	})
	one.mount("v", "2")
	if looked != 2 {
		t.Errorf("looked %d times", looked)
	}
}

// To unmount or unmap while Ceph is away would hang in the kernel.
func TestWhileCephIsAwayNoMountIsTouched(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	away := func(call string) error {
		switch call {
		case "Mapper.Mappings", "Filesystem.Mounted":
			return nil
		case "Filesystem.Unmount", "Filesystem.LazyUnmount", "Mapper.Unmap", "Mapper.ForceUnmap", "Filesystem.Mount", "Filesystem.Check":
			t.Errorf("%s, although Ceph is away", call)
		}
		return fmt.Errorf("%w: no answer", backend.ErrUnavailable)
	}
	one.tap.on(away)
	one.mount("v", "2")
	one.Reconcile(within(t, ever))
	one.unmount("v", "2")
	check(t, one.Driver.Unmount(within(t, ever), "v", "1"), backend.ErrUnavailable)
	one.Shutdown(within(t, ever))
	one.tap.on(nil)
	one.Reconcile(within(t, ever)) // when it is back, what nobody uses goes
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
}

// What a mapping that lost its right has not written yet is to fail, not to be
// written by the very unmount; one whose data path is dead has nothing to write.
func TestAFenceComesBeforeWhatDropsAMapping(t *testing.T) {
	for _, dead := range []bool{false, true} {
		_, one, _ := twoNodes(t)
		one.create("v", nil)
		one.mount("v", "1")
		g, version, _ := one.guard("v")
		h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
		if err != nil {
			t.Fatal(err)
		}
		g.Node, g.Addrs = "two", []string{"10.0.0.2:0/77"}
		if _, err := one.client.CompareAndSwap(within(t, ever), "guard."+h.Image().ID, version, g); err != nil {
			t.Fatal(err)
		}
		if dead {
			one.Break(h.Image().ID)
		}
		one.tap.on(func(call string) error {
			if call == "Fences.Fence" {
				return backend.ErrUnavailable
			}
			return nil
		})
		one.Reconcile(within(t, ever))
		_, mounted := one.mountOf("v")
		if left := mounted || one.device("v") != ""; left == dead {
			t.Errorf("the fence failed, dead %v: mount or device left %v", dead, left)
		}
		one.tap.on(nil)
		one.Reconcile(within(t, ever))
		if _, mounted := one.mountOf("v"); mounted || one.device("v") != "" {
			t.Error("mount or device left")
		}
	}
}

// A snapshot that is mapped beside its image is not under the image's guard.
func TestASnapshotIsNotTakenForItsImage(t *testing.T) {
	c, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	one.unmount("v", "1")
	c.Snapshot("v", "monday")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	image := h.Image()
	image.Snap = "monday"
	snap, err := one.Host.Map(within(t, ever), image, backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	one.Reconcile(within(t, ever))
	one.mount("v", "2")
	if d, _ := one.mountOf("v"); d.Device == snap.Device {
		t.Error("the snapshot was mounted as the volume")
	}
	one.unmount("v", "2")
	if text, err := one.Host.Read(snap.Device); err != nil || text != "ext4" {
		t.Errorf("the snapshot reads %q, %v", text, err)
	}
	all, err := one.Host.Mappings(within(t, ever))
	if err != nil || len(all) != 1 || all[0] != snap {
		t.Errorf("mappings: %v, %v", all, err)
	}
}

// A mapper that did not find the device, for want of an open file perhaps, and took
// it for unmapped.
func TestTheGuardStaysUntilTheDeviceIsSeenToBeGone(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	one.tap.then = func(call string) {
		if call == "Mapper.Unmap" {
			if _, err := one.Host.Map(within(t, ever), h.Image(), backend.ReadWrite); err != nil {
				t.Error(err)
			}
		}
	}
	if err := one.Driver.Unmount(within(t, ever), "v", "1"); err == nil || !strings.Contains(err.Error(), one.device("v")) {
		t.Errorf("got %v", err)
	}
	if g, _, held := one.guard("v"); !held || g.Node != "one" {
		t.Errorf("the guard is %+v, %v", g, held)
	}
	one.tap.then = nil
	one.Reconcile(within(t, ever))
	two.mount("v", "2")
}
