package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// load writes numbered lines to a file and syncs each, as a database does with its
// log, until stop is called. Synced is the last one that is safe.
type load struct {
	synced atomic.Int64
	end    chan struct{}
	ended  chan error
}

func writeTo(t *testing.T, file string) *load {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{end: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		defer func() { _ = f.Close() }()
		for n := int64(1); ; n++ {
			select {
			case <-l.end:
				l.ended <- nil
				return
			default:
			}
			_, err := fmt.Fprintf(f, "%060d\n", n)
			if err = errors.Join(err, f.Sync()); err != nil {
				l.ended <- err
				return
			}
			l.synced.Store(n)
		}
	}()
	for l.synced.Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	return l
}

func (l *load) stop(t *testing.T) {
	t.Helper()
	close(l.end)
	if err := <-l.ended; err != nil {
		t.Errorf("the writer: %v", err)
	}
}

// has tells that a file holds all lines up to this one, and then no more than one
// that is not whole.
func has(t *testing.T, file string, least int64) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(data), "\x00"), "\n")
	for n, line := range lines[:len(lines)-1] {
		if line != fmt.Sprintf("%060d", n+1) {
			t.Fatalf("line %d of %s is %q", n+1, file, line)
		}
	}
	if got := int64(len(lines) - 1); got < least {
		t.Errorf("%s has %d lines, %d were synced", file, got, least)
	}
}

// idOf is the id of the filesystem that a file is in.
func idOf(t *testing.T, file string) string {
	t.Helper()
	device := strings.TrimSpace(testbed.Run(t, "findmnt", "-n", "-o", "SOURCE", "--target", file))
	return testbed.Run(t, "blkid", "-p", "-o", "value", "-s", "UUID", device)
}

// A volume is copied while it is written to: on its own node, where it is frozen for
// that, and on another one, where the copy is as after a power cut. Both are
// mounted beside the original, and all that was synced is in them.
func TestCopiesOfAVolumeThatIsWrittenTo(t *testing.T) {
	t.Parallel()
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			t.Parallel()
			cfg := testbed.Namespace(t)
			one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
			one.create("db", map[string]string{"fstype": fstype, "size": "400M", "labels": "team=blue", "protected": "true"})
			file := one.mount("db")
			l := writeTo(t, file)

			here, elsewhere := map[string]string{"from": "db"}, map[string]string{"from": "db", "labels": "team=red", "size": "500M"}
			before := l.synced.Load()
			one.create("here", here)
			one.create("here", here) // as Docker repeats itself
			copied := one.mount("here")
			has(t, copied, before)
			if same := idOf(t, copied) == idOf(t, file); same != (fstype == "ext4") { // of which ext4 minds no two
				t.Errorf("the copy's filesystem has the id of the original's: %v", same)
			}
			put(t, copied, "another content")
			before = l.synced.Load()
			two.create("elsewhere", elsewhere)
			if v, err := one.Get(t.Context(), "elsewhere"); err != nil || v.Status["size"] != "500MiB" || v.Status["filesystem"] != fstype+" (a copy, made complete at the first mount)" {
				t.Errorf("before its first mount: %v, %v", v.Status, err)
			}
			has(t, two.mount("elsewhere"), before)
			l.stop(t)

			v, err := two.Get(t.Context(), "elsewhere")
			if err != nil {
				t.Fatal(err)
			}
			if v.Status["size"] != "500MiB" || v.Status["protected"] != nil || fmt.Sprint(v.Status["labels"]) != "map[team:red]" ||
				!strings.HasPrefix(fmt.Sprint(v.Status["parent"]), "rbd/"+cfg.Namespace+"/db@") {
				t.Errorf("inspect: %v", v.Status)
			}
			if v, err := one.Get(t.Context(), "db"); err != nil || v.Status["snapshots"] != nil {
				t.Errorf("snapshots that were made for the copies are left: %v, %v", v.Status["snapshots"], err)
			}
			for n, volume := range map[*node]string{one: "here", two: "elsewhere"} {
				n.unmount(volume)
				if err := n.Remove(n.context(time.Minute), volume); err != nil {
					t.Error(err)
				}
			}
			has(t, file, l.synced.Load())
			one.unmount("db")
			if err := one.Remove(one.context(time.Minute), "db"); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), "docker_volume.protected false") {
				t.Errorf("removing a protected volume: %v", err)
			}
		})
	}
}

// A snapshot that rbd made, under load, is a volume on two nodes at once; nobody can
// write it, nor remove it from under them.
func TestASnapshotIsMountedOnTwoNodes(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	spec := cfg.Pool + "/" + cfg.Namespace + "/db"
	for _, fstype := range []string{"ext4", "xfs"} { // those that replay a journal when they are mounted
		one.create("db", map[string]string{"fstype": fstype, "size": "400M"})
		l := writeTo(t, one.mount("db"))
		before := l.synced.Load()
		testbed.RBD(t, "snap", "create", "--no-progress", spec+"@monday")
		one.create("look", map[string]string{"snapshot": "db@monday"})
		two.create("look", map[string]string{"snapshot": "db@monday"})
		a, b := one.mount("look"), two.mount("look")
		for _, file := range []string{a, b} {
			has(t, file, before)
			if err := tryPut(filepath.Join(filepath.Dir(file), "new"), "x"); err == nil {
				t.Errorf("%s was written to", file)
			}
		}
		if _, held := one.guard("look"); held {
			t.Error("there is a guard of a read-only volume")
		}
		if err := one.Remove(one.context(time.Minute), "look"); !errors.Is(err, backend.ErrBusy) {
			t.Errorf("removed while it is mounted here: %v", err)
		}
		one.unmount("look")
		if err := one.Remove(one.context(time.Minute), "look"); !errors.Is(err, backend.ErrInUse) || !strings.Contains(err.Error(), "read-only by node two") {
			t.Errorf("removed while it is mounted elsewhere: %v", err)
		}
		has(t, b, before)
		has(t, one.mount("look"), before)
		one.unmount("look")
		two.unmount("look")
		if err := two.Remove(two.context(time.Minute), "look"); err != nil {
			t.Error(err)
		}
		l.stop(t)
		one.unmount("db")
		if err := one.Remove(one.context(time.Minute), "db"); !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), "1 snapshots") {
			t.Errorf("removed with a snapshot: %v", err)
		}
		testbed.RBD(t, "snap", "purge", "--no-progress", spec)
		if err := one.Remove(one.context(time.Minute), "db"); err != nil {
			t.Error(err)
		}
	}
	if left := records(t, cfg); left != "" {
		t.Errorf("records left: %s", left)
	}
}

func TestRollBack(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	one.create("v", nil)
	file := one.mount("v")
	put(t, file, "monday")
	if frozen, err := one.CreateSnapshot(t.Context(), "v", "monday"); err != nil || !frozen {
		t.Errorf("a snapshot of what is mounted here: frozen %v, %v", frozen, err)
	}
	if frozen, err := two.CreateSnapshot(t.Context(), "v", "elsewhere"); err != nil || frozen {
		t.Errorf("a snapshot of what is mounted elsewhere: frozen %v, %v", frozen, err)
	}
	put(t, file, "tuesday")
	for n, kind := range map[*node]error{one: backend.ErrBusy, two: backend.ErrInUse} {
		if err := n.Rollback(n.context(time.Minute), "v", "monday"); !errors.Is(err, kind) {
			t.Errorf("rolled back while mounted, by node %s: %v", n.name, err)
		}
	}
	expect(t, file, "tuesday")
	one.unmount("v")
	if err := two.Rollback(two.context(time.Minute), "v", "sunday"); !errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), "there are: monday, elsewhere") {
		t.Errorf("to a snapshot that is not there: %v", err)
	}
	if err := two.Rollback(two.context(time.Minute), "v", "monday"); err != nil {
		t.Fatal(err)
	}
	expect(t, one.mount("v"), "monday")
	one.unmount("v")
	for _, snap := range []string{"monday", "elsewhere"} {
		if err := one.RemoveSnapshot(t.Context(), "v", snap); err != nil {
			t.Error(err)
		}
	}
	if snaps, err := one.Snapshots(t.Context(), "v"); err != nil || len(snaps) != 0 {
		t.Errorf("snapshots: %v, %v", snaps, err)
	}
}

// keepsTrash is a node whose plugin keeps removed volumes.
func keepsTrash(t *testing.T, cfg rbd.Config, name string, keep time.Duration) *node {
	return newNodeWith(t, cfg, name, func(c *driver.Config) { c.Trash = keep })
}

// A removed volume comes back from the trash with all that it was, and what its time
// is up for goes, once its copies need it no more.
func TestTheTrash(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	place := cfg.Pool + "/" + cfg.Namespace
	one := keepsTrash(t, cfg, "one", time.Hour)
	one.create("v", map[string]string{"labels": "team=blue", "mountOptions": "noatime,commit=9"})
	put(t, one.mount("v"), "kept")
	one.unmount("v")
	id := one.id("v")
	if err := one.Remove(one.context(time.Minute), "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Get(t.Context(), "v"); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("get after the removal: %v", err)
	}
	one.create("v", nil) // the name is free
	if err := one.Remove(one.context(time.Minute), "v"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		list := testbed.RBD(t, "trash", "ls", place)
		if strings.Count(list, "\n") == 1 && strings.Contains(list, id) { // the second was never mounted
			break
		}
		if time.Now().After(end) {
			t.Fatalf("in the trash: %s", list)
		}
	}
	one.Driver.Purge(t.Context())
	testbed.RBD(t, "trash", "restore", place+"/"+id)
	expect(t, one.mount("v"), "kept")
	if v, err := one.Get(t.Context(), "v"); err != nil || fmt.Sprint(v.Status["labels"]) != "map[team:blue]" || v.Status["mountOptions"] != "noatime,commit=9" {
		t.Errorf("restored: %v, %v", v.Status, err)
	}

	// What others have put there is theirs, whatever its time.
	testbed.RBD(t, "create", "--size", "8M", place+"/theirs")
	testbed.RBD(t, "trash", "mv", "--expires-at", "1 second", place+"/theirs")
	two := keepsTrash(t, cfg, "two", time.Second)
	two.create("copy", map[string]string{"from": "v"})
	put(t, two.mount("copy"), "the copy's")
	one.unmount("v")
	if err := two.Remove(two.context(time.Minute), "v"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(500 * time.Millisecond) {
		two.Driver.Purge(t.Context()) // has the manager flatten the copy, which is mounted meanwhile, and then goes
		there, err := two.pool.HasID(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if !there {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the original of a copy is still in the trash; tasks: %s", testbed.Ceph(t, "rbd", "task", "list"))
		}
	}
	if list := testbed.RBD(t, "trash", "ls", place); !strings.Contains(list, "theirs") {
		t.Errorf("what others put into the trash has gone: %s", list)
	}
	file := filepath.Join(two.Path(t.Context(), "copy"), "file")
	expect(t, file, "the copy's")
	put(t, file, "and again")
	if v, err := two.Get(t.Context(), "copy"); err != nil || v.Status["parent"] != nil {
		t.Errorf("the copy: %v, %v", v.Status, err)
	}
	two.unmount("copy")
	expect(t, one.mount("copy"), "and again")
	one.unmount("copy")
}

// The pool of a copy's original is deleted, which Ceph lets an admin do: the copy cannot
// be opened any more, but it is not "not found", and nobody deletes it.
func TestACopyWhosePoolOfOriginIsGone(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	elsewhere := cfg
	elsewhere.Pool, elsewhere.Namespace = testbed.Pool(t), ""
	from, one := newNode(t, elsewhere, "one"), newNode(t, cfg, "one")
	from.create("v", nil)
	put(t, from.mount("v"), "of the original")
	from.unmount("v")
	if err := one.CreateFrom(one.context(time.Minute), "w", map[string]string{"from": "v"}, from.Driver); err != nil {
		t.Fatal(err)
	}
	put(t, one.mount("w"), "of the copy")
	one.unmount("w")
	testbed.Ceph(t, "osd", "pool", "rm", elsewhere.Pool, elsewhere.Pool, "--yes-i-really-really-mean-it")
	if w, err := newNode(t, cfg, "new").Get(t.Context(), "w"); err != nil || w.Status["error"] == nil {
		t.Errorf("get: %v, %v", w, err)
	}
	for op, err := range map[string]error{
		"create": one.Create(one.context(time.Minute), "w", nil), "remove": one.Remove(one.context(time.Minute), "w"),
	} {
		if !errors.Is(err, backend.ErrUnusable) || errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if list := testbed.RBD(t, "ls", cfg.Pool+"/"+cfg.Namespace); list != "w\n" {
		t.Errorf("images: %q", list)
	}
}
