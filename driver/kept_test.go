package driver_test

import (
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// keeper is a node, beside another, that keeps for so long what nobody has heard of.
func keeper(t *testing.T, long time.Duration) (one, two *node) {
	_, one, two = twoNodes(t)
	one.keep = long
	one.restart()
	one.create("v", nil)
	return one, two
}

func (n *node) letsGo(volume string) {
	n.t.Helper()
	eventually(n.t, volume+" is let go", func() bool {
		_, _, held := n.guard(volume)
		return !held && n.device(volume) == ""
	})
}

// The same id finds what was mounted when nobody waited for it any more, and counts once.
func TestAKeptMountIsFound(t *testing.T) { inVirtualTime(t, testAKeptMountIsFound) }

func testAKeptMountIsFound(t *testing.T) {
	one, _ := keeper(t, 3*time.Second)
	one.mount("v", "1")
	one.Keep(t.Context(), "v", "1")
	device := one.device("v")
	one.mount("v", "1")
	time.Sleep(3500 * time.Millisecond)
	if again := one.device("v"); again != device {
		t.Fatalf("on %s, and after it was asked for again on %q", device, again)
	}
	one.unmount("v", "1")
	one.letsGo("v")
}

// What nobody asks for again is unmounted, and only that: the id may have it twice.
func TestAKeptMountEnds(t *testing.T) { inVirtualTime(t, testAKeptMountEnds) }

func testAKeptMountEnds(t *testing.T) {
	one, two := keeper(t, 50*time.Millisecond)
	one.mount("v", "1")
	one.mount("v", "1") // as docker cp does
	one.Keep(t.Context(), "v", "1")
	time.Sleep(200 * time.Millisecond)
	two.refused("v", "2", backend.ErrInUse, "node one")
	one.Keep(t.Context(), "v", "1")
	one.letsGo("v")
	two.mount("v", "2")
}

// Two requests of the same id may both be given up: podman's retries wait for each other.
func TestAMountIsKeptTwice(t *testing.T) {
	one, _ := keeper(t, 50*time.Millisecond)
	one.mount("v", "1")
	one.mount("v", "1")
	one.Keep(t.Context(), "v", "1")
	one.Keep(t.Context(), "v", "1")
	one.letsGo("v")
}

// What is left of a node that died while it waited, and of this node's own waiting, wants
// nothing any more.
func TestAStaleWishEndsNoKeeping(t *testing.T) {
	for name, row := range map[string]struct {
		node string
		age  time.Duration
	}{"old": {"two", time.Hour}, "own": {"one", 0}} {
		virtual(t, name, func(t *testing.T) {
			one, _ := keeper(t, 6*time.Second)
			wish := map[string]any{"node": row.node, "since": time.Now().Add(-row.age)}
			one.mount("v", "1")
			mappings, _ := one.Mappings(t.Context())
			if _, err := one.client.CompareAndSwap(t.Context(), "wish."+mappings[0].ID, 0, wish); err != nil {
				t.Fatal(err)
			}
			one.Keep(t.Context(), "v", "1")
			time.Sleep(time.Second)
			if one.device("v") == "" {
				t.Error("it is not kept any more")
			}
		})
	}
}

// What was taken over meanwhile is gone, and with it who it was kept for: who asks now is
// a user of the new mount.
func TestAKeptMountThatIsLost(t *testing.T) { inVirtualTime(t, testAKeptMountThatIsLost) }

func testAKeptMountThatIsLost(t *testing.T) {
	one, two := keeper(t, time.Hour)
	one.mount("v", "1")
	one.Keep(t.Context(), "v", "1")
	mappings, _ := one.Mappings(t.Context())
	if err := one.client.Fence(t.Context(), mappings[0].Addr); err != nil {
		t.Fatal(err)
	}
	one.Reconcile(within(t, soon))
	one.mount("v", "1")
	one.mount("v", "2")
	one.unmount("v", "2")
	two.refused("v", "3", backend.ErrInUse, "node one")
}

// Docker's unmount ends the keeping too: it has asked for one mount, and heard of one.
func TestAKeptMountIsUnmounted(t *testing.T) {
	one, _ := keeper(t, time.Hour)
	one.mount("v", "1")
	one.mount("v", "1")
	one.Keep(t.Context(), "v", "1")
	one.unmount("v", "1")
	one.letsGo("v")
}

// Nobody has a kept mount, so nobody is kept from the volume by it.
func TestAKeptMountIsInNobodysWay(t *testing.T) {
	virtual(t, "another node's", func(t *testing.T) {
		one, two := keeper(t, time.Minute) // it looks each twelfth of that
		one.mount("v", "1")
		one.Keep(t.Context(), "v", "1")
		two.mount("v", "2")
	})
	virtual(t, "a roll-back's, and a removal's", func(t *testing.T) {
		one, _ := keeper(t, time.Hour)
		one.mount("v", "0")
		if _, err := one.CreateSnapshot(t.Context(), "v", "s"); err != nil {
			t.Fatal(err)
		}
		one.unmount("v", "0")
		one.mount("v", "1")
		one.Keep(t.Context(), "v", "1")
		if err := one.Rollback(t.Context(), "v", "s"); err != nil {
			t.Error(err)
		}
		if err := one.RemoveSnapshot(t.Context(), "v", "s"); err != nil {
			t.Error(err)
		}
		one.mount("v", "1")
		one.Keep(t.Context(), "v", "1")
		if err := one.Remove(t.Context(), "v"); err != nil {
			t.Error(err)
		}
	})
}
