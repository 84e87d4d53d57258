package driver_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// An administrator moves the image away under the mount, or into the trash, and its
// name is given to a new one.
func TestAnImageThatWasReplacedUnderItsMountIsRefused(t *testing.T) {
	for _, row := range []struct {
		what    string
		options map[string]string
		anew    bool
	}{
		{"renamed, and made anew", nil, true},
		{"renamed", nil, false},
		{"read-only, renamed, and made anew", map[string]string{"snapshot": "v@s"}, true},
	} {
		for _, restarted := range []bool{false, true} {
			virtual(t, fmt.Sprintf("%s, restarted %v", row.what, restarted), func(t *testing.T) {
				c, one, two := origin(t)
				one.create("db", row.options)
				one.mount("db", "1")
				old := one.device("db")
				release, err := one.Hold(one.path("db"))
				if err != nil {
					t.Fatal(err)
				}
				c.Rename("db", "db-old")
				if row.anew {
					two.create("db", nil)
					two.mount("db", "0")
					two.unmount("db", "0")
				}
				if restarted {
					one.restart()
					one.Reconcile(within(t, ever))
				}
				one.refused("db", "2", backend.ErrInUse, "mount volume db", "renamed, removed or replaced", "stop the containers", old)
				if row.options == nil {
					one.refused("db-old", "2", backend.ErrInUse, "mapped here as db")
				}
				if one.device("db") != old || one.Path(context.Background(), "db") == "" {
					t.Error("it was taken from the container that has it")
				}
				if row.anew {
					v, err := one.Get(within(t, ever), "db")
					if err != nil || !strings.Contains(fmt.Sprint(v.Status["error"]), "replaced") || v.Status["device"] != nil {
						t.Errorf("status %v, %v", v.Status, err)
					}
					if frozen, err := one.CreateSnapshot(within(t, ever), "db", "now"); err != nil || frozen {
						t.Errorf("a snapshot of the new image: frozen %v, %v", frozen, err)
					}
					watchers := watchersOf(t, two, "db")
					if len(watchers) > 0 {
						t.Errorf("the new image is watched by %v", watchers)
					}
				}
				release()
				one.unmount("db", "1")
				if d := one.device("db"); d != "" {
					t.Fatalf("still mapped as %s", d)
				}
				if row.anew {
					one.mount("db", "3")
					one.holds("db", "ext4")
				}
			})
		}
	}
}

func watchersOf(t *testing.T, n *node, volume string) []string {
	t.Helper()
	h, err := n.client.Open(within(t, ever), volume, backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	watchers, err := h.Watchers(within(t, ever))
	if err != nil {
		t.Fatal(err)
	}
	return watchers
}

// Nobody has the image of before any more: what is left of it goes by itself.
func TestWhatIsLeftOfAReplacedImageIsNoHindrance(t *testing.T) {
	c, one, two := origin(t)
	one.create("db", nil)
	one.mount("db", "1")
	one.restart() // the engine sends no Unmount
	c.Rename("db", "db-old")
	two.create("db", nil)
	one.mount("db", "2")
	one.mount("db", "3")
	one.holds("db", "ext4")
	two.mount("db-old", "1")
}

// It is replaced just when it was looked at.
func TestAnImageThatIsReplacedDuringAMountIsRefused(t *testing.T) {
	c, one, two := origin(t)
	one.create("db", nil)
	one.mount("db", "1")
	if _, err := one.Hold(one.path("db")); err != nil {
		t.Fatal(err)
	}
	old := one.device("db")
	one.restart()
	one.tap.on(func(call string) error {
		if call == "Images.Open" {
			one.tap.on(nil)
			c.Rename("db", "db-old")
			two.create("db", nil)
		}
		return nil
	})
	one.refused("db", "2", backend.ErrInUse, "replaced")
	if one.device("db") != old || one.Path(context.Background(), "db") == "" {
		t.Error("it was taken from the container that has it")
	}
	two.mount("db", "1")
}

// The plugin comes back with another name, or its host with another address (a new
// lease, NAT): the kernel knows what is this node's.
func TestAGuardOfWhatIsMappedHereIsOwn(t *testing.T) {
	for _, row := range []struct{ name, ip string }{{"uno", "10.0.0.1"}, {"one", "10.0.0.77"}, {"uno", "10.0.0.77"}} {
		virtual(t, row.name+" "+row.ip, func(t *testing.T) {
			_, one, two := twoNodes(t)
			one.create("v", nil)
			one.mount("v", "1")
			release, err := one.Hold(one.path("v"))
			if err != nil {
				t.Fatal(err)
			}
			device := one.device("v")
			one.crash()
			one.name, one.IP = row.name, row.ip
			one.start()
			one.mount("v", "2")
			if one.device("v") != device {
				t.Error("it was mapped anew under the container that has it")
			}
			one.Reconcile(within(t, ever))
			two.refused("v", "3", backend.ErrInUse, "node "+row.name)
			release()
			one.unmount("v", "2")
			two.mount("v", "3")
			if strings.Contains(one.log.String()+two.log.String(), "fenced") {
				t.Error("somebody was fenced")
			}
		})
	}
}
