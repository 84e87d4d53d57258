package integration

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/fsys"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd/fuse"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// node is a plugin on a node of its own, as far as Ceph can tell.
type node struct {
	*driver.Driver
	tb   testing.TB
	name string
	cfg  rbd.Config
	pool *rbd.Pool
	dir  string // of the image servers
	root string
}

func newNode(tb testing.TB, cfg rbd.Config, name string) *node {
	tb.Helper()
	return newNodeWith(tb, cfg, name, func(*driver.Config) {})
}

// newNodeWith is newNode with settings.
func newNodeWith(tb testing.TB, cfg rbd.Config, name string, set func(*driver.Config)) *node {
	tb.Helper()
	n := &node{tb: tb, cfg: cfg, name: name, dir: tb.TempDir(), root: tb.TempDir()}
	cfg.Log = testbed.Log(tb)
	n.pool = rbd.New(cfg)
	config := driver.Config{
		Images: n.pool, Records: n.pool, Fences: n.pool, Secrets: n.pool,
		Mapper:     &fuse.Mapper{Ceph: cfg, Dir: n.dir, Command: testbed.ImageServer(tb), Log: cfg.Log},
		Filesystem: fsys.FS{HostMounts: table(tb, "/proc/1/mountinfo")},
		Node:       guard.Node{Name: name, Boot: "boot of " + name, Hosts: hosts},
		Pool:       backend.PoolSpec{Pool: cfg.Pool, Namespace: cfg.Namespace}, Root: n.root, Log: cfg.Log, BreakLock: true,
	}
	set(&config)
	var err error
	if n.Driver, err = driver.New(config); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		n.Shutdown(ctx)
		n.pool.Close()
		testbed.NothingLeft(tb, n.dir, filepath.Join(n.root, "volumes"))
	})
	return n
}

func hosts() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	var ips []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			ips = append(ips, p.Addr())
		}
	}
	return ips, err
}

func (n *node) context(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	n.tb.Cleanup(cancel)
	return ctx
}

func (n *node) create(volume string, opts map[string]string) {
	n.tb.Helper()
	if err := n.Create(n.context(time.Minute), volume, opts); err != nil {
		n.tb.Fatal(err)
	}
}

// mount returns the path of a file on the volume.
func (n *node) mount(volume string) (file string) {
	n.tb.Helper()
	path, err := n.Mount(n.context(110*time.Second), volume, "id")
	if err != nil {
		n.tb.Fatal(err)
	}
	return filepath.Join(path, "file")
}

func (n *node) unmount(volume string) {
	n.tb.Helper()
	if err := n.Unmount(n.context(time.Minute), volume, "id"); err != nil {
		n.tb.Fatal(err)
	}
}

// put writes a file and returns when it is safe.
func put(tb testing.TB, file, text string) {
	tb.Helper()
	if err := tryPut(file, text); err != nil {
		tb.Fatal(err)
	}
}

func tryPut(file, text string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Sync()
}

func expect(tb testing.TB, file, want string) {
	tb.Helper()
	got, err := os.ReadFile(file)
	if err != nil || string(got) != want {
		tb.Fatalf("%s holds %q, %v; want %q", file, got, err, want)
	}
}

// id is the id of an image.
func (n *node) id(volume string) string {
	n.tb.Helper()
	h, err := n.pool.Open(n.context(time.Minute), volume, backend.ReadOnly)
	if err != nil {
		n.tb.Fatal(err)
	}
	defer func() { _ = h.Close(n.context(time.Minute)) }()
	return h.Image().ID
}

func (n *node) guard(volume string) (g guard.Record, held bool) {
	n.tb.Helper()
	_, err := n.pool.Load(n.context(time.Minute), "guard."+n.id(volume), &g)
	return g, err == nil
}
