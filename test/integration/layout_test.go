package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

// Data in an erasure-coded pool, which wants BlueStore and three OSDs: a cluster of
// its own. A key without a cap on that pool is told so at once.
func TestAnErasureCodedDataPool(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "ec")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "c")
	conf := filepath.Join(dir, "ceph.conf")
	t.Cleanup(func() {
		testbed.Run(t, "../cluster.sh", "stop", dir)
		_ = os.RemoveAll(base)
	})
	testbed.Run(t, "env", "CLUSTER_OSDS=3", "../cluster.sh", "start", dir, "--bluestore")
	for _, args := range []string{
		"osd erasure-code-profile set ec21 k=2 m=1 crush-failure-domain=osd", "osd pool create ec 8 8 erasure ec21",
		"osd pool set ec allow_ec_overwrites true", "osd pool application enable ec rbd",
	} {
		testbed.Run(t, "ceph", append([]string{"-c", conf}, strings.Fields(args)...)...)
	}
	cfg := rbd.Config{Cluster: "ceph", ConfFile: conf, User: "client.tests", Pool: "rbd"}
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	one.create("v", map[string]string{"data-pool": "ec", "stripe-unit": "1M", "stripe-count": "2", "object-size": "2M"})
	put(t, one.mount("v"), strings.Repeat("coded", 1<<20))
	v, err := one.Get(t.Context(), "v")
	if err != nil || v.Status["data pool"] != "ec" || v.Status["object size"] != "2MiB" || v.Status["stripe unit"] != "1MiB" || fmt.Sprint(v.Status["stripe count"]) != "2" {
		t.Errorf("inspect: %v, %v", v.Status, err)
	}
	one.create("copy", map[string]string{"from": "v", "data-pool": "ec"})
	one.unmount("v")
	for _, name := range []string{"v", "copy"} {
		expect(t, two.mount(name), strings.Repeat("coded", 1<<20))
		two.unmount(name)
	}
	out := testbed.Run(t, "sh", "-c", "rados -c "+conf+" -p ec ls | grep -c ^rbd_data; rados -c "+conf+" -p rbd ls | grep -c ^rbd_data || true")
	if got := strings.Fields(out); len(got) != 2 || got[0] == "0" || got[1] != "0" {
		t.Errorf("data objects in the pools: %q", out)
	}
	weak := cfg
	weak.User = "client.docker" // its caps are those of pool rbd
	err = newNode(t, weak, "weak").Create(one.context(time.Minute), "w", map[string]string{"data-pool": "ec"})
	if !errors.Is(err, driver.ErrInvalid) || !strings.Contains(err.Error(), "may not use that pool") {
		t.Errorf("a key without the cap: %v", err)
	}
}

// A key that reaches no further than its namespace is enough for all that a volume
// can be there, and for nothing beside it.
func TestAKeyOfOneNamespace(t *testing.T) {
	t.Parallel()
	cfg, other := testbed.Namespace(t), testbed.Namespace(t)
	cap := "profile rbd pool=rbd namespace=" + cfg.Namespace
	cfg.User = "client." + cfg.Namespace
	cfg.Keyring = testbed.User(t, cfg.User, "mon", "profile rbd", "osd", cap, "mgr", cap)
	one, two := newNode(t, cfg, "one"), keepsTrash(t, cfg, "two", time.Second)
	one.create("v", nil)
	put(t, one.mount("v"), "here")
	one.create("copy", map[string]string{"from": "v"})
	expect(t, two.mount("copy"), "here")
	if frozen, err := one.Snap(t.Context(), "v", "s"); err != nil || !frozen {
		t.Errorf("snapshot: %v, %v", frozen, err)
	}
	one.create("look", map[string]string{"snapshot": "v@s"})
	expect(t, two.mount("look"), "here")
	for _, name := range []string{"copy", "look"} {
		two.unmount(name)
		if err := two.Remove(two.context(time.Minute), name); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(2 * time.Second)
	two.Driver.Purge(t.Context())
	one.unmount("v")
	cfg.Namespace = other.Namespace
	err := newNode(t, cfg, "lost").Create(one.context(time.Minute), "v", nil)
	if !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "ceph refuses this key") {
		t.Errorf("in another namespace: %v", err)
	}
	err = one.Create(one.context(time.Minute), "secret", map[string]string{"encryption": "luks2", "passphrase": "ceph:x"})
	if !errors.Is(err, driver.ErrInvalid) || !strings.Contains(err.Error(), "this user may not read it") {
		t.Errorf("a passphrase without the cap: %v", err)
	}
}
