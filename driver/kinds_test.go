package driver_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
)

// origin is a node with a volume "v" that holds data and has a snapshot "s", and
// another node.
func origin(t *testing.T) (*memory.Cluster, *node, *node) {
	c := memory.NewCluster()
	c.Keep("ceph:key", "open sesame")
	one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
	one.create("v", map[string]string{"labels": "team=blue", "protected": "true", "description": "the original", "mountOptions": "noatime,commit=9"})
	one.mount("v", "1")
	if err := one.write("v", "ext4 data"); err != nil {
		t.Fatal(err)
	}
	one.unmount("v", "1")
	c.Snapshot("v", "s")
	one.tap.calls = 0
	return c, one, two
}

func (n *node) status(volume string) map[string]any {
	n.t.Helper()
	v, err := n.Driver.Get(within(n.t, ever), volume)
	if err != nil {
		n.t.Fatal(err)
	}
	return v.Status
}

// kinds are volumes that take more than one step to be what they are.
var kinds = map[string]struct {
	options map[string]string
	holds   string
	status  map[string]any
}{
	"a copy": {map[string]string{"from": "v", "size": "1G", "labels": "team=red"}, "ext4 data", map[string]any{
		"size": "1GiB", "labels": map[string]string{"team": "red"}, "protected": nil, "description": nil, "mountOptions": "noatime,commit=9", "readonly": nil}},
	"a snapshot": {map[string]string{"snapshot": "v@s"}, "ext4 data", map[string]any{"size": "512MiB", "readonly": "true", "protected": nil, "labels": nil}},
	"encrypted": {map[string]string{"encryption": "luks2", "passphrase": "ceph:key"}, "ext4", map[string]any{
		"encryption": "luks2", "passphrase": "ceph:key"}},
}

// The plugin dies at each step on the way to such a volume. Whoever goes on finds it
// whole, or makes it so, and nothing of its original's is left on it.
func TestACrashAtAnyStepOfAVolumeOfAnotherKind(t *testing.T) {
	for kind, k := range kinds {
		for _, after := range []bool{false, true} {
			for _, successor := range []string{"one", "two"} {
				virtual(t, fmt.Sprintf("%s, effect %v, %s", kind, after, successor), func(t *testing.T) {
					for stopAt, crashed := 1, true; crashed; stopAt++ {
						_, one, two := origin(t)
						one.tap.stopAt, one.tap.after = stopAt, after
						err := one.Create(within(t, ever), "w", k.options)
						if err == nil {
							_, err = one.Driver.Mount(within(t, ever), "w", "1")
						}
						if err == nil {
							err = one.Driver.Unmount(within(t, ever), "w", "1")
						}
						if crashed = one.tap.dead; !crashed {
							if err != nil {
								t.Fatal(err)
							}
							t.Logf("%d calls", stopAt-1)
						}
						one.crash()
						next := two
						if successor == "one" {
							one.start()
							one.client.Kill()
							next = one
						} else {
							one.Host.Cut()
						}
						next.create("w", k.options) // as Docker does on the next node
						if _, err := next.Driver.Mount(within(t, ever), "w", "2"); err != nil {
							t.Fatalf("crash at call %d: %v\n%s", stopAt, err, next.log)
						}
						next.holds("w", k.holds)
						status := next.status("w")
						for key, want := range k.status {
							if fmt.Sprint(status[key]) != fmt.Sprint(want) {
								t.Errorf("crash at call %d: status %s is %v, want %v", stopAt, key, status[key], want)
							}
						}
						if status["filesystem"] != "ext4" || status["node"] != nil != (kind != "a snapshot") {
							t.Errorf("crash at call %d: %v", stopAt, status)
						}
						next.unmount("w", "2")
						if _, _, held := next.guard("w"); held {
							t.Errorf("crash at call %d: the guard is left", stopAt)
						}
						if t.Failed() {
							t.FailNow()
						}
					}
				})
			}
		}
	}
}

// A step that fails leaves nothing mapped, and the next who asks has the volume.
func TestAFailureOnTheWayToAVolumeOfAnotherKind(t *testing.T) {
	synctest.Test(t, testAFailureOnTheWayToAVolumeOfAnotherKind)
}

func testAFailureOnTheWayToAVolumeOfAnotherKind(t *testing.T) {
	failure := errors.New("it does not work today")
	for kind, k := range kinds {
		for failAt, failed := 1, true; failed; failAt++ {
			_, one, two := origin(t)
			one.create("w", k.options)
			calls := 0
			one.tap.on(func(string) error {
				if calls++; calls == failAt {
					return failure
				}
				return nil
			})
			_, err := one.Driver.Mount(within(t, ever), "w", "1")
			failed = calls >= failAt
			one.tap.on(nil)
			if err == nil {
				continue
			}
			if d := one.device("w"); d != "" || !errors.Is(err, failure) {
				t.Errorf("%s, call %d: mapped as %q; %v", kind, failAt, d, err)
			}
			one.client.Kill()
			two.mount("w", "2")
			two.holds("w", k.holds)
		}
	}
}

func TestEncryptionIsAgreedUpon(t *testing.T) {
	_, one, two := origin(t)
	luks := func(format, key string) map[string]string {
		return map[string]string{"encryption": format, "passphrase": key}
	}
	check(t, one.Create(within(t, ever), "w", luks("luks2", "ceph:other")), backend.ErrInvalid, "other")
	if _, err := one.Driver.Get(within(t, ever), "w"); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("something was made: %v", err)
	}
	one.create("w", luks("luks2", "ceph:key"))
	two.create("w", luks("luks2", "ceph:key"))
	check(t, two.Create(within(t, ever), "w", luks("luks1", "ceph:key")), backend.ErrExists, "encryption luks2, but luks1")
	check(t, two.Create(within(t, ever), "w", map[string]string{"encryption": "none"}), backend.ErrExists, "encryption luks2, but none")
	check(t, two.Create(within(t, ever), "v", luks("luks2", "ceph:key")), backend.ErrExists, "encryption none, but luks2")
}

// What this node's kernel could not map is refused when it is made, not by a task that
// starts.
func TestFeaturesThatTheKernelCannotMap(t *testing.T) {
	_, one, two := origin(t)
	for feature, options := range map[string]map[string]string{
		"data-pool": {"data-pool": "ec"}, "striping": {"stripe-unit": "64K", "stripe-count": "4"},
		"operations": {"from": "v"}, "object-map": nil,
	} {
		one.Lacks(feature)
		check(t, one.Create(within(t, ever), "w", options), backend.ErrInvalid, "create volume w: ", "cannot map images with "+feature)
		if _, err := two.Driver.Get(within(t, ever), "w"); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("something was made: %v", err)
		}
	}
	one.Lacks("")
	one.create("w", map[string]string{"from": "v"})
	one.mount("w", "1")
	if copies := fmt.Sprint(one.status("v")["copies"]); copies != "[rbd/w]" {
		t.Errorf("copies: %s", copies)
	}
}

func TestTheTrash(t *testing.T) {
	c, one, two := origin(t)
	one.trash = time.Hour
	one.restart()
	check(t, one.Driver.Remove(within(t, ever), "v"), backend.ErrBusy, "protected", "rbd image-meta set rbd/v docker_volume.protected false")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.SetMeta(within(t, ever), map[string]string{"protected": "false"}), h.Close(within(t, ever))); err != nil {
		t.Fatal(err)
	}
	check(t, one.Driver.Remove(within(t, ever), "v"), backend.ErrBusy, "snapshots")
	one.create("w", map[string]string{"from": "v"})
	one.mount("w", "1")
	if err := one.RemoveSnapshot(within(t, ever), "v", "s"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"v", "never mounted"[:5]} {
		if name != "v" {
			one.create(name, nil)
		}
		if err := one.Driver.Remove(within(t, ever), name); err != nil {
			t.Fatal(err)
		}
	}
	if !c.Restore("v") || c.Restore("never") {
		t.Error("in the trash is not what was mounted once, and that alone")
	}
	two.mount("v", "1")
	two.holds("v", "ext4 data")
	if two.status("v")["description"] != "the original" {
		t.Errorf("restored: %v", two.status("v"))
	}
	two.unmount("v", "1")
	if err := one.Driver.Remove(within(t, ever), "v"); err != nil {
		t.Fatal(err)
	}
	one.Purge(within(t, ever))
	c.Age(2 * time.Hour)
	one.Purge(within(t, ever))
	if tasks := c.Flattened(); !slices.Equal(tasks, []string{"rbd/w"}) || !c.Restore("v") {
		t.Errorf("its copy needs it: to be flattened are %v", tasks)
	}
}

// A manager that flattens is a watcher, and no user.
func TestAManagerHindersNobody(t *testing.T) { inVirtualTime(t, testAManagerHindersNobody) }

func testAManagerHindersNobody(t *testing.T) {
	c, one, _ := origin(t)
	for addr, kind := range map[string]error{memory.Manager: nil, "10.0.0.99:0/1": backend.ErrInUse} {
		stop := c.Watch("v", addr)
		_, err := one.Driver.Mount(within(t, soon), "v", "1")
		if !errors.Is(err, kind) {
			t.Errorf("watched by %s: %v", addr, err)
		}
		if err == nil {
			one.unmount("v", "1")
		}
		stop()
	}
}

func TestADirectoryOfAVolume(t *testing.T) {
	_, one, _ := origin(t)
	h, err := one.client.Open(within(t, ever), "v", backend.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		directory string
		kind      error
	}{{"../etc", backend.ErrInvalid}, {"missing", backend.ErrUnexpectedContent}, {"data", nil}} {
		if err := errors.Join(h.SetMeta(within(t, ever), map[string]string{"subdirectory": row.directory}), h.Close(within(t, ever))); err != nil {
			t.Fatal(err)
		}
		path, err := one.Driver.Mount(within(t, ever), "v", "1")
		if !errors.Is(err, row.kind) || err == nil && path != one.path("v")+"/data" {
			t.Errorf("%s: mounted on %q, %v", row.directory, path, err)
		}
		one.Reconcile(within(t, ever))
	}
	v, err := one.Driver.Get(within(t, ever), "v")
	if want := one.path("v") + "/data"; err != nil || v.Mountpoint != want || one.Path(t.Context(), "v") != want {
		t.Errorf("mounted on %q, %v", v.Mountpoint, err)
	}
}
