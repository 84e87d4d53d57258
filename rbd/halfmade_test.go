package rbd_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// objects are what librbd keeps of the images of a namespace: a test makes of them what
// a call of librbd leaves that is killed between two of its steps.
type objects struct {
	t    *testing.T
	cfg  rbd.Config
	pool *rbd.Pool
}

func newObjects(t *testing.T) *objects {
	cfg := testbed.Namespace(t)
	return &objects{t: t, cfg: cfg, pool: connect(t, cfg)}
}

func (o *objects) rados(args ...string) string {
	o.t.Helper()
	return testbed.Run(o.t, "rados", append([]string{"-c", testbed.Conf(), "-p", o.cfg.Pool, "-N", o.cfg.Namespace}, args...)...)
}

func (o *objects) spec(name string) string { return o.cfg.Pool + "/" + o.cfg.Namespace + "/" + name }

func (o *objects) rbd(args ...string) string {
	o.t.Helper()
	return testbed.RBD(o.t, args...)
}

func encoded(s string) []byte { return append([]byte{byte(len(s)), 0, 0, 0}, s...) }

func (o *objects) file(data []byte) string {
	o.t.Helper()
	path := filepath.Join(o.t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

func (o *objects) set(object, key string, value []byte) {
	o.t.Helper()
	testbed.Run(o.t, "sh", "-c", fmt.Sprintf("rados -c %s -p %s -N %s setomapval %s %s < %s",
		testbed.Conf(), o.cfg.Pool, o.cfg.Namespace, object, key, o.file(value)))
}

func (o *objects) get(object, key string) []byte {
	o.t.Helper()
	path := filepath.Join(o.t.TempDir(), "value")
	o.rados("getomapval", object, key, path)
	data, err := os.ReadFile(path)
	if err != nil {
		o.t.Fatal(err)
	}
	return data
}

// list and unlist are the two entries of rbd_directory; name and unname is rbd_id.NAME.
func (o *objects) list(name, id string) {
	o.set("rbd_directory", "name_"+name, encoded(id))
	o.set("rbd_directory", "id_"+id, encoded(name))
}

func (o *objects) unlist(name, id string) {
	o.rados("rmomapkey", "rbd_directory", "name_"+name)
	o.rados("rmomapkey", "rbd_directory", "id_"+id)
}

func (o *objects) name(name, id string) { o.rados("put", "rbd_id."+name, o.file(encoded(id))) }
func (o *objects) unname(name string)   { o.rados("rm", "rbd_id."+name) }

// trashed makes the state of an image in the trash: the last byte of its entry.
func (o *objects) trashed(id string, state byte) {
	o.t.Helper()
	entry := o.get("rbd_trash", "id_"+id)
	entry[len(entry)-1] = state
	o.set("rbd_trash", "id_"+id, entry)
}

func (o *objects) inTrash(id string) bool {
	o.t.Helper()
	return strings.Contains(o.rbd("trash", "ls", "--all", o.cfg.Pool+"/"+o.cfg.Namespace), id+" ")
}

// written makes an image with something on it.
func (o *objects) written(name string) backend.Image {
	o.t.Helper()
	image := backendtest.Create(o.t, o.pool, name, 8<<20)
	o.rbd("bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4K", o.spec(name))
	return image
}

func (o *objects) data(id string) []string {
	o.t.Helper()
	return slices.DeleteFunc(strings.Fields(o.rados("ls")), func(name string) bool { return !strings.HasPrefix(name, "rbd_data."+id) })
}

func (o *objects) create(name string) error {
	return o.pool.Create(o.t.Context(), backend.ImageSpec{Name: name, Size: 16 << 20, Features: backendtest.Features})
}

func (o *objects) id(name string) string {
	o.t.Helper()
	h, err := o.pool.Open(o.t.Context(), name, backend.ReadOnly)
	if err != nil {
		o.t.Fatal(err)
	}
	defer func() { _ = h.Close(o.t.Context()) }()
	return h.Image().ID
}

const (
	inTrash = iota
	moving
	removing
	restoring
)

// An image of which a small object is missing is whole: it is found, and nobody makes
// another in its place.
func TestAWholeImageIsMendedAndNotMadeAnew(t *testing.T) {
	ctx := t.Context()
	for name, look := range map[string]func(o *objects) error{
		"create": func(o *objects) error { return o.create("a") },
		"exists": func(o *objects) error {
			if there, err := o.pool.Exists(ctx, "a"); err != nil || !there {
				return fmt.Errorf("exists: %v, %w", there, err)
			}
			return backend.ErrExists
		},
		"id": func(o *objects) error {
			if id, err := o.pool.ID(ctx, "a"); err != nil || id == "" {
				return fmt.Errorf("id: %q, %w", id, err)
			}
			return backend.ErrExists
		},
		"open": func(o *objects) error {
			o.id("a")
			return backend.ErrExists
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			image := o.written("a")
			o.unname("a")
			if err := look(o); !errors.Is(err, backend.ErrExists) {
				t.Error(err)
			}
			if id := o.id("a"); id != image.ID || len(o.data(image.ID)) == 0 {
				t.Errorf("id %s, was %s; data: %v", id, image.ID, o.data(image.ID))
			}
		})
	}
}

// What is damaged otherwise is refused, by who looks and by who creates, and stays.
func TestADamagedImageIsRefused(t *testing.T) {
	for name, row := range map[string]struct {
		damage func(o *objects, id string)
		says   string
	}{
		"no header":                    {func(o *objects, id string) { o.rados("rm", "rbd_header."+id) }, "has lost its object rbd_header."},
		"no header, no object map":     {func(o *objects, id string) { o.rados("rm", "rbd_header."+id, "rbd_object_map."+id) }, "there is still rbd_data."},
		"the name leads to another id": {func(o *objects, _ string) { o.unname("a"); o.name("a", "123abc") }, "make these agree"},
		"the id leads to another name": {func(o *objects, id string) { o.unname("a"); o.set("rbd_directory", "id_"+id, encoded("b")) }, "make these agree"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			image := o.written("a")
			row.damage(o, image.ID)
			before := o.rados("ls")
			_, open := o.pool.Open(t.Context(), "a", backend.ReadOnly)
			_, exists := o.pool.Exists(t.Context(), "a")
			for what, err := range map[string]error{"open": open, "exists": exists, "create": o.create("a")} {
				if err == nil || errors.Is(err, backend.ErrNotFound) || !strings.Contains(err.Error(), row.says) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if after := o.rados("ls"); len(strings.Fields(after)) != len(strings.Fields(before)) {
				t.Errorf("objects were %s, are %s", before, after)
			}
		})
	}
}

// A create that was killed has left a name; an image is made anew.
func TestAKilledCreateAtEachStep(t *testing.T) {
	for name, cut := range map[string]func(o *objects, id string){
		"rbd_directory":         func(o *objects, id string) { o.unname("a"); o.rados("rm", "rbd_header."+id, "rbd_object_map."+id) },
		"rbd_id":                func(o *objects, id string) { o.rados("rm", "rbd_header."+id, "rbd_object_map."+id) },
		"rbd_id, not directory": func(o *objects, id string) { o.unlist("a", id); o.rados("rm", "rbd_header."+id, "rbd_object_map."+id) },
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			image := backendtest.Create(t, o.pool, "a", 8<<20)
			cut(o, image.ID)
			if there, err := o.pool.Exists(t.Context(), "a"); err != nil || there {
				t.Errorf("exists: %v, %v", there, err)
			}
			if _, err := o.pool.Open(t.Context(), "a", backend.ReadOnly); !errors.Is(err, backend.ErrNotFound) {
				t.Error(err)
			}
			if err := o.create("a"); err != nil {
				t.Fatal(err)
			}
			if id := o.id("a"); id == image.ID {
				t.Error("it is the same")
			}
			if names, err := o.pool.Names(t.Context()); err != nil || !slices.Equal(names, []string{"a"}) {
				t.Errorf("names: %v, %v", names, err)
			}
		})
	}
}

// A move to the trash, or out of it, that was killed: what is in the trash stays, and can
// be restored under another name; or it is back.
func TestAKilledMoveToTheTrashAtEachStep(t *testing.T) {
	for name, row := range map[string]struct {
		cut  func(o *objects, id string)
		back bool
	}{
		"entry":                {func(o *objects, id string) { o.list("a", id); o.name("a", id); o.trashed(id, moving) }, true},
		"rbd_id":               {func(o *objects, id string) { o.list("a", id); o.trashed(id, moving) }, false},
		"rbd_directory":        {func(o *objects, id string) { o.trashed(id, moving) }, false},
		"done, and yet listed": {func(o *objects, id string) { o.list("a", id) }, false},
		"restore, entry":       {func(o *objects, id string) { o.trashed(id, restoring) }, false},
		"restore, rbd_id":      {func(o *objects, id string) { o.trashed(id, restoring); o.name("a", id) }, true},
		"restore, directory":   {func(o *objects, id string) { o.trashed(id, restoring); o.name("a", id); o.list("a", id) }, true},
		"restore, listed only": {func(o *objects, id string) { o.trashed(id, restoring); o.list("a", id) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			image := o.written("a")
			o.rbd("trash", "mv", o.spec("a"))
			row.cut(o, image.ID)
			if there, err := o.pool.Exists(t.Context(), "a"); err != nil || there != row.back {
				t.Errorf("exists: %v, %v", there, err)
			}
			err := o.create("a")
			if row.back && !errors.Is(err, backend.ErrExists) || !row.back && err != nil {
				t.Fatal(err)
			}
			if id := o.id("a"); (id == image.ID) != row.back {
				t.Errorf("id %s, was %s", id, image.ID)
			}
			if len(o.data(image.ID)) == 0 {
				t.Error("the data is gone")
			}
			if row.back {
				return
			}
			if name == "rbd_directory" {
				o.trashed(image.ID, inTrash) // Purge completes it: see there
			}
			o.rbd("trash", "restore", "--image", "old", o.spec(image.ID))
			if id := o.id("old"); id != image.ID {
				t.Errorf("restored: %s", id)
			}
		})
	}
}

// A rename that was killed leaves an image with two names, of which one is listed: under
// the other it is not removed.
func TestARenameThatWasKilled(t *testing.T) {
	for _, listed := range []string{"a", "b"} {
		o := newObjects(t)
		image := o.written("a")
		o.name("b", image.ID)
		other := "b"
		if listed == "b" {
			o.unlist("a", image.ID)
			o.list("b", image.ID)
			other = "a"
		}
		h := o.open(other)
		err := h.Remove(t.Context(), time.Hour)
		if !errors.Is(err, backend.ErrBusy) || !strings.Contains(err.Error(), `lists the image as "`+listed+`"`) || !strings.Contains(err.Error(), "rm rbd_id."+other) {
			t.Error(err)
		}
		_ = h.Close(t.Context())
		o.unname(other)
		o.remove(listed, time.Hour)
	}
}
