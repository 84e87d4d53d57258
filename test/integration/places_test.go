package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/tool"
)

// An image that is made larger with rbd resize has a larger filesystem within two
// seconds, if it is mounted, encrypted or not, and at its next mount if it is not.
func TestGrowth(t *testing.T) {
	cfg := testbed.Namespace(t)
	testbed.Passphrase(t, "growth", "open sesame")
	one := newNode(t, cfg, "one")
	go one.Follow(t.Context(), time.Second)
	for _, row := range []struct{ name, fstype, encryption string }{
		{"ext4", "ext4", ""}, {"xfs", "xfs", ""}, {"btrfs", "btrfs", ""}, {"luks2", "xfs", "luks2"},
	} {
		if row.fstype == "ext4" && !testbed.Capable(t, unix.CAP_SYS_RESOURCE) {
			continue // the kernel would not; in the guests of test/krbd it does
		}
		options := map[string]string{"fstype": row.fstype, "size": "400M"}
		if row.encryption != "" {
			options["encryption"], options["passphrase"] = row.encryption, "ceph:growth"
		}
		one.create(row.name, options)
		file := one.mount(row.name)
		space := func() uint64 {
			var s unix.Statfs_t
			if err := unix.Statfs(filepath.Dir(file), &s); err != nil {
				t.Fatal(err)
			}
			return s.Blocks * uint64(s.Frsize) // without the journal
		}
		resize := func(size string, least uint64) (took time.Duration) {
			t.Helper()
			testbed.RBD(t, "resize", "--no-progress", "--size", size, cfg.Pool+"/"+cfg.Namespace+"/"+row.name)
			for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
				if took = time.Since(began); space() >= least || took > time.Minute {
					return took
				}
			}
		}
		put(t, file, "before")
		before := space()
		if took := resize("600M", before+180<<20); took > time.Duration(tool.Slowness()*float64(2*time.Second)) {
			t.Errorf("%s: larger after %v", row.name, took)
		} else {
			t.Logf("figure: %s, rbd resize until the filesystem is larger: %d ms", row.name, took.Milliseconds())
		}
		expect(t, file, "before")
		one.unmount(row.name)
		testbed.RBD(t, "resize", "--no-progress", "--size", "800M", cfg.Pool+"/"+cfg.Namespace+"/"+row.name)
		one.mount(row.name)
		if space() < before+360<<20 {
			t.Errorf("%s: %d bytes after a mount of 800M", row.name, space())
		}
		one.unmount(row.name)
		// Nobody makes it smaller but with force, and then it is not mounted.
		testbed.RBD(t, "resize", "--no-progress", "--allow-shrink", "--size", "500M", cfg.Pool+"/"+cfg.Namespace+"/"+row.name)
		if _, err := one.Mount(one.context(time.Minute), row.name, "id"); !errors.Is(err, backend.ErrUnexpectedContent) || !strings.Contains(err.Error(), "was the image made smaller?") {
			t.Errorf("%s, made smaller: %v", row.name, err)
		}
	}
}

// An encrypted volume is opened by whoever has the passphrase, and by nobody else;
// nothing is formatted for want of it.
func TestEncryptedVolumes(t *testing.T) {
	t.Parallel()
	cfg := testbed.Namespace(t)
	one, two := newNode(t, cfg, "one"), newNode(t, cfg, "two")
	for _, row := range []struct{ name, secret, says string }{
		{"ceph:missing", "", "there is none; ceph config-key set docker_volume/missing -i FILE"},
		{"file:missing", "", "there is no file " + filepath.Dir(testbed.Conf()) + "/passphrases/missing on this node"},
	} {
		err := one.Create(one.context(time.Minute), "v", map[string]string{"encryption": "luks2", "passphrase": row.name})
		if !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	for _, format := range []string{"luks1", "luks2"} {
		name := "open-" + format
		testbed.Passphrase(t, name, "open sesame")
		one.create(format, map[string]string{"encryption": format, "passphrase": "ceph:" + name})
		put(t, one.mount(format), strings.Repeat("plain text ", 1000))
		one.unmount(format)
		raw := filepath.Join(t.TempDir(), "raw")
		testbed.RBD(t, "export", "--no-progress", cfg.Pool+"/"+cfg.Namespace+"/"+format, raw)
		if out := testbed.Run(t, "sh", "-c", "head -c 6 "+raw+"; grep -c 'plain text' "+raw+" || true"); !strings.HasPrefix(out, "LUKS\xba\xbe") || !strings.HasSuffix(out, "0\n") {
			t.Errorf("what is in the pool: %q", out)
		}
		testbed.Passphrase(t, name, "open barley")
		if _, err := two.Mount(two.context(time.Minute), format, "id"); err == nil || !strings.Contains(err.Error(), "passphrase does not open") {
			t.Errorf("with another passphrase: %v", err)
		}
		testbed.Passphrase(t, name, "open sesame")
		two.create("copy-"+format, map[string]string{"from": format})
		for _, volume := range []string{format, "copy-" + format} {
			expect(t, two.mount(volume), strings.Repeat("plain text ", 1000))
			v, err := two.Get(t.Context(), volume)
			if err != nil || v.Status["encryption"] != format || v.Status["passphrase"] != "ceph:"+name {
				t.Errorf("inspect: %v, %v", v.Status, err)
			}
			two.unmount(volume)
		}
	}
}

// A node with three places: the namespace, another one, and another pool.
func TestPlaces(t *testing.T) {
	t.Parallel()
	first, second := testbed.Namespace(t), testbed.Namespace(t)
	third := first
	third.Pool, third.Namespace = testbed.Pool(t), ""
	place := func(n *node) backend.PoolSpec { return backend.PoolSpec{Pool: n.cfg.Pool, Namespace: n.cfg.Namespace} }
	a := newNode(t, first, "one")
	all := driver.Pools{a.Driver}
	nodes := []*node{a}
	for _, cfg := range []backend.PoolSpec{{Pool: second.Pool, Namespace: second.Namespace}, {Pool: third.Pool}} {
		pool := a.pool.Beside(cfg)
		at := first
		at.Pool, at.Namespace = cfg.Pool, cfg.Namespace
		n := newNodeWith(t, at, "one", func(c *driver.Config) {
			c.Images, c.Records, c.Fences, c.Secrets = pool, pool, pool, pool
			c.Mapper.(*fuse.Mapper).Ceph = pool.Config()
		})
		all, nodes = append(all, n.Driver), append(nodes, n)
	}
	ctx := a.context(2 * time.Minute)
	for i, options := range []map[string]string{{}, {"namespace": second.Namespace}, {"pool": third.Pool}} {
		name := fmt.Sprintf("v%d", i)
		if err := errors.Join(all.Create(ctx, name, options), all.Create(ctx, name, options), all.Create(ctx, name, nil)); err != nil {
			t.Fatal(err)
		}
		path, err := all.Mount(ctx, name, "id")
		if err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(path, "file"), name)
		v, err := all.Get(ctx, name)
		if err != nil || v.Status["pool"] != place(nodes[i]).Pool || v.Mountpoint != path || all.Path(ctx, name) != path {
			t.Errorf("get: %+v, %v", v, err)
		}
		if h, err := all.GuardStatus(ctx); err != nil || len(h) != i+1 || h[i].Volume != name {
			t.Errorf("guards: %+v, %v", h, err)
		}
	}
	if err := all.Create(ctx, "v1", map[string]string{"pool": third.Pool}); !errors.Is(err, backend.ErrExists) || !strings.Contains(err.Error(), "in rbd/"+second.Namespace) {
		t.Errorf("the name is taken elsewhere: %v", err)
	}
	if err := all.Create(ctx, "x", map[string]string{"pool": "nowhere"}); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), third.Pool) {
		t.Errorf("a pool that is not allowed: %v", err)
	}
	// A copy, in another pool, of what is mounted.
	if err := all.Create(ctx, "copy", map[string]string{"from": "v0", "pool": third.Pool}); err != nil {
		t.Fatal(err)
	}
	path, err := all.Mount(ctx, "copy", "id")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, filepath.Join(path, "file"), "v0")
	list, err := all.List(ctx)
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	if err != nil || !slices.Equal(names, []string{"copy", "v0", "v1", "v2"}) {
		t.Errorf("list: %v, %v", names, err)
	}
	// A name that two places have is nobody's; were Get to fail, dockerd would forget both.
	testbed.RBD(t, "create", "--size", "8M", "rbd/"+first.Namespace+"/v2")
	both := "rbd/" + first.Namespace + "/v2 and " + third.Pool + "/v2"
	if v, err := all.Get(ctx, "v2"); err != nil || !strings.Contains(fmt.Sprint(v.Status["error"]), both) {
		t.Errorf("get of a name that is there twice: %v, %v", v.Status, err)
	}
	for op, err := range map[string]error{"create": all.Create(ctx, "v2", nil), "remove": all.Remove(ctx, "v2")} {
		if !errors.Is(err, backend.ErrAmbiguous) || !strings.Contains(err.Error(), both) {
			t.Errorf("%s of a name that is there twice: %v", op, err)
		}
	}
	testbed.RBD(t, "rm", "--no-progress", "rbd/"+first.Namespace+"/v2")
	for _, name := range names {
		if err := errors.Join(all.Unmount(ctx, name, "id"), all.Remove(ctx, name)); err != nil {
			t.Error(err)
		}
	}
}
