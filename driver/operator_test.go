package driver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

func TestWhoHoldsWhat(t *testing.T) {
	_, one, two := twoNodes(t)
	for _, v := range []string{"free", "b", "a"} {
		one.create(v, nil)
	}
	one.mount("b", "1")
	two.mount("a", "2")
	two.Host.Cut() // Ceph has missed it
	all, err := one.GuardStatus(within(t, ever))
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	if h := all[0]; h.Volume != "a" || h.Node != "two" || h.State != "mapped" || h.Alive || h.Since.IsZero() {
		t.Errorf("%+v", h)
	}
	if h := all[1]; h.Volume != "b" || h.Node != "one" || !h.Alive || !strings.HasPrefix(h.Addrs[0], one.IP) {
		t.Errorf("%+v", h)
	}
}

// The operator knows that a node is dead; Ceph does not yet.
func TestAnOperatorsFenceTakesEverythingAtOnce(t *testing.T) {
	synctest.Test(t, testAnOperatorsFenceTakesEverythingAtOnce)
}

func testAnOperatorsFenceTakesEverythingAtOnce(t *testing.T) {
	_, one, two := twoNodes(t)
	stale := map[string]string{}
	for _, v := range []string{"v", "w"} {
		one.create(v, nil)
		one.mount(v, "1")
		stale[v] = one.device(v)
	}
	two.create("other", nil)
	two.mount("other", "1")
	two.refused("v", "2", backend.ErrInUse, "node one")

	taken, err := two.FenceNode(within(t, ever), "one", "")
	if err != nil || len(taken) != 2 || taken[0].Volume != "v" || taken[1].Volume != "w" {
		t.Fatal(taken, err)
	}
	for v, device := range stale {
		if _, _, held := two.guard(v); held {
			t.Errorf("volume %s is still guarded", v)
		}
		if err := one.Host.Write(device, "ext4 corrupt"); err == nil {
			t.Errorf("the fenced node can write to %s", v)
		}
	}
	two.mount("v", "2")

	one.start() // it was alive after all, and its plugin connects anew
	one.Reconcile(within(t, ever))
	if d := one.device("v") + one.device("w"); d != "" {
		t.Errorf("the fenced node still has %s", d)
	}
	if _, _, held := one.guard("w"); held {
		t.Error("the fenced node has put the guard back")
	}
	one.refused("v", "3", backend.ErrInUse, "node two")
	one.mount("w", "3") // it may have again what nobody took
	if err := two.write("other", "ext4 data"); err != nil {
		t.Error("the operator's own node was hit:", err)
	}
}

func TestAnOperatorsFenceIsRefused(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	fence := func(n *node, name string, kind error, says ...string) {
		t.Helper()
		taken, err := n.FenceNode(within(t, ever), name, "")
		check(t, err, kind, says...)
		if len(taken) > 0 {
			t.Errorf("taken: %+v", taken)
		}
	}
	fence(one, "one", backend.ErrInvalid, "fence node one", "this very node")
	fence(two, "", backend.ErrInvalid, "must name the node")
	fence(two, "onne", backend.ErrNotFound, "fence node onne", "nodes with volumes: one")
	// This node was called otherwise when it mounted, and had another address.
	one.crash()
	one.name, one.IP = "uno", "10.0.0.77"
	one.start()
	fence(one, "one", backend.ErrInvalid, "volume v", "10.0.0.1", "this very node")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error(err)
	}
}

// The node is not dead, and comes from mapping to mapped while it is fenced.
func TestAnOperatorsFenceMeetsANodeThatIsMounting(t *testing.T) {
	_, one, two := twoNodes(t)
	one.create("v", nil)
	one.tap.on(func(call string) error {
		if call != "Mapper.Map" {
			return nil
		}
		one.tap.on(nil)
		two.tap.on(func(call string) error {
			if call == "Fences.Fence" { // the guard was read as mapping
				two.tap.on(nil)
				h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
				if err != nil {
					return err
				}
				g, version, _ := one.guard("v")
				g.State, g.Addrs = "mapped", []string{"10.0.0.1:0/4711"}
				_, err = one.client.CompareAndSwap(within(t, ever), "guard."+h.Image().ID, version, g)
				return err
			}
			return nil
		})
		taken, err := two.FenceNode(within(t, ever), "one", "")
		if err != nil || len(taken) != 1 || !slices.Equal(taken[0].Addrs, []string{"10.0.0.1:0/4711"}) {
			t.Errorf("%+v, %v", taken, err)
		}
		return nil
	})
	if _, err := one.Driver.Mount(within(t, soon), "v", "1"); err == nil {
		t.Error("it was mounted")
	}
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
	two.mount("v", "2")
}

func TestSweepTakesWhatACopyThatWasCutShortLeft(t *testing.T) {
	c, one, two := origin(t)
	c.Snapshot("v", "docker_volume.w.abcdefgh")
	two.Sweep(within(t, ever)) // a copy may be under way
	c.Age(25 * time.Hour)
	c.Snapshot("v", "docker_volume.w.zyxwvuts")
	one.mount("v", "1")
	want := "[s docker_volume.w.abcdefgh docker_volume.w.zyxwvuts]"
	for range 2 {
		if got := fmt.Sprint(one.status("v")["snapshots"]); got != want {
			t.Errorf("snapshots: %s, want %s\n%s", got, want, two.log)
		}
		two.Sweep(within(t, ever))
		want = "[s docker_volume.w.zyxwvuts]"
	}
	if !strings.Contains(two.log.String(), "removed snapshot docker_volume.w.abcdefgh") {
		t.Errorf("the log:\n%s", two.log)
	}
}

func TestSweepTakesTheGuardsOfImagesThatAreGone(t *testing.T) {
	_, one, two := twoNodes(t)
	for _, v := range []string{"gone", "there"} {
		one.create(v, nil)
		one.mount(v, "1")
	}
	gone, err := one.client.Open(within(t, ever), "gone", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Remove(within(t, ever), 0); err != nil { // by hand
		t.Fatal(err)
	}
	two.Sweep(within(t, ever))
	var g guard.Record
	if _, err := two.client.Load(within(t, ever), "guard."+gone.Image().ID, &g); err == nil {
		t.Error("the guard is still there")
	}
	if _, _, held := two.guard("there"); !held {
		t.Error("the guard of a volume was swept away")
	}
	if !strings.Contains(two.log.String(), "removed the guard of image id "+gone.Image().ID) {
		t.Errorf("the log:\n%s", two.log)
	}
}

// Machines that were cloned, name and all: one of them is dead.
func TestAnOperatorsFenceOfOneOfTwoMachinesOfAName(t *testing.T) {
	c, one, two := twoNodes(t)
	clone := newNode(t, c, "one", "10.0.0.9")
	for volume, n := range map[string]*node{"v": one, "w": clone} {
		n.create(volume, nil)
		n.mount(volume, "1")
	}
	fence := func(n *node, address string, says ...string) {
		t.Helper()
		taken, err := n.FenceNode(within(t, ever), "one", address)
		check(t, err, backend.ErrInvalid, append(says, "fence node one")...)
		if len(taken) > 0 {
			t.Errorf("taken: %+v", taken)
		}
	}
	fence(two, "", "10.0.0.1 and 10.0.0.9")
	fence(one, "", "10.0.0.1 and 10.0.0.9")
	fence(one, "10.0.0.1", "this very node", "volume v")
	fence(two, "nowhere", "an IP address")
	_, err := two.FenceNode(within(t, ever), "one", "10.0.0.5")
	check(t, err, backend.ErrNotFound)
	clone.crash()
	clone.Host.Cut() // Ceph has missed it: what is alive of the name is one machine
	fence(one, "", "10.0.0.9", "this very node")
	taken, err := one.FenceNode(within(t, ever), "one", "10.0.0.9")
	if err != nil || len(taken) != 1 || taken[0].Volume != "w" {
		t.Errorf("%+v, %v", taken, err)
	}
	if err := one.write("v", "ext4 data"); err != nil {
		t.Error(err)
	}
	one.mount("w", "2")
	if taken, err = two.FenceNode(within(t, ever), "one", one.guardOf("v").Addrs[0]); err != nil || len(taken) != 2 {
		t.Errorf("%+v, %v", taken, err)
	}
}

// An address that moves, as a dead node's does in a fail-over, makes nobody this node.
func TestAnOperatorsFenceOfANodeWhoseAddressMovedHere(t *testing.T) {
	c, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	heir := newNode(t, c, "three", one.IP)
	taken, err := heir.FenceNode(within(t, ever), "one", "")
	if err != nil || len(taken) != 1 {
		t.Errorf("%+v, %v", taken, err)
	}
	heir.mount("v", "2")
}

func (n *node) guardOf(volume string) guard.Record {
	n.t.Helper()
	g, _, held := n.guard(volume)
	if !held {
		n.t.Fatalf("there is no guard of %s", volume)
	}
	return g
}
