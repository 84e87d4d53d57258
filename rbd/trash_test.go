package rbd_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
)

// remove removes an image through the plugin.
func (o *objects) remove(name string, keep time.Duration) {
	o.t.Helper()
	h, err := o.pool.Open(o.t.Context(), name, backend.ReadWrite)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := h.Remove(o.t.Context(), keep); err != nil {
		o.t.Fatal(err)
	}
}

// aged makes an entry in the trash as one that was made that much earlier, with its mark.
func (o *objects) aged(id string, by time.Duration) {
	o.t.Helper()
	entry := o.get("rbd_trash", "id_"+id)
	shift := func(at int) time.Time {
		was := binary.LittleEndian.Uint32(entry[at:])
		binary.LittleEndian.PutUint32(entry[at:], was-uint32(by/time.Second))
		return time.Unix(int64(was), 0).Add(-by)
	}
	shift(len(entry) - 17)
	end := shift(len(entry) - 9)
	o.set("rbd_trash", "id_"+id, entry)
	o.set("rbd_header."+id, "metadata_docker_volume.removed", []byte(id+" "+end.UTC().Format(time.RFC3339)))
}

func (o *objects) purge(want ...string) {
	o.t.Helper()
	names, err := o.pool.Purge(o.t.Context())
	if err != nil || !slices.Equal(names, want) {
		o.t.Fatalf("purged: %v, %v; want %v", names, err, want)
	}
}

// gone waits for the manager.
func (o *objects) gone(id string) {
	o.t.Helper()
	for end := time.Now().Add(30 * time.Second); o.inTrash(id); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatal("it is still in the trash")
		}
	}
}

func TestPurgeEndsWhatWasCutShort(t *testing.T) {
	for name, row := range map[string]struct {
		cut   func(o *objects, id string)
		purge bool
	}{
		"entry":         {func(o *objects, id string) { o.list("a", id); o.name("a", id); o.trashed(id, moving) }, false},
		"rbd_id":        {func(o *objects, id string) { o.list("a", id); o.trashed(id, moving) }, true},
		"rbd_directory": {func(o *objects, id string) { o.trashed(id, moving) }, true},
		"all but data":  {func(*objects, string) {}, true},
		"data begun":    {func(o *objects, id string) { o.trashed(id, removing) }, true},
		"header":        {func(o *objects, id string) { o.trashed(id, removing); o.rados("rm", "rbd_header."+id) }, true},
		"restoring":     {func(o *objects, id string) { o.trashed(id, restoring) }, false},
		"name of another": {func(o *objects, id string) {
			o.trashed(id, moving)
			backendtest.Create(o.t, o.pool, "a", 8<<20)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			image := o.written("a")
			o.remove("a", time.Hour)
			o.aged(image.ID, 2*time.Hour)
			row.cut(o, image.ID)
			if !row.purge {
				o.purge()
				if !o.inTrash(image.ID) || len(o.data(image.ID)) == 0 {
					t.Error("it is gone")
				}
				return
			}
			o.purge("a")
			o.gone(image.ID)
			if there, err := o.pool.Exists(t.Context(), "a"); err != nil || there != (name == "name of another") {
				t.Errorf("exists: %v, %v", there, err)
			}
		})
	}
}

// trashedBefore has an operator put an image into the trash, two hours ago.
func (o *objects) trashedBefore(name, id string) (end time.Time) {
	o.t.Helper()
	o.rbd("trash", "mv", "--expires-at", "now", o.spec(name))
	entry := o.get("rbd_trash", "id_"+id)
	for _, at := range []int{len(entry) - 17, len(entry) - 9} {
		seconds := binary.LittleEndian.Uint32(entry[at:]) - 7200
		binary.LittleEndian.PutUint32(entry[at:], seconds)
		end = time.Unix(int64(seconds), 0)
	}
	o.set("rbd_trash", "id_"+id, entry)
	return end
}

// A mark is that of one image, once in the trash: not of what an operator puts there
// after it was restored.
func TestAMarkIsOfOneEntryOfTheTrash(t *testing.T) {
	o := newObjects(t)
	image := o.written("a")
	o.remove("a", time.Hour)
	o.rbd("trash", "restore", o.spec(image.ID))
	o.trashedBefore("a", image.ID)
	o.purge()
	if !o.inTrash(image.ID) {
		t.Error("what an operator put into the trash was deleted")
	}
}

// A copy has the mark of its original, which is none of its own.
func TestAMarkIsNotThatOfACopy(t *testing.T) {
	o := newObjects(t)
	image := o.written("a")
	o.remove("a", time.Hour)
	o.rbd("trash", "restore", o.spec(image.ID))
	o.rbd("snap", "create", o.spec("a@s"))
	o.rbd("clone", "--rbd-default-clone-format", "2", o.spec("a@s"), o.spec("b"))
	id := o.id("b")
	if inherited := o.rados("getomapval", "rbd_header."+id, "metadata_docker_volume.removed"); !strings.Contains(inherited, "value") {
		t.Fatalf("the copy has no mark: %s", inherited)
	}
	end := o.trashedBefore("b", id)
	o.set("rbd_header."+id, "metadata_docker_volume.removed", []byte(image.ID+" "+end.UTC().Format(time.RFC3339)))
	o.purge()
	if !o.inTrash(id) {
		t.Error("what an operator put into the trash was deleted")
	}
}

// What was not to be kept, and was when its removal died, goes.
func TestWhatIsNotToBeKeptIsPurged(t *testing.T) {
	o := newObjects(t)
	image := o.written("a")
	o.remove("a", time.Second)
	o.aged(image.ID, time.Hour)
	entry := o.get("rbd_trash", "id_"+image.ID)
	copy(entry[len(entry)-17:], entry[len(entry)-9:len(entry)-1]) // to be deleted when it was put there
	o.set("rbd_trash", "id_"+image.ID, entry)
	o.purge("a")
	o.gone(image.ID)
}

// A removal that died at its first step, and another one after it: the times are of the
// second.
func TestARemovalAfterOneThatDied(t *testing.T) {
	for name, state := range map[string]byte{"moving": moving, "restoring": restoring} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			image := o.written("a")
			o.remove("a", time.Hour)
			o.aged(image.ID, 2*time.Hour)
			o.list("a", image.ID)
			o.name("a", image.ID)
			o.trashed(image.ID, state)
			o.remove("a", time.Hour)
			o.purge()
			if !o.inTrash(image.ID) || len(o.data(image.ID)) == 0 {
				t.Error("it is gone, before its time")
			}
			entry := o.get("rbd_trash", "id_"+image.ID)
			if end := time.Unix(int64(binary.LittleEndian.Uint32(entry[len(entry)-9:])), 0); time.Until(end) < 50*time.Minute {
				t.Errorf("it is kept until %s", end)
			}
			o.rbd("trash", "restore", o.spec(image.ID))
		})
	}
}

// A clone in the trash that librbd does not find, as it does not find its parent, is kept
// and told: nobody else was faster.
func TestACloneInTheTrashWhoseParentIsLost(t *testing.T) {
	o := newObjects(t)
	parent, clone, _ := o.copied()
	a := o.open("a")
	if err := a.RemoveSnapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	_ = a.Close(t.Context())
	o.remove("a", 24*time.Hour)
	o.remove("b", time.Hour)
	o.aged(clone.ID, 2*time.Hour)
	entry := o.get("rbd_trash", "id_"+parent.ID)
	o.rados("rmomapkey", "rbd_trash", "id_"+parent.ID)
	names, err := o.pool.Purge(t.Context())
	if len(names) > 0 || err == nil || !strings.Contains(err.Error(), "is it a clone whose parent is gone?") || !o.inTrash(clone.ID) {
		t.Errorf("purged: %v, %v", names, err)
	}
	o.set("rbd_trash", "id_"+parent.ID, entry)
	o.purge("b")
	o.gone(clone.ID)
}

// Between the look that finds its time to be up and its deletion, for which the manager is
// asked first, an image was restored, used, and removed again, to be kept: it is.
func TestAnImageThatIsInTheTrashAgainIsKept(t *testing.T) {
	o := newObjects(t)
	backendtest.Create(t, o.pool, "a", 8<<20)
	id := o.get("rbd_directory", "name_a")
	image := string(id[4:])
	o.remove("a", time.Second)
	err := o.pool.DeleteDue(t.Context(), image, func() {
		o.rbd("trash", "restore", "--pool", o.cfg.Pool, "--namespace", o.cfg.Namespace, image)
		o.remove("a", time.Hour)
	})
	if !errors.Is(err, backend.ErrNotFound) || !o.inTrash(image) {
		t.Fatalf("deleted: %v", err)
	}
	o.rbd("trash", "restore", "--pool", o.cfg.Pool, "--namespace", o.cfg.Namespace, image) // it is not marked as going
	o.remove("a", time.Second)
	if err := o.pool.DeleteDue(t.Context(), image, func() {}); err != nil || o.inTrash(image) {
		t.Errorf("when its time is up: %v", err)
	}
}
