package driver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// order notes the calls of a node that matter here.
func order(n *node, calls ...string) *[]string {
	var seen []string
	n.tap.on(func(call string) error {
		if slices.Contains(calls, call) {
			seen = append(seen, call)
		}
		return nil
	})
	return &seen
}

func TestASnapshotIsOneOfAFrozenFilesystem(t *testing.T) {
	_, one, two := origin(t)
	one.mount("v", "1")
	seen := order(one, "Filesystem.Freeze", "Handle.CreateSnapshot", "Filesystem.Thaw")
	for _, name := range []string{"a", "b"} {
		*seen = nil
		if frozen, err := one.CreateSnapshot(within(t, ever), "v", name); err != nil || !frozen || !slices.Equal(*seen, []string{"Filesystem.Freeze", "Handle.CreateSnapshot", "Filesystem.Thaw"}) {
			t.Errorf("frozen %v, %v; calls %v", frozen, err, *seen)
		}
	}
	if frozen, err := two.CreateSnapshot(within(t, ever), "v", "c"); err != nil || frozen {
		t.Errorf("elsewhere: frozen %v, %v", frozen, err)
	}
	*seen = nil
	_, err := one.CreateSnapshot(within(t, ever), "v", "a")
	check(t, err, backend.ErrExists, "make a snapshot of volume v")
	if !slices.Equal(*seen, []string{"Filesystem.Freeze", "Handle.CreateSnapshot", "Filesystem.Thaw"}) || one.Frozen(one.path("v")) {
		t.Errorf("a snapshot that fails: calls %v", *seen)
	}
	for _, bad := range []string{"", "a/b", "a@b", "a b", "docker_volume.x", strings.Repeat("x", 97)} {
		_, err := one.CreateSnapshot(within(t, ever), "v", bad)
		check(t, err, backend.ErrInvalid)
	}
	// The plugin dies while the filesystem is frozen; the next one thaws it.
	one.tap.on(nil)
	one.tap.calls, one.tap.after = 0, false
	for stopAt := 1; !one.Frozen(one.path("v")); stopAt++ {
		one.tap.calls, one.tap.stopAt, one.tap.dead = 0, stopAt, false
		_, _ = one.CreateSnapshot(within(t, ever), "v", fmt.Sprint("d", stopAt))
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

// The plugin is told to end when a snapshot is about to freeze, and is killed when it
// has: the next one must know.
func TestWhatIsFrozenWhileThePluginEndsIsThawedByTheNext(t *testing.T) {
	synctest.Test(t, testWhatIsFrozenWhileThePluginEndsIsThawedByTheNext)
}

func testWhatIsFrozenWhileThePluginEndsIsThawedByTheNext(t *testing.T) {
	_, one, _ := origin(t)
	one.mount("v", "1")
	one.tap.on(func(call string) error {
		if call == "Filesystem.Freeze" {
			one.tap.on(nil)
			one.Shutdown(within(t, soon)) // which waits for the snapshot
		}
		return nil
	})
	one.tap.then = func(call string) {
		if call == "Filesystem.Freeze" {
			one.tap.die()
		}
	}
	_, _ = one.CreateSnapshot(within(t, ever), "v", "a")
	if !one.Frozen(one.path("v")) {
		t.Fatal("it is not frozen")
	}
	one.restart()
	ctx, cancel := context.WithCancel(context.Background())
	one.tap.then = func(call string) {
		if call == "Fences.Fenced" {
			cancel()
		}
	}
	one.Watch(ctx, time.Hour)
	if one.Frozen(one.path("v")) {
		t.Error("it is frozen still")
	}
}

// To thaw what is not frozen waits in the kernel for Ceph, beyond any signal.
func TestNothingIsThawedThatWasNotFrozen(t *testing.T) {
	_, one, _ := origin(t)
	one.mount("v", "1")
	if frozen, err := one.CreateSnapshot(within(t, ever), "v", "a"); err != nil || !frozen {
		t.Fatal(frozen, err)
	}
	for range 2 {
		seen := order(one, "Fences.Fenced", "Filesystem.Thaw")
		ctx, cancel := context.WithCancel(context.Background())
		one.tap.then = func(call string) {
			if call == "Fences.Fenced" { // by the first Reconcile, which comes after
				cancel()
			}
		}
		one.Watch(ctx, time.Hour)
		if len(*seen) == 0 || slices.Contains(*seen, "Filesystem.Thaw") {
			t.Errorf("at the start: %v", *seen)
		}
		one.Shutdown(within(t, ever))
		if slices.Contains(*seen, "Filesystem.Thaw") {
			t.Errorf("at the end: %v", *seen)
		}
		one.restart()
		one.mount("v", "1")
	}
}

func TestARollBackThatIsCutShortIsDoneAgain(t *testing.T) {
	synctest.Test(t, testARollBackThatIsCutShortIsDoneAgain)
}

func testARollBackThatIsCutShortIsDoneAgain(t *testing.T) {
	_, one, two := origin(t)
	one.mount("v", "1")
	if err := one.write("v", "ext4 later"); err != nil {
		t.Fatal(err)
	}
	check(t, one.Rollback(within(t, ever), "v", "s"), backend.ErrBusy, "1 containers use it on this node (one)")
	check(t, two.Rollback(within(t, soon), "v", "s"), backend.ErrInUse, "node one")
	one.unmount("v", "1")
	check(t, one.Rollback(within(t, ever), "v", "x"), backend.ErrNotFound, "there are: s")
	one.tap.on(func(call string) error {
		if call == "Handle.Rollback" {
			return errors.New("half of it")
		}
		return nil
	})
	if err := one.Rollback(within(t, ever), "v", "s"); err == nil {
		t.Fatal("no error")
	}
	one.tap.on(nil)
	two.refused("v", "1", backend.ErrUnexpectedContent, "a roll-back to snapshot s was cut short; do it again")
	if status := two.status("v"); !strings.Contains(fmt.Sprint(status["error"]), "cut short") {
		t.Errorf("status: %v", status)
	}
	check(t, two.RemoveSnapshot(within(t, ever), "v", "s"), backend.ErrBusy, "cut short")
	check(t, two.Create(within(t, ever), "w", map[string]string{"from": "v"}), backend.ErrUnexpectedContent, "volume v: ", "cut short")
	_, err := two.CreateSnapshot(within(t, ever), "v", "half")
	check(t, err, backend.ErrUnexpectedContent, "cut short")
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
		if call == "Handle.Rollback" {
			hangUp()
			<-going
		}
		return nil
	})
	check(t, two.Rollback(ctx, "v", "s"), backend.ErrBusy, "it goes on")
	_, err = two.Driver.Mount(within(t, soon), "v", "1")
	check(t, err, backend.ErrBusy, "going back to snapshot s")
	close(going)
	two.mount("v", "1")
	two.holds("v", "ext4 data")
}
