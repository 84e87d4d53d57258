package driver_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Docker has forgotten to unmount: a crash of the engine, or a request that was given
// up just when it had been answered.
func TestWhatNoContainerHasIsLetGoAfterAWhile(t *testing.T) {
	for name, options := range map[string]map[string]string{"writable": nil, "read-only": {"snapshot": "v@s"}} {
		virtual(t, name, func(t *testing.T) {
			_, one, two := origin(t)
			one.unheld = 200 * time.Millisecond
			one.start()
			one.create("w", options)
			one.mount("w", "1")
			release, err := one.Hold(one.path("w"))
			if err != nil {
				t.Fatal(err)
			}
			reconcile := func() {
				one.Reconcile(within(t, ever))
				time.Sleep(one.unheld)
				one.Reconcile(within(t, ever))
			}
			reconcile()
			if one.device("w") == "" {
				t.Fatal("it was taken from the container that has it")
			}
			release()
			one.Reconcile(within(t, ever))
			time.Sleep(one.unheld)
			one.mount("w", "2") // its container is about to start
			one.Reconcile(within(t, ever))
			if one.device("w") == "" {
				t.Fatal("it was taken from a container that was about to start")
			}
			time.Sleep(one.unheld)
			one.Reconcile(within(t, ever))
			if d := one.device("w"); d != "" {
				t.Fatalf("still mapped as %s", d)
			}
			if !strings.Contains(one.log.String(), "no container has had it") {
				t.Errorf("the log:\n%s", one.log)
			}
			two.mount("w", "1")
			one.unmount("w", "2") // Docker remembers after all
			two.unmount("w", "1")
			one.mount("w", "3")
		})
	}
}

// Another node waits for it: it need not wait for as long.
func TestWhatNoContainerHasIsLetGoEarlierIfAnotherNodeAsks(t *testing.T) {
	synctest.Test(t, testWhatNoContainerHasIsLetGoEarlierIfAnotherNodeAsks)
}

func testWhatNoContainerHasIsLetGoEarlierIfAnotherNodeAsks(t *testing.T) {
	_, one, two := twoNodes(t)
	one.unheld = 2 * ever
	one.start()
	one.create("v", nil)
	one.mount("v", "1")
	one.Reconcile(within(t, ever))
	time.Sleep(one.unheld / 10)
	one.Reconcile(within(t, ever))
	if one.device("v") == "" {
		t.Fatal("it was let go though nobody asks")
	}
	got := make(chan error, 1)
	go func() {
		_, err := two.Driver.Mount(within(t, ever), "v", "2")
		got <- err
	}()
	for len(got) == 0 {
		one.Reconcile(within(t, ever))
		time.Sleep(10 * time.Millisecond)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if keys, err := one.client.List(within(t, ever), "wish."); err != nil || len(keys) > 0 {
		t.Errorf("left: %v, %v", keys, err)
	}
}

// Not even for a moment: what a container has is looked up.
func TestWhatAContainerHasIsNotUnmountedOnTrial(t *testing.T) {
	for name, options := range map[string]map[string]string{"writable": nil, "read-only": {"snapshot": "v@s"}} {
		virtual(t, name, func(t *testing.T) {
			_, one, _ := origin(t)
			one.create("w", options)
			one.mount("w", "1")
			release, err := one.Hold(one.path("w"))
			if err != nil {
				t.Fatal(err)
			}
			one.restart()
			one.tap.on(func(call string) error {
				switch call {
				case "Filesystem.Unmount", "Filesystem.LazyUnmount", "Mapper.Unmap", "Mapper.ForceUnmap":
					t.Errorf("%s, under a container", call)
				}
				return nil
			})
			one.Reconcile(within(t, ever))
			one.unmount("w", "1")
			one.mount("w", "2")
			one.unmount("w", "2")
			check(t, one.Driver.Remove(within(t, ever), "w"), backend.ErrBusy, "a container on this node (one)", one.device("w"))
			one.Shutdown(within(t, ever))
			one.tap.on(nil)
			release()
			one.Reconcile(within(t, ever))
			if d := one.device("w"); d != "" {
				t.Errorf("still mapped as %s", d)
			}
		})
	}
}

// One look for all volumes, and none if nothing is mapped.
func TestContainersAreLookedForOnceForAllVolumes(t *testing.T) {
	_, one, _ := twoNodes(t)
	seen := order(one, "Filesystem.Held")
	one.Reconcile(within(t, ever))
	if len(*seen) != 0 {
		t.Errorf("%d looks for no volume", len(*seen))
	}
	for _, v := range []string{"a", "b", "c"} {
		one.create(v, nil)
		one.mount(v, "1")
	}
	seen = order(one, "Filesystem.Held")
	one.Reconcile(within(t, ever))
	if len(*seen) != 1 {
		t.Errorf("%d looks", len(*seen))
	}
	for _, v := range []string{"a", "b", "c"} {
		if _, err := one.Hold(one.path(v)); err != nil {
			t.Fatal(err)
		}
	}
	one.restart()
	seen = order(one, "Filesystem.Held")
	one.Reconcile(within(t, ever))
	if len(*seen) != 1 {
		t.Errorf("%d looks for what containers have", len(*seen))
	}
}

// Where nothing can be known of containers Docker is believed, and else the kernel asked.
func TestWhereContainersAreNotSeenTheKernelIsAsked(t *testing.T) {
	synctest.Test(t, testWhereContainersAreNotSeenTheKernelIsAsked)
}

func testWhereContainersAreNotSeenTheKernelIsAsked(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.unheld = time.Nanosecond
	one.start()
	blind := func(call string) error {
		if call == "Filesystem.Held" {
			return errors.New("the host's processes are not visible")
		}
		return nil
	}
	one.tap.on(blind)
	one.create("v", nil)
	one.mount("v", "1")
	one.Reconcile(within(t, ever))
	one.Reconcile(within(t, ever))
	if one.device("v") == "" {
		t.Fatal("it was taken from Docker")
	}
	release, err := one.Hold(one.path("v"))
	if err != nil {
		t.Fatal(err)
	}
	one.restart()
	one.tap.on(blind)
	one.Reconcile(within(t, ever))
	if one.device("v") == "" || one.Path(context.Background(), "v") == "" {
		t.Fatal("it was taken from the container that has it")
	}
	release()
	one.Reconcile(within(t, ever))
	if d := one.device("v"); d != "" {
		t.Errorf("still mapped as %s", d)
	}
}

// Who waited for a volume has died: what it has left would have the holder let go early,
// for ever.
func TestTheWishOfADeadNodeIsSwept(t *testing.T) {
	_, one, _ := twoNodes(t)
	one.create("v", nil)
	one.mount("v", "1")
	h, err := one.client.Open(within(t, ever), "v", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	key := "wish." + h.Image().ID
	if _, err := one.client.CompareAndSwap(within(t, ever), key, 0, map[string]string{"node": "dead"}); err != nil {
		t.Fatal(err)
	}
	one.Sweep(within(t, ever))
	if _, err := one.client.Load(within(t, ever), key, new(any)); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("it is left: %v", err)
	}
	if _, _, held := one.guard("v"); !held {
		t.Error("and the guard of a living one is gone")
	}
}
