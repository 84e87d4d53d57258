package driver_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
)

// The plugin dies at each of its calls to Ceph and the kernel, before or after
// it has had its effect; then it, or its node after a reboot, or another node
// goes on. Whatever happened: a volume that was created can be mounted, what was
// written and acknowledged is there, and what the dead one had mounted cannot
// write once another has the volume.
func TestACrashAtAnyStep(t *testing.T) {
	story := []struct {
		step string
		do   func(n *node) error
	}{
		{"create", func(n *node) error { return n.Create(within(n.t, ever), "v", nil) }},
		{"mount", func(n *node) error { _, err := n.Driver.Mount(within(n.t, ever), "v", "1"); return err }},
		{"write", func(n *node) error { return n.write("v", "ext4 data") }},
		{"unmount", func(n *node) error { return n.Driver.Unmount(within(n.t, ever), "v", "1") }},
		{"mount again", func(n *node) error { _, err := n.Driver.Mount(within(n.t, ever), "v", "2"); return err }},
		{"unmount again", func(n *node) error { return n.Driver.Unmount(within(n.t, ever), "v", "2") }},
	}
	successors := map[string]func(dead, other *node) *node{
		"restart": func(dead, _ *node) *node { dead.start(); dead.client.Kill(); return dead },
		"reboot":  func(dead, _ *node) *node { dead.reboot(); return dead },
		"another node": func(dead, other *node) *node {
			dead.Host.Cut() // its mapping lives on, unseen by Ceph
			return other
		},
		"another node after the mapping died too": func(dead, other *node) *node { dead.Host.Reboot(); return other },
	}
	for name, successor := range successors {
		for _, after := range []bool{false, true} {
			virtual(t, fmt.Sprintf("%s, effect %v", name, after), func(t *testing.T) {
				for stopAt, crashed := 1, true; crashed; stopAt++ {
					c := memory.NewCluster()
					one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
					one.tap.stopAt, one.tap.after = stopAt, after
					crashed = false
					created, written, reached := false, false, ""
					for _, s := range story {
						reached = s.step
						err := s.do(one)
						if one.tap.dead {
							crashed = true
							break
						}
						if err != nil {
							t.Fatalf("%s: %v", s.step, err)
						}
						created = created || s.step == "create"
						written = written || s.step == "write"
					}
					if !crashed {
						t.Logf("%d calls", stopAt-1)
						return
					}
					one.crash()
					stale := "" // what containers may be writing to
					if _, ok := one.mountOf("v"); ok {
						stale = one.device("v")
					}
					next := successor(one, two)
					where := fmt.Sprintf("crash at call %d, in %s", stopAt, reached)

					_, err := next.Driver.Mount(within(t, ever), "v", "next")
					if errors.Is(err, backend.ErrNotFound) && !created {
						next.create("v", nil) // what Docker's user does next
						_, err = next.Driver.Mount(within(t, ever), "v", "next")
					}
					if err != nil {
						t.Fatalf("%s: %v\n%s", where, err, next.log)
					}
					want := "ext4"
					if written {
						want = "ext4 data"
					}
					if got, err := next.Host.Read(next.device("v")); err != nil || got != want {
						t.Fatalf("%s: it holds %q, %v; want %q", where, got, err, want)
					}
					if next == two && stale != "" {
						if err := one.Host.Write(stale, "ext4 corrupt"); err == nil {
							t.Fatalf("%s: the dead node's mapping %s can still write", where, stale)
						}
					}
					next.unmount("v", "next")
					if g, _, ok := next.guard("v"); ok {
						t.Fatalf("%s: the guard is left: %+v", where, g)
					}
				}
			})
		}
	}
}

// A node stands still before any of its calls, or is cut off from Ceph there,
// long enough for Ceph to miss it. Another node takes the volume, writes, and
// keeps it or lets it go; then the first goes on where it was. Whatever comes of
// that: never do both have the volume, and what the second wrote is there.
func TestAPauseAtAnyStep(t *testing.T) {
	story := []struct {
		step string
		do   func(n *node) error
	}{
		{"mount", func(n *node) error { _, err := n.Driver.Mount(within(n.t, soon/3), "v", "1"); return err }},
		{"write", func(n *node) error { return n.write("v", "ext4 data") }},
		{"unmount", func(n *node) error { return n.Driver.Unmount(within(n.t, ever), "v", "1") }},
		{"mount again", func(n *node) error { _, err := n.Driver.Mount(within(n.t, soon/3), "v", "2"); return err }},
		{"reconcile", func(n *node) error { n.Reconcile(within(n.t, ever)); return nil }},
	}
	for name, stays := range map[string]bool{"the other has it": true, "the other had it": false} {
		virtual(t, name, func(t *testing.T) {
			for pauseAt, paused := 1, true; paused; pauseAt++ {
				c := memory.NewCluster()
				one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
				one.create("v", nil)
				calls, reached, at := 0, "", ""
				paused = false
				stale := ""
				one.tap.on(func(call string) error {
					if calls++; calls != pauseAt {
						return nil
					}
					paused, at = true, call
					if _, mounted := one.mountOf("v"); mounted {
						stale = one.device("v")
					}
					one.client.Kill()
					one.Host.Cut()
					two.mount("v", "2")
					if err := two.write("v", "ext4 two"); err != nil {
						t.Fatal(err)
					}
					if !stays {
						two.unmount("v", "2")
					}
					return nil
				})
				var err error
				for _, s := range story {
					reached = s.step
					if err = s.do(one); err != nil || paused {
						break
					}
				}
				where := fmt.Sprintf("pause at call %d, %s, in %s", pauseAt, at, reached)
				if !paused {
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%d calls", pauseAt-1)
					return
				}
				if stale != "" {
					if err := one.Host.Write(stale, "ext4 corrupt"); err == nil {
						t.Fatalf("%s: the mapping of before, %s, can still write", where, stale)
					}
				}
				one.reconnect()
				one.Reconcile(within(t, ever))
				if stays {
					if d := one.device("v"); d != "" {
						t.Fatalf("%s: both have the volume, one as %s (%v)", where, d, err)
					}
					one.refused("v", "3", backend.ErrInUse, "node two")
					two.unmount("v", "2")
				}
				one.mount("v", "3")
				one.holds("v", "ext4 two")
				if t.Failed() {
					t.Fatal(where)
				}
			}
		})
	}
}

// Docker hangs up, as it dies, at any step of Mount: nothing stays mounted but what is
// kept for a while, and the next who asks has the volume.
func TestAHangUpAtAnyStepOfMount(t *testing.T) {
	for hangAt, hung := 1, true; hung; hangAt++ {
		c := memory.NewCluster()
		one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
		one.keep = 20 * time.Millisecond
		one.restart()
		one.create("v", nil)
		ctx, hangUp := context.WithCancel(within(t, ever))
		calls := 0
		one.tap.on(func(string) error {
			if calls++; calls == hangAt {
				hangUp()
			}
			return nil
		})
		_, err := one.Driver.Mount(ctx, "v", "1")
		one.turn("v")
		hung = calls >= hangAt
		one.tap.on(nil)
		if err == nil { // package plugin unmounts it then
			one.unmount("v", "1")
		}
		one.Reconcile(within(t, ever))
		eventually(t, fmt.Sprintf("call %d (%v): nothing is mapped", hangAt, err), func() bool { return one.device("v") == "" })
		if _, err := two.Driver.Mount(within(t, ever), "v", "2"); err != nil {
			t.Fatalf("call %d: %v", hangAt, err)
		}
		two.holds("v", "ext4")
		hangUp()
	}
}

// The same for Remove: the volume is there and whole, or it is gone and can be
// made again.
func TestACrashInRemove(t *testing.T) { inVirtualTime(t, testACrashInRemove) }

func testACrashInRemove(t *testing.T) {
	for _, after := range []bool{false, true} {
		for stopAt, crashed := 1, true; crashed; stopAt++ {
			c := memory.NewCluster()
			one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
			one.create("v", nil)
			one.mount("v", "1")
			if err := one.write("v", "ext4 data"); err != nil {
				t.Fatal(err)
			}
			one.unmount("v", "1")
			one.tap.calls, one.tap.stopAt, one.tap.after = 0, stopAt, after
			err := one.Driver.Remove(within(t, ever), "v")
			if crashed = one.tap.dead; !crashed && err != nil {
				t.Fatal(err)
			}
			one.crash()
			want := "ext4 data"
			_, err = two.Driver.Mount(within(t, ever), "v", "1")
			if errors.Is(err, backend.ErrNotFound) {
				want = "ext4"
				two.create("v", nil)
				_, err = two.Driver.Mount(within(t, ever), "v", "1")
			}
			if err != nil {
				t.Fatalf("crash at call %d: %v", stopAt, err)
			}
			two.holds("v", want)
		}
	}
}

// A step that fails, without a crash, leaves nothing behind.
func TestAFailureAtAnyStepOfMountIsUndone(t *testing.T) {
	failure := errors.New("it does not work today")
	for failAt, failed := 1, true; failed; failAt++ {
		c := memory.NewCluster()
		one, two := newNode(t, c, "one", "10.0.0.1"), newNode(t, c, "two", "10.0.0.2")
		one.create("v", nil)
		calls := 0
		one.tap.on(func(string) error {
			if calls++; calls == failAt {
				return failure
			}
			return nil
		})
		_, err := one.Driver.Mount(within(t, ever), "v", "1")
		failed = calls >= failAt
		one.tap.on(nil)
		if err == nil {
			continue // a call whose failure does not matter
		}
		if strings.Contains(err.Error(), "\n") || !errors.Is(err, failure) {
			t.Errorf("call %d: %v", failAt, err)
		}
		if d := one.device("v"); d != "" {
			t.Errorf("call %d: still mapped as %s", failAt, d)
		}
		// The control client may have been left a watcher by a failed close,
		// or the guard by a failed delete: then it takes a fence. Never more.
		one.client.Kill()
		two.mount("v", "2")
		two.holds("v", "ext4")
	}
}
