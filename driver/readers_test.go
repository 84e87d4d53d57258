package driver_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// shared is a volume w that is read-only and was mounted once, by node one.
func shared(t *testing.T) (*memory.Cluster, *node, *node) {
	t.Helper()
	c, one, two := origin(t)
	one.create("w", map[string]string{"from": "v", "readonly": "true"})
	one.mount("w", "1")
	one.unmount("w", "1")
	return c, one, two
}

func (n *node) setMeta(volume, key, value string) {
	n.t.Helper()
	h, err := n.cluster.Connect(n.IP).Open(within(n.t, ever), volume, backend.ReadOnly)
	if err == nil {
		err = h.SetMeta(within(n.t, ever), map[string]string{key: value})
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// readers are the nodes that are noted, with their addresses.
func (n *node) readers(volume string) string {
	n.t.Helper()
	id, err := n.client.ID(within(n.t, ever), volume)
	if err != nil {
		n.t.Fatal(err)
	}
	var list struct{ Readers []guard.Reader }
	if _, err := n.client.Load(within(n.t, ever), "readers."+id, &list); err != nil && !errors.Is(err, backend.ErrNotFound) {
		n.t.Fatal(err)
	}
	var said []string
	for _, r := range list.Readers {
		said = append(said, r.Node+" "+r.Addr)
	}
	return strings.Join(said, ", ")
}

// marks are what a node has on disk of what it reads.
func (n *node) marks() []string {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.root, "reading", "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return files
}

func TestAReaderIsNotedWhileItsPluginIsAway(t *testing.T) {
	_, one, two := shared(t)
	two.mount("w", "1")
	release, err := two.Hold(two.path("w"))
	if err != nil {
		t.Fatal(err)
	}
	two.crash()
	if watchers := watchersOf(t, one, "w"); len(watchers) > 0 {
		t.Fatalf("it is watched by %v", watchers)
	}
	check(t, one.Driver.Remove(within(t, ever), "w"), backend.ErrInUse, "remove volume w", "read-only by node two", two.client.Addr(), "Guard.Fence")
	one.setMeta("w", "readonly", "false")
	check(t, one.Rollback(within(t, ever), "w", "x"), backend.ErrNotFound)
	one.cluster.Snapshot("w", "x")
	check(t, one.Rollback(within(t, ever), "w", "x"), backend.ErrInUse, "read-only by node two")
	for range 2 {
		one.refused("w", "2", backend.ErrInUse, "mount volume w", "read-only by node two")
	}
	if _, _, held := one.guard("w"); held {
		t.Error("the guard was not given back")
	}
	// The plugin comes back, with another control client.
	two.start()
	two.Reconcile(within(t, ever))
	if got, want := one.readers("w"), "two "+two.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
	check(t, one.Driver.Remove(within(t, ever), "w"), backend.ErrInUse, two.client.Addr())
	release()
	two.Reconcile(within(t, ever))
	if one.readers("w") != "" || len(two.marks()) > 0 {
		t.Errorf("left: %s, %v", one.readers("w"), two.marks())
	}
	one.mount("w", "2")
	if err := one.write("w", "ext4 own"); err != nil {
		t.Error(err)
	}
}

func TestAllReadersAreNoted(t *testing.T) {
	_, one, two := shared(t)
	one.tap.on(func(call string) error {
		if call == "Records.CompareAndSwap readers" { // both have read that there are none
			one.tap.on(nil)
			two.mount("w", "1")
		}
		return nil
	})
	one.mount("w", "1")
	if got, want := one.readers("w"), "two "+two.client.Addr()+", one "+one.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
	if got := fmt.Sprint(one.status("w")["readers"]); got != "[two one]" {
		t.Errorf("status: %s", got)
	}
	two.unmount("w", "1")
	if got, want := one.readers("w"), "one "+one.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
}

// Killed at any step of a mount or an unmount; then the plugin or the machine comes back.
func TestNoNoteOfACrashIsLeft(t *testing.T) {
	for name, comes := range map[string]func(n *node){"restart": (*node).restart, "reboot": (*node).reboot} {
		for _, after := range []bool{false, true} {
			virtual(t, fmt.Sprintf("%s, effect %v", name, after), func(t *testing.T) {
				for stopAt, crashed := 1, true; crashed; stopAt++ {
					_, one, two := shared(t)
					two.tap.calls, two.tap.stopAt, two.tap.after = 0, stopAt, after
					if _, err := two.Driver.Mount(within(t, ever), "w", "1"); err == nil {
						_ = two.Driver.Unmount(within(t, ever), "w", "1")
					}
					crashed = two.tap.dead
					if two.device("w") != "" && !strings.Contains(one.readers("w"), "two") {
						t.Fatalf("call %d: it is mapped and not noted", stopAt)
					}
					comes(two)
					two.Reconcile(within(t, ever))
					if one.readers("w") != "" || len(two.marks()) > 0 {
						t.Fatalf("call %d: left: %s, %v", stopAt, one.readers("w"), two.marks())
					}
					if err := one.Driver.Remove(within(t, ever), "w"); err != nil {
						t.Fatalf("call %d: %v", stopAt, err)
					}
				}
			})
		}
	}
}

// Another node removes the volume, or writes to it, at any step of a reader's mount.
// Whoever is later sees the other: never do both get what they want.
func TestAReaderAndAWriterSeeEachOther(t *testing.T) {
	for name, does := range map[string]func(n *node) bool{
		"remove": func(n *node) bool { return n.Driver.Remove(within(n.t, 100*time.Millisecond), "w") == nil },
		"write": func(n *node) bool {
			n.setMeta("w", "readonly", "false")
			_, err := n.Driver.Mount(within(n.t, 100*time.Millisecond), "w", "1")
			return err == nil
		},
	} {
		virtual(t, name, func(t *testing.T) {
			for at, reached := 1, true; reached; at++ {
				_, one, two := shared(t)
				calls, done := 0, false
				reached = false
				two.tap.on(func(string) error {
					if calls++; calls == at {
						reached = true
						two.client.Kill() // Ceph does not see its watch
						done = does(one)
					}
					return nil
				})
				_, err := two.Driver.Mount(within(t, soon), "w", "1")
				if reached && err == nil && done && two.device("w") != "" && two.deviceMode("w") == backend.ReadOnly {
					t.Errorf("call %d: both have it", at)
				}
				if reached && err != nil && !done {
					two.tap.on(nil)
					two.reconnect()
					if two.Reconcile(within(t, ever)); one.readers("w") != "" {
						t.Errorf("call %d: neither has it, and a note is left: %s", at, one.readers("w"))
					}
				}
			}
		})
	}
}

// A node is about to remove the volume, and has seen no reader, when one comes that
// has seen no guard.
func TestAReaderThatComesDuringARemovalIsRefused(t *testing.T) {
	synctest.Test(t, testAReaderThatComesDuringARemovalIsRefused)
}

func testAReaderThatComesDuringARemovalIsRefused(t *testing.T) {
	_, one, two := shared(t)
	reached, goOn, removed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	one.tap.on(func(call string) error {
		if call == "Handle.Remove" {
			close(reached)
			<-goOn
		}
		return nil
	})
	two.tap.on(func(call string) error {
		if call == "Images.Open to write" {
			two.tap.on(nil)
			go func() { removed <- one.Driver.Remove(within(t, ever), "w") }()
			<-reached
		}
		return nil
	})
	two.refused("w", "1", backend.ErrInUse, "node one", "removing")
	close(goOn)
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if two.device("w") != "" || len(two.marks()) > 0 {
		t.Errorf("left: %s, %v", two.device("w"), two.marks())
	}
}

func (n *node) deviceMode(volume string) backend.OpenMode {
	all, _ := n.Host.Mappings(n.t.Context())
	for _, m := range all {
		if m.Name == volume {
			return m.Mode
		}
	}
	return backend.ReadWrite
}

// A node dies with the guard of a volume that others read: nobody may write to that.
func TestAGuardThatIsLeftOnAReadOnlyVolumeIsTakenAway(t *testing.T) {
	c, one, two := shared(t)
	one.tap.on(func(call string) error {
		if call == "Handle.Remove" {
			one.tap.die()
			return errCrashed
		}
		return nil
	})
	if err := one.Driver.Remove(within(t, ever), "w"); err == nil {
		t.Fatal("it was removed")
	}
	client := one.guardOf("w").Addrs
	one.client.Kill()
	three := newNode(t, c, "three", "10.0.0.3")
	for _, n := range []*node{two, three} {
		n.tap.on(func(call string) error {
			if call == "Filesystem.Check" || call == "Handle.EnableExclusiveLock" {
				t.Errorf("node %s: %s", n.name, call)
			}
			return nil
		})
		n.mount("w", "1")
		if n.deviceMode("w") != backend.ReadOnly {
			t.Errorf("node %s may write to it", n.name)
		}
	}
	if fenced, err := two.client.Fenced(within(t, ever), client...); err != nil || !fenced[client[0]] {
		t.Errorf("fenced: %v, %v", fenced, err)
	}
}

// A node is gone for good, and what it noted is taken away by an operator.
func TestAnOperatorTakesTheNotesOfANodeThatIsGone(t *testing.T) {
	_, one, two := shared(t)
	one.mount("w", "1")
	two.mount("w", "1")
	two.crash()
	two.Host.Reboot()
	all, err := one.GuardStatus(within(t, ever))
	if err != nil || len(all) != 2 || all[1].Node != "two" || all[1].State != "reading" || all[1].Alive || !all[0].Alive {
		t.Errorf("%+v, %v", all, err)
	}
	_, err = one.FenceNode(within(t, ever), "one", "")
	check(t, err, backend.ErrInvalid, "this very node")
	taken, err := one.FenceNode(within(t, ever), "two", "")
	if err != nil || len(taken) != 1 || taken[0].Volume != "w" {
		t.Errorf("%+v, %v", taken, err)
	}
	if got, want := one.readers("w"), "one "+one.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
	one.unmount("w", "1")
	if err := one.Driver.Remove(within(t, ever), "w"); err != nil {
		t.Error(err)
	}
}

// It was not gone: what it reads it notes again.
func TestAReaderThatWasCalledGoneIsNotedAgain(t *testing.T) {
	_, one, two := shared(t)
	two.mount("w", "1")
	if _, err := one.FenceNode(within(t, ever), "two", ""); err != nil {
		t.Fatal(err)
	}
	two.Reconcile(within(t, ever))
	if got, want := one.readers("w"), "two "+two.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
}

// Its disk was cloned, with the marks of what the original reads.
func TestACloneLeavesTheNotesOfItsOriginal(t *testing.T) {
	c, one, two := shared(t)
	two.mount("w", "1")
	clone := newNode(t, c, "two", "10.0.0.9")
	clone.boot = "another"
	if err := os.CopyFS(clone.root, os.DirFS(two.root)); err != nil {
		t.Fatal(err)
	}
	clone.start()
	clone.Reconcile(within(t, ever))
	check(t, one.Driver.Remove(within(t, ever), "w"), backend.ErrInUse, "read-only by node two")
	if got, want := one.readers("w"), "two "+two.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
}

func TestSweepTakesTheNotesOfImagesThatAreGone(t *testing.T) {
	_, one, two := shared(t)
	two.mount("w", "1")
	h, err := one.client.Open(within(t, ever), "w", backend.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	one.Sweep(within(t, ever))
	if one.readers("w") == "" {
		t.Error("the note of an image that is there was swept away")
	}
	if err := h.Remove(within(t, ever), 0); err != nil { // by hand
		t.Fatal(err)
	}
	one.Sweep(within(t, ever))
	var left any
	if _, err := one.client.Load(within(t, ever), "readers."+h.Image().ID, &left); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Nodes of one kernel, as in containers, have one boot id.
func TestNodesOfOneKernelAreReadersEachForItself(t *testing.T) {
	_, one, two := shared(t)
	two.boot = one.boot
	two.start()
	one.mount("w", "1")
	two.mount("w", "1")
	one.unmount("w", "1")
	if got, want := one.readers("w"), "two "+two.client.Addr(); got != want {
		t.Errorf("noted: %s, want %s", got, want)
	}
	check(t, one.Driver.Remove(within(t, ever), "w"), backend.ErrInUse, "read-only by node two")
}

// A lease of the network has ended, and there was no reboot.
func TestAReaderWithAnotherAddressTakesItsNoteAway(t *testing.T) {
	_, one, two := shared(t)
	two.mount("w", "1")
	two.crash()
	two.IP = "10.0.0.77"
	two.start()
	two.Reconcile(within(t, ever))
	if got := one.readers("w"); got != "" || two.device("w") != "" {
		t.Errorf("left: %s, %s", got, two.device("w"))
	}
}
