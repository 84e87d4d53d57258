package driver_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
)

// A create is killed inside Ceph's own call, after each of its steps. Whoever creates the
// volume again then, or mounts it, has it as it was asked for.
func TestACreateThatIsKilledWithinCephsCall(t *testing.T) {
	kinds := map[string]struct {
		options map[string]string
		steps   int
		holds   string
	}{
		"new":                  {nil, 3, "ext4"},
		"copy of a snapshot":   {map[string]string{"from": "v@s"}, 6, "ext4 data"},
		"copy":                 {map[string]string{"from": "v"}, 6, "ext4 data"},
		"larger, read-only":    {map[string]string{"snapshot": "v@s", "size": "1G"}, 6, "ext4 data"},
		"encrypted":            {map[string]string{"encryption": "luks2", "passphrase": "ceph:key"}, 3, "ext4"},
		"with owner and label": {map[string]string{"uid": "33", "labels": "team=red"}, 3, "ext4"},
	}
	for kind, row := range kinds {
		for _, creates := range []bool{true, false} {
			for steps := range row.steps {
				virtual(t, fmt.Sprintf("%s, created again %v, killed after %d", kind, creates, steps), func(t *testing.T) {
					c, one, two := origin(t)
					c.Cut(steps)
					if err := one.Create(within(t, ever), "w", row.options); !errors.Is(err, errCrashed) {
						t.Fatal(err)
					}
					one.crash()
					there, err := two.client.Exists(within(t, ever), "w")
					if err != nil {
						t.Fatal(err)
					}
					if creates || !there {
						two.create("w", row.options)
						if !c.Whole("w") {
							t.Error("created, and yet the image is not whole")
						}
					}
					two.mount("w", "1")
					two.holds("w", row.holds)
					two.unmount("w", "1")
					if err := two.RemoveSnapshot(within(t, ever), "v", "s"); err != nil {
						t.Fatal(err)
					}
					two.Sweep(within(t, ever))
					two.mount("w", "1")
					two.holds("w", row.holds)
				})
			}
		}
	}
}

// Who died while it made a copy watches that until Ceph misses it.
func TestAKilledCopyIsStillWatched(t *testing.T) { inVirtualTime(t, testAKilledCopyIsStillWatched) }

func testAKilledCopyIsStillWatched(t *testing.T) {
	c, one, two := origin(t)
	c.Cut(4)
	if err := one.Create(within(t, ever), "w", map[string]string{"from": "v@s"}); !errors.Is(err, errCrashed) {
		t.Fatal(err)
	}
	one.crash()
	stop := c.Watch("w", "10.0.0.1:0/99")
	ended := time.AfterFunc(6*time.Second, stop) // longer than who removes a volume waits
	defer ended.Stop()
	if err := two.Create(within(t, time.Minute), "w", map[string]string{"from": "v@s"}); err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	two.holds("w", "ext4 data")
}

// Of a copy that its parent does not know nothing would be left with the snapshot.
func TestACopyThatItsParentDoesNotKnow(t *testing.T) {
	c, _, two := origin(t)
	two.create("w", map[string]string{"from": "v@s"})
	c.Detach("w")
	two.mount("w", "1")
	two.unmount("w", "1")
	if err := two.RemoveSnapshot(within(t, ever), "v", "s"); err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	two.holds("w", "ext4 data")
}

// The snapshot that is made for a copy stays while the copy may yet be made of it.
func TestTheSnapshotOfACopyThatMayYetBeMade(t *testing.T) {
	_, one, _ := origin(t)
	one.tap.on(func(call string) error {
		if call == "Images.Create" {
			return fmt.Errorf("%w: no answer in time", backend.ErrUnavailable)
		}
		return nil
	})
	if err := one.Create(within(t, ever), "w", map[string]string{"from": "v"}); !errors.Is(err, backend.ErrUnavailable) {
		t.Fatal(err)
	}
	if snaps, err := one.Snapshots(within(t, ever), "v"); err != nil || len(snaps) != 2 {
		t.Errorf("snapshots: %v, %v", snaps, err)
	}
}

// An image that an operator made under a name that a copy was to have, with something on
// it, is nobody's to make anew; what is on it is told.
func TestAnImageInPlaceOfACopyIsKept(t *testing.T) {
	c, one, two := origin(t)
	one.tap.on(func(call string) error {
		if call == "Images.Create" {
			return errors.New("it died here")
		}
		return nil
	})
	if err := one.Create(within(t, ever), "w", map[string]string{"from": "v@s"}); err == nil {
		t.Fatal("no error")
	}
	one.tap.on(nil)
	if err := two.client.Create(within(t, ever), backend.ImageSpec{Name: "w", Size: 512 << 20, Features: []string{"layering", "exclusive-lock"}}); err != nil {
		t.Fatal(err)
	}
	h, err := two.client.Open(within(t, ever), "w", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	m, err := two.Host.Map(within(t, ever), h.Image(), backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Host.Write(m.Device, "ext4 theirs"); err != nil {
		t.Fatal(err)
	}
	if err := two.Host.Unmap(within(t, ever), m.Key()); err != nil {
		t.Fatal(err)
	}
	two.refused("w", "1", backend.ErrUnexpectedContent, "holds data", "rbd image-meta set rbd/w docker_volume.fstype ext4")
	check(t, two.Create(within(t, ever), "w", map[string]string{"from": "v@s"}), backend.ErrUnexpectedContent, "nothing is made in its place")
	two.trash = time.Hour
	two.restart()
	if err := two.Remove(within(t, ever), "w"); err != nil {
		t.Fatal(err)
	}
	if !c.Restore("w") {
		t.Fatal("it was deleted at once")
	}
	if err := h.SetMeta(within(t, ever), map[string]string{"fstype": "ext4"}); err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	two.holds("w", "ext4 theirs")
}

// A removal of a volume that was never mounted, and a create of the same on another node
// as soon as the name is free.
func TestARemovalAndACreateOfTheSame(t *testing.T) {
	c := memory.NewCluster()
	one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
	one.create("v", nil)
	one.tap.then = func(call string) {
		if call == "Handle.Remove" {
			two.create("v", nil)
		}
	}
	if err := one.Remove(within(t, ever), "v"); err != nil {
		t.Fatal(err)
	}
	two.mount("v", "1")
	two.holds("v", "ext4")
}

// The promise of a copy that has been made complete comes back: a write that was late, or
// that of another node. It means nothing.
func TestAPromiseThatComesBack(t *testing.T) {
	for kind, options := range map[string]map[string]string{"copy": {"from": "v@s", "labels": "team=red"}, "new": nil} {
		t.Run(kind, func(t *testing.T) {
			c, one, two := origin(t)
			two.trash = time.Hour
			two.restart()
			one.create("w", options)
			var promise map[string]any
			if _, err := one.client.Load(within(t, ever), "pending.w", &promise); err != nil {
				t.Fatal(err)
			}
			one.mount("w", "1")
			if err := one.write("w", "ext4 new data"); err != nil {
				t.Fatal(err)
			}
			one.unmount("w", "1")
			if _, err := one.client.CompareAndSwap(within(t, ever), "pending.w", 0, promise); err != nil {
				t.Fatal(err)
			}
			two.tap.on(func(call string) error {
				if call == "Filesystem.RegenerateUUID" || call == "Filesystem.Format" {
					t.Errorf("%s of a volume that is complete", call)
				}
				return nil
			})
			two.mount("w", "1")
			two.holds("w", "ext4 new data")
			two.unmount("w", "1")
			if _, err := one.client.CompareAndSwap(within(t, ever), "pending.w", 0, promise); err != nil && !errors.Is(err, backend.ErrConflict) {
				t.Fatal(err)
			}
			if err := two.Remove(within(t, ever), "w"); err != nil {
				t.Fatal(err)
			}
			if !c.Restore("w") {
				t.Fatal("it was deleted at once")
			}
			two.mount("w", "1")
			two.holds("w", "ext4 new data")
		})
	}
}

// A removal is killed inside Ceph's own call; the next one removes the volume, and a new
// one of the name is new.
func TestARemovalThatIsKilledWithinCephsCall(t *testing.T) {
	for _, mounted := range []bool{true, false} {
		for steps := range 3 {
			t.Run(fmt.Sprintf("mounted before %v, killed after %d", mounted, steps), func(t *testing.T) {
				c := memory.NewCluster()
				one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
				one.create("v", nil)
				if mounted {
					one.mount("v", "1")
					if err := one.write("v", "ext4 old"); err != nil {
						t.Fatal(err)
					}
					one.unmount("v", "1")
				}
				c.Cut(steps)
				if err := one.Remove(within(t, ever), "v"); !errors.Is(err, errCrashed) {
					t.Fatal(err)
				}
				one.crash()
				if err := two.Remove(within(t, ever), "v"); err != nil {
					t.Fatal(err)
				}
				if _, err := two.Driver.Get(within(t, ever), "v"); !errors.Is(err, backend.ErrNotFound) {
					t.Fatal(err)
				}
				two.create("v", nil)
				two.mount("v", "1")
				two.holds("v", "ext4")
			})
		}
	}
}
