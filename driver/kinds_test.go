package driver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/memory"
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
				t.Run(fmt.Sprintf("%s, effect %v, %s", kind, after, successor), func(t *testing.T) {
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
	failure := errors.New("it does not work today")
	for kind, k := range kinds {
		for failAt, failed := 1, true; failed; failAt++ {
			_, one, two := origin(t)
			one.create("w", k.options)
			calls := 0
			one.tap.before = func(string) error {
				if calls++; calls == failAt {
					return failure
				}
				return nil
			}
			_, err := one.Driver.Mount(within(t, ever), "w", "1")
			failed = calls >= failAt
			one.tap.before = nil
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

func TestWhatCannotBeCopied(t *testing.T) {
	c, one, two := origin(t)
	one.create("blank", nil)
	one.create("copy", map[string]string{"from": "v"})
	for _, row := range []struct {
		options map[string]string
		says    string
	}{
		{map[string]string{"from": "nothing"}, "option from: there is no volume nothing"},
		{map[string]string{"from": "v@monday"}, "snapshot monday of volume v: not found; there are: s"},
		{map[string]string{"from": "v", "size": "100M"}, `option size="100M": v has 512MiB, and a copy is not made smaller`},
		{map[string]string{"from": "v", "fstype": "xfs"}, `option fstype="xfs": volume v is ext4`},
		{map[string]string{"from": "blank"}, "volume blank was never mounted, so there is nothing to copy yet"},
		{map[string]string{"from": "copy"}, "volume copy was never mounted"},
		{map[string]string{"from": "v", "image-feature": "exclusive-lock,journaling"}, `"journaling" is not a feature that the kernel maps`},
	} {
		err := one.Create(within(t, ever), "w", row.options)
		if err == nil || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", row.options, err)
		}
		if _, err := two.Driver.Get(within(t, ever), "w"); !errors.Is(err, driver.ErrNotFound) {
			t.Errorf("%v: something was made: %v", row.options, err)
		}
	}
	if snaps, err := one.Snapshots(within(t, ever), "v"); err != nil || len(snaps) != 1 {
		t.Errorf("snapshots are left: %v, %v", snaps, err)
	}
	// Deep copies: the manager makes them independent, and there is an end to it.
	from, deepest := "v", 0
	var err error
	for ; deepest < 30 && err == nil; deepest++ {
		name := fmt.Sprintf("deep%d", deepest)
		if err = one.Create(within(t, ever), name, map[string]string{"from": from}); err == nil {
			one.mount(name, "1")
			one.unmount(name, "1")
			from = name
		}
	}
	check(t, err, driver.ErrInvalid, "deep; wait until the manager has made it independent")
	if tasks := c.Flattened(); deepest < 10 || !slices.Contains(tasks, "rbd/deep3") || slices.Contains(tasks, "rbd/deep2") {
		t.Errorf("refused at depth %d, to be flattened: %v", deepest, tasks)
	}
}

// Two nodes make a copy at the same moment, each of a snapshot of its own, and the
// promise that stays is not that of the image that stays: it is as it was asked for.
func TestEncryptionIsAgreedUpon(t *testing.T) {
	_, one, two := origin(t)
	luks := func(format, key string) map[string]string {
		return map[string]string{"encryption": format, "passphrase": key}
	}
	check(t, one.Create(within(t, ever), "w", luks("luks2", "ceph:other")), driver.ErrInvalid, "other")
	if _, err := one.Driver.Get(within(t, ever), "w"); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("something was made: %v", err)
	}
	one.create("w", luks("luks2", "ceph:key"))
	two.create("w", luks("luks2", "ceph:key"))
	check(t, two.Create(within(t, ever), "w", luks("luks1", "ceph:key")), driver.ErrExists, "encryption luks2, but luks1")
	check(t, two.Create(within(t, ever), "w", map[string]string{"encryption": "none"}), driver.ErrExists, "encryption luks2, but none")
	check(t, two.Create(within(t, ever), "v", luks("luks2", "ceph:key")), driver.ErrExists, "encryption none, but luks2")
}

func TestTwoNodesMakeACopy(t *testing.T) {
	_, one, two := origin(t)
	copied := map[string]string{"from": "v", "size": "1G", "labels": "team=red"}
	promised, made, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	two.tap.on(func(call string) error {
		if call == "create" {
			two.tap.on(nil)
			one.tap.on(func(call string) error {
				if call == "create" {
					close(promised)
					<-made
				}
				return nil
			})
			go func() { ended <- one.Create(within(t, ever), "w", copied) }()
			<-promised
		}
		return nil
	})
	two.create("w", copied)
	close(made)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	if status := two.status("w"); status["size"] != "1GiB" || fmt.Sprint(status["labels"]) != "map[team:red]" {
		t.Errorf("status: %v", status)
	}
}

// What is left of a create that died is not meant for another clone of the name.
func TestAPromiseOfACopyIsForNoOtherImage(t *testing.T) {
	c, one, two := origin(t)
	one.tap.on(func(call string) error {
		if call == "create" {
			return errors.New("it died here")
		}
		return nil
	})
	if err := one.Create(within(t, ever), "w", map[string]string{"from": "v@s", "labels": "team=red"}); err == nil {
		t.Fatal("no error")
	}
	c.Snapshot("v", "other")
	h, err := two.client.Open(within(t, ever), "v", driver.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := h.Snapshots(within(t, ever))
	if err != nil {
		t.Fatal(err)
	}
	from := driver.Origin{Place: driver.Place{Pool: "rbd"}, Image: "v", ID: h.Image().ID, Snap: "other", SnapID: snaps[1].ID}
	if err := two.client.Create(within(t, ever), driver.ImageSpec{Name: "w", Size: 512 << 20, Features: h.Image().Features, From: &from}); err != nil {
		t.Fatal(err)
	}
	two.mount("w", "1")
	if labels := fmt.Sprint(two.status("w")["labels"]); labels != "map[team:blue]" { // as rbd clone has made it
		t.Errorf("labels: %s", labels)
	}
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
		check(t, one.Create(within(t, ever), "w", options), driver.ErrInvalid, "create volume w: ", "cannot map images with "+feature)
		if _, err := two.Driver.Get(within(t, ever), "w"); !errors.Is(err, driver.ErrNotFound) {
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

// order notes the calls of a node that matter here.
func order(n *node, calls ...string) *[]string {
	var seen []string
	n.tap.before = func(call string) error {
		if slices.Contains(calls, call) {
			seen = append(seen, call)
		}
		return nil
	}
	return &seen
}

func TestASnapshotIsOneOfAFrozenFilesystem(t *testing.T) {
	_, one, two := origin(t)
	one.mount("v", "1")
	seen := order(one, "freeze", "snap", "thaw")
	for name, wants := range map[string]bool{"a": true, "b": true} {
		*seen = nil
		if frozen, err := one.Snap(within(t, ever), "v", name); err != nil || frozen != wants || !slices.Equal(*seen, []string{"freeze", "snap", "thaw"}) {
			t.Errorf("frozen %v, %v; calls %v", frozen, err, *seen)
		}
	}
	if frozen, err := two.Snap(within(t, ever), "v", "c"); err != nil || frozen {
		t.Errorf("elsewhere: frozen %v, %v", frozen, err)
	}
	*seen = nil
	_, err := one.Snap(within(t, ever), "v", "a")
	check(t, err, driver.ErrExists, "make a snapshot of volume v")
	if !slices.Equal(*seen, []string{"freeze", "snap", "thaw"}) || one.Frozen(one.path("v")) {
		t.Errorf("a snapshot that fails: calls %v", *seen)
	}
	for _, bad := range []string{"", "a/b", "a@b", "a b", "docker_volume.x", strings.Repeat("x", 97)} {
		_, err := one.Snap(within(t, ever), "v", bad)
		check(t, err, driver.ErrInvalid)
	}
	// The plugin dies while the filesystem is frozen; the next one thaws it.
	one.tap.before = nil
	one.tap.calls, one.tap.after = 0, false
	for stopAt := 1; !one.Frozen(one.path("v")); stopAt++ {
		one.tap.calls, one.tap.stopAt, one.tap.dead = 0, stopAt, false
		_, _ = one.Snap(within(t, ever), "v", fmt.Sprint("d", stopAt))
		if stopAt > 30 {
			t.Fatal("it was never frozen")
		}
	}
	one.restart()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go one.Watch(ctx, time.Hour)
	for end := time.Now().Add(ever); one.Frozen(one.path("v")); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is frozen still")
		}
	}
}

// To thaw what is not frozen waits in the kernel for Ceph, beyond any signal.
func TestNothingIsThawedThatWasNotFrozen(t *testing.T) {
	_, one, _ := origin(t)
	one.mount("v", "1")
	if frozen, err := one.Snap(within(t, ever), "v", "a"); err != nil || !frozen {
		t.Fatal(frozen, err)
	}
	for range 2 {
		seen := order(one, "fenced", "thaw")
		ctx, cancel := context.WithCancel(context.Background())
		one.tap.then = func(call string) {
			if call == "fenced" { // by the first Reconcile, which comes after
				cancel()
			}
		}
		one.Watch(ctx, time.Hour)
		if len(*seen) == 0 || slices.Contains(*seen, "thaw") {
			t.Errorf("at the start: %v", *seen)
		}
		one.LetGo(within(t, ever))
		if slices.Contains(*seen, "thaw") {
			t.Errorf("at the end: %v", *seen)
		}
		one.restart()
		one.mount("v", "1")
	}
}

func TestARollBackThatIsCutShortIsDoneAgain(t *testing.T) {
	_, one, two := origin(t)
	one.mount("v", "1")
	if err := one.write("v", "ext4 later"); err != nil {
		t.Fatal(err)
	}
	check(t, one.Rollback(within(t, ever), "v", "s"), driver.ErrBusy, "1 containers use it on this node (one)")
	check(t, two.Rollback(within(t, soon), "v", "s"), driver.ErrInUse, "node one")
	one.unmount("v", "1")
	check(t, one.Rollback(within(t, ever), "v", "x"), driver.ErrNotFound, "there are: s")
	one.tap.before = func(call string) error {
		if call == "rollback" {
			return errors.New("half of it")
		}
		return nil
	}
	if err := one.Rollback(within(t, ever), "v", "s"); err == nil {
		t.Fatal("no error")
	}
	one.tap.before = nil
	two.refused("v", "1", driver.ErrContent, "a roll-back to snapshot s was cut short; do it again")
	if status := two.status("v"); !strings.Contains(fmt.Sprint(status["error"]), "cut short") {
		t.Errorf("status: %v", status)
	}
	check(t, two.Unsnap(within(t, ever), "v", "s"), driver.ErrBusy, "cut short")
	check(t, two.Create(within(t, ever), "w", map[string]string{"from": "v"}), driver.ErrContent, "volume v: ", "cut short")
	_, err := two.Snap(within(t, ever), "v", "half")
	check(t, err, driver.ErrContent, "cut short")
	two.create("w", map[string]string{"from": "v@s"}) // is whole
	two.mount("w", "1")
	two.holds("w", "ext4 data")
	if err := two.Rollback(within(t, ever), "v", "s"); err != nil {
		t.Fatal(err)
	}
	two.mount("v", "1")
	two.holds("v", "ext4 data")
	two.unmount("v", "1")
	// Who asks hangs up: it goes on, and nobody has the volume meanwhile.
	ctx, hangUp := context.WithCancel(context.Background())
	going := make(chan struct{})
	two.tap.on(func(call string) error {
		if call == "rollback" {
			hangUp()
			<-going
		}
		return nil
	})
	check(t, two.Rollback(ctx, "v", "s"), driver.ErrBusy, "it goes on")
	_, err = two.Driver.Mount(within(t, soon), "v", "1")
	check(t, err, driver.ErrBusy, "another roll-back of the same volume is still under way")
	close(going)
	two.mount("v", "1")
	two.holds("v", "ext4 data")
}

func TestGrowth(t *testing.T) {
	c, one, _ := origin(t)
	full := func() bool {
		fills, err := one.Host.Fills(context.Background(), one.device("v"), "ext4")
		return err == nil && fills
	}
	c.Resize("v", 1<<30)
	one.mount("v", "1")
	if !full() {
		t.Error("not grown by the mount")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go one.Follow(ctx, time.Millisecond)
	for _, again := range []bool{false, true} {
		if again { // a plugin that was restarted knows nothing of before
			one.restart()
			go one.Follow(ctx, time.Millisecond)
		}
		c.Resize("v", 2<<30+map[bool]uint64{true: 1 << 20}[again])
		for end := time.Now().Add(ever); !full(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not grown while mounted; after a restart: %v\n%s", again, one.log)
			}
		}
	}
	if one.status("v")["size"] != "2049MiB" {
		t.Errorf("status: %v", one.status("v"))
	}
}

// resize2fs reads what the kernel may not have at hand: it would hang until Ceph is back.
func TestAfterARestartNothingIsGrownWhileCephIsAway(t *testing.T) {
	_, one, _ := origin(t)
	one.mount("v", "1")
	one.restart()
	for _, away := range []bool{true, false} {
		ctx, cancel := context.WithTimeout(context.Background(), ever)
		defer cancel()
		looks, grown := 0, false
		one.tap.before = func(call string) error {
			switch call {
			case "names":
				if away {
					return driver.ErrUnavailable
				}
			case "mappings":
				looks++
			case "grow":
				grown = true
			}
			if away && looks == 9 || grown {
				cancel()
			}
			return nil
		}
		_, _ = one.List(ctx)
		one.Follow(ctx, time.Millisecond)
		if grown == away {
			t.Errorf("Ceph away: %v, grown: %v", away, grown)
		}
	}
}

// A filesystem that was just mounted fills its device, whatever the list of
// mappings said that was asked for a moment before.
func TestWhatIsMountedDuringALookIsNotGrown(t *testing.T) {
	_, one, _ := origin(t)
	var seen *[]string
	ctx, cancel := context.WithTimeout(context.Background(), ever)
	defer cancel()
	one.tap.then = func(string) {
		one.tap.then = nil
		one.mount("v", "1") // the list has been made without it
		seen = order(one, "mappings", "grow")
		one.tap.then = func(string) {
			if len(*seen) == 3 {
				cancel()
			}
		}
	}
	one.Follow(ctx, time.Millisecond)
	if !slices.Equal(*seen, []string{"mappings", "mappings", "mappings"}) {
		t.Errorf("after the mount: %v", *seen)
	}
}

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
	seen := order(one, "mappings", "grow")
	ctx, cancel := context.WithTimeout(context.Background(), ever)
	defer cancel()
	one.tap.then = func(string) {
		if len(*seen) == 3 {
			cancel()
		}
	}
	one.Follow(ctx, time.Millisecond)
	if slices.Contains(*seen, "grow") {
		t.Error("a read-only filesystem was to be grown")
	}
	one.tap.then = nil
}

func TestAReadOnlyVolumeThatWasWritableMeanwhile(t *testing.T) {
	c, one, two := origin(t)
	one.create("x", map[string]string{"from": "v", "readonly": "true"})
	one.mount("x", "1")
	if m, _ := one.mountOf("x"); !strings.HasSuffix(m.Options, "noatime,commit=9,ro") {
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

func TestTheTrash(t *testing.T) {
	c, one, two := origin(t)
	one.trash = time.Hour
	one.restart()
	check(t, one.Driver.Remove(within(t, ever), "v"), driver.ErrBusy, "protected", "rbd image-meta set rbd/v docker_volume.protected false")
	h, err := one.client.Open(within(t, ever), "v", driver.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.SetMeta(within(t, ever), map[string]string{"protected": "false"}), h.Close(within(t, ever))); err != nil {
		t.Fatal(err)
	}
	check(t, one.Driver.Remove(within(t, ever), "v"), driver.ErrBusy, "snapshots")
	one.create("w", map[string]string{"from": "v"})
	one.mount("w", "1")
	if err := one.Unsnap(within(t, ever), "v", "s"); err != nil {
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
func TestAManagerHindersNobody(t *testing.T) {
	c, one, _ := origin(t)
	for addr, kind := range map[string]error{memory.Manager: nil, "10.0.0.99:0/1": driver.ErrInUse} {
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
	h, err := one.client.Open(within(t, ever), "v", driver.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		directory string
		kind      error
	}{{"../etc", driver.ErrInvalid}, {"missing", driver.ErrContent}, {"data", nil}} {
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
