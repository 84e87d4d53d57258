package driver_test

import (
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

func TestSharedVolumes(t *testing.T) {
	c, one, two := origin(t)
	one.create("w", map[string]string{"snapshot": "v@s"})
	one.mount("w", "1")
	two.mount("w", "1")
	one.mount("w", "2")
	if err := two.write("w", "ext4 spoilt"); err == nil {
		t.Error("it was written")
	}
	two.holds("w", "ext4 data")
	check(t, one.Driver.Remove(within(t, soon), "w"), driver.ErrBusy, "2 containers")
	check(t, one.Rollback(within(t, soon), "w", "x"), driver.ErrNotFound)
	one.unmount("w", "1")
	one.unmount("w", "2")
	check(t, one.Driver.Remove(within(t, soon), "w"), driver.ErrInUse, two.client.Addr(), "a read-only mount on another node")
	// The plugin comes back, and so does its watch; a container has it meanwhile.
	release, err := two.Hold(two.path("w"))
	if err != nil {
		t.Fatal(err)
	}
	two.restart()
	two.Reconcile(within(t, ever))
	check(t, one.Driver.Remove(within(t, soon), "w"), driver.ErrInUse, two.client.Addr())
	two.client.Kill()
	two.reconnect()
	two.Reconcile(within(t, ever))
	check(t, one.Driver.Remove(within(t, soon), "w"), driver.ErrInUse, two.client.Addr())
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
	h, err := one.client.Open(within(t, ever), "x", driver.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetMeta(within(t, ever), map[string]string{"readonly": "true"}); err != nil {
		t.Fatal(err)
	}
	one.refused("x", "1", driver.ErrInUse, "node two")
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
		h, err := two.client.Open(within(t, ever), "x", driver.ReadOnly)
		if err == nil {
			err = h.SetMeta(within(t, ever), map[string]string{"readonly": value})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// What comes back by a roll-back may have a journal to replay.
	c.Snapshot("x", "s")
	check(t, one.Rollback(within(t, ever), "x", "s"), driver.ErrInvalid, "read-only")
	readonly("false")
	if err := one.Rollback(within(t, ever), "x", "s"); err != nil {
		t.Fatal(err)
	}
	readonly("true")
	seen := order(one, "check")
	one.mount("x", "1")
	if len(*seen) != 1 {
		t.Error("it was shared as it came back")
	}
	one.unmount("x", "1")
	// It becomes writable just when it was found to be read-only.
	one.tap.before = func(call string) error {
		if call == "open" {
			readonly("false")
		}
		return nil
	}
	one.refused("x", "1", driver.ErrInUse, "made writable again meanwhile")
	one.tap.before = nil
	one.mount("x", "1")
	if err := one.write("x", "ext4 own"); err != nil {
		t.Error(err)
	}
}
