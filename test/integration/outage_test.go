package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// What is wrong with one image is told of that image, and is no outage, whatever it is:
// the others are described, made, listed and taken over as ever. The user has no cap on
// the pool of templates, which is how a cluster that has other users looks.
func TestEveryBadImageIsAnErrorOfItsOwn(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	place := cfg.Pool + "/" + cfg.Namespace
	templates, parents, data := testbed.Pool(t), testbed.Pool(t), testbed.Pool(t)
	cfg.User = "client." + cfg.Namespace
	cfg.Keyring = testbed.User(t, cfg.User, "mon", "profile rbd", "osd",
		"profile rbd pool=rbd namespace="+cfg.Namespace+", profile rbd pool="+parents+", profile rbd pool="+data)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	for _, name := range []string{"ok", "held", "original"} {
		one.create(name, nil)
	}
	put(t, one.mount("held"), "of one")
	for _, name := range []string{"vm", "orphan", "nodata", "garbled", "stuffed"} {
		bad(t, name, place, templates, parents, data)
	}
	testbed.RBD(t, "snap", "create", place+"/original@s")
	testbed.RBD(t, "clone", "--rbd-default-clone-format", "2", place+"/original@s", templates+"/copy")

	for _, n := range []*node{one, two} { // the one that knows of them by its list only, too
		for name, says := range map[string]string{
			"vm": "rbd info", "orphan": "is gone", "nodata": "is gone", "garbled": "docker_volume.guard", "stuffed": "metadata",
		} {
			v, err := n.Get(n.context(time.Minute), name)
			if said := fmt.Sprint(v.Status["error"]); err != nil || v.Status["ceph"] != nil || !strings.Contains(said, says) {
				t.Errorf("%s of node %s: %v, %v; want an error that says %q", name, n.name, v.Status, err, says)
			}
			if _, err := n.Mount(n.context(20*time.Second), name, "id"); err == nil {
				t.Errorf("%s was mounted", name)
			}
		}
		v, err := n.Get(n.context(time.Minute), "original")
		if err != nil || v.Status["error"] != nil || v.Status["ceph"] != nil || v.Status["copies"] == nil {
			t.Errorf("a volume with a copy that is not this user's to see: %v, %v", v.Status, err)
		}
		late := "late" + n.name
		testbed.RBD(t, "create", "--size", "64M", place+"/"+late)
		all, err := n.List(n.context(time.Minute))
		if !strings.Contains(fmt.Sprint(all), late) || err != nil {
			t.Errorf("not listed: %v, %v", all, err)
		}
		for _, name := range []string{"ok", "held"} {
			if v, err := n.Get(n.context(time.Minute), name); err != nil || v.Status["error"] != nil || v.Status["ceph"] != nil {
				t.Errorf("%s of node %s: %v, %v", name, n.name, v.Status, err)
			}
		}
	}
	held, err := two.GuardStatus(two.context(time.Minute))
	if len(held) != 1 || held[0].Volume != "held" || err == nil {
		t.Errorf("who has what: %v, %v", held, err)
	}
	one.unmount("held")
	expect(t, two.mount("held"), "of one")
	two.unmount("held")
}

// bad makes an image that cannot be described, of the kind that its name says.
func bad(t *testing.T, name, place, templates, parents, data string) {
	t.Helper()
	image := place + "/" + name
	clone := func(pool string) {
		testbed.RBD(t, "create", "--size", "64M", pool+"/base")
		testbed.RBD(t, "snap", "create", pool+"/base@s")
		testbed.RBD(t, "clone", "--rbd-default-clone-format", "2", pool+"/base@s", image)
	}
	switch name {
	case "vm":
		clone(templates)
	case "orphan":
		clone(parents)
		testbed.Ceph(t, "osd", "pool", "rm", parents, parents, "--yes-i-really-really-mean-it")
	case "nodata":
		testbed.RBD(t, "create", "--size", "64M", "--data-pool", data, image)
		testbed.Ceph(t, "osd", "pool", "rm", data, data, "--yes-i-really-really-mean-it")
	case "garbled":
		testbed.RBD(t, "create", "--size", "64M", image)
		id := strings.TrimSpace(testbed.Run(t, "sh", "-c", "rbd -c "+testbed.Conf()+" info "+image+" | sed -n 's/.*id: //p'"))
		file := filepath.Join(t.TempDir(), "garbage")
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		pool, space, _ := strings.Cut(place, "/")
		testbed.Run(t, "rados", "-c", testbed.Conf(), "-p", pool, "-N", space, "put", "docker_volume.guard."+id, file)
	case "stuffed":
		testbed.RBD(t, "create", "--size", "64M", image)
		for i := range 5 {
			testbed.RBD(t, "image-meta", "set", image, fmt.Sprint("note", i), strings.Repeat("x", 64<<10))
		}
	}
}
