package driver_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
)

// node is one node of a test: its kernel stays, its plugin may come and go.
type node struct {
	*driver.Driver
	*memory.Host
	t       *testing.T
	cluster *memory.Cluster
	client  *memory.Client
	name    string
	boot    string
	root    string
	poll    time.Duration
	trash   time.Duration
	unheld  time.Duration
	keep    time.Duration
	tap     *tap
	log     *safeBuffer
	ended   int // how often the plugin has asked for a restart
}

func newNode(t *testing.T, c *memory.Cluster, name, ip string) *node {
	n := &node{t: t, cluster: c, name: name, boot: name + " boot 1", root: t.TempDir(), poll: time.Millisecond, Host: memory.NewHost(c, ip), log: &safeBuffer{}}
	n.start()
	return n
}

// start starts the plugin, with nothing in memory and a new control client.
func (n *node) start() {
	n.t.Helper()
	n.client = n.cluster.Connect(n.IP)
	n.tap = &tap{client: n.client, host: n.Host}
	log := logrus.New()
	log.SetOutput(n.log)
	log.SetLevel(logrus.DebugLevel)
	d, err := driver.New(driver.Config{
		Images: n.tap, Records: n.tap, Fences: n.tap, Mapper: n.tap, Filesystem: n.tap,
		Node: guard.Node{Name: n.name, Boot: n.boot, Hosts: func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(n.IP)}, nil
		}},
		Secrets: n.tap, Trash: n.trash, BreakLock: true, Restart: func() { n.ended++ },
		Pool: backend.PoolSpec{Pool: "rbd"}, Root: n.root, Log: log, Poll: n.poll, Patience: 200 * time.Millisecond, Unheld: n.unheld, Keep: n.keep,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Driver = d
}

// crash ends the plugin; Ceph notices that its control client is gone.
func (n *node) crash() {
	n.tap.die()
	n.client.Kill()
}

// reconnect gives the plugin a new control client, as package rbd does when the
// one before was fenced.
func (n *node) reconnect() {
	n.client = n.cluster.Connect(n.IP)
	n.tap.client = n.client
}

func (n *node) restart() {
	n.crash()
	n.start()
}

func (n *node) reboot() {
	n.crash()
	n.Host.Reboot()
	n.boot += "+"
	n.start()
}

func (n *node) path(volume string) string { return filepath.Join(n.root, "volumes", volume) }

func (n *node) mountOf(volume string) (backend.Mount, bool) {
	all, _ := n.Host.Mounted(context.Background(), filepath.Join(n.root, "volumes"))
	m, ok := all[n.path(volume)]
	return m, ok
}

// device is where the volume is mapped, "" if it is not.
func (n *node) device(volume string) string {
	all, _ := n.Host.Mappings(context.Background())
	for _, m := range all {
		if m.Name == volume {
			return m.Device
		}
	}
	return ""
}

// within bounds a call that is expected to wait in vain.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// inVirtualTime runs a test in which time passes only when everybody waits for it. What the
// plugin still does afterwards, as it keeps a mount for a while, comes to its end.
func inVirtualTime(t *testing.T, test func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(2 * time.Hour) })
		test(t)
	})
}

// virtual is a subtest of that kind.
func virtual(t *testing.T, name string, test func(t *testing.T)) bool {
	return t.Run(name, func(t *testing.T) { inVirtualTime(t, test) })
}

const (
	soon = 300 * time.Millisecond
	ever = 10 * time.Second
)

func (n *node) create(volume string, opts map[string]string) {
	n.t.Helper()
	if err := n.Create(within(n.t, ever), volume, opts); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) mount(volume, id string) {
	n.t.Helper()
	path, err := n.Driver.Mount(within(n.t, ever), volume, id)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.log)
	}
	if path != n.path(volume) {
		n.t.Fatalf("mounted on %s", path)
	}
}

func (n *node) unmount(volume, id string) {
	n.t.Helper()
	if err := n.Driver.Unmount(within(n.t, ever), volume, id); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) refused(volume, id string, kind error, says ...string) {
	n.t.Helper()
	_, err := n.Driver.Mount(within(n.t, soon), volume, id)
	check(n.t, err, kind, says...)
}

func check(t *testing.T, err, kind error, says ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("not one line: %q", err)
	}
}

// guard reads the guard of a volume; ok is false if there is none.
func (n *node) guard(volume string) (g guard.Record, version backend.Version, ok bool) {
	n.t.Helper()
	c := n.cluster.Connect(n.IP)
	h, err := c.Open(within(n.t, ever), volume, backend.ReadOnly)
	if err != nil {
		n.t.Fatal(err)
	}
	version, err = c.Load(within(n.t, ever), "guard."+h.Image().ID, &g)
	return g, version, err == nil
}

// turn waits for the end of what goes on after its request. Of a volume that nobody has
// mounted an unmount does no more.
func (n *node) turn(volume string) {
	n.t.Helper()
	eventually(n.t, "the volume's turn", func() bool {
		return !errors.Is(n.Driver.Unmount(within(n.t, ever), volume, "nobody"), backend.ErrBusy)
	})
}

func (n *node) write(volume, content string) error { return n.Host.Write(n.device(volume), content) }

func (n *node) holds(volume, want string) {
	n.t.Helper()
	if got, err := n.Host.Read(n.device(volume)); err != nil || got != want {
		n.t.Errorf("volume %s on %s holds %q (%v), want %q", volume, n.name, got, err, want)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

var errCrashed = errors.New("the plugin has crashed")

// tap stands between a driver and its parts. It counts calls, can end the
// plugin before or after any of them, and can do something else in between.
type tap struct {
	client *memory.Client
	host   *memory.Host

	mu     sync.Mutex
	calls  int
	stopAt int  // the call at which the plugin dies; 0 = never
	after  bool // when it has had its effect
	dead   bool
	before func(call string) error
	then   func(call string) // when it has had its effect
}

func (p *tap) die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

// on sets before while calls may be under way.
func (p *tap) on(before func(call string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = before
}

func (p *tap) call(name string, effect func() error) error {
	p.mu.Lock()
	p.calls++
	now := p.calls == p.stopAt
	if now && !p.after {
		p.dead = true
	}
	dead, before, then := p.dead, p.before, p.then
	p.mu.Unlock()
	if dead {
		return errCrashed
	}
	if before != nil {
		if err := before(name); err != nil {
			return err
		}
	}
	err := effect()
	if then != nil {
		then(name)
	}
	if now || errors.Is(err, memory.ErrCut) {
		p.die()
		return errCrashed
	}
	return err
}

func (p *tap) Ping(ctx context.Context) error {
	return p.call("ping", func() error { return p.client.Ping(ctx) })
}

func (p *tap) Create(ctx context.Context, s backend.ImageSpec) error {
	return p.call("create", func() error { return p.client.Create(ctx, s) })
}

func (p *tap) Exists(ctx context.Context, name string) (ok bool, err error) {
	err = p.call("exists", func() (err error) { ok, err = p.client.Exists(ctx, name); return err })
	return ok, err
}

func (p *tap) Names(ctx context.Context) (names []string, err error) {
	err = p.call("names", func() (err error) { names, err = p.client.Names(ctx); return err })
	return names, err
}

func (p *tap) ID(ctx context.Context, name string) (id string, err error) {
	err = p.call("id", func() (err error) { id, err = p.client.ID(ctx, name); return err })
	return id, err
}

func (p *tap) HasID(ctx context.Context, id string) (ok bool, err error) {
	err = p.call("has id", func() (err error) { ok, err = p.client.HasID(ctx, id); return err })
	return ok, err
}

func (p *tap) List(ctx context.Context, prefix string) (keys []string, err error) {
	err = p.call("keys", func() (err error) { keys, err = p.client.List(ctx, prefix); return err })
	return keys, err
}

func (h tappedHandle) BreakLock(ctx context.Context) error {
	return h.tap.call("unlock", func() error { return h.Handle.BreakLock(ctx) })
}

func (h tappedHandle) EnableExclusiveLock(ctx context.Context) error {
	return h.tap.call("enable lock", func() error { return h.Handle.EnableExclusiveLock(ctx) })
}

func (h tappedHandle) Remove(ctx context.Context, keep time.Duration) error {
	return h.tap.call("remove", func() error { return h.Handle.Remove(ctx, keep) })
}

func (h tappedHandle) Resize(ctx context.Context, size uint64) error {
	return h.tap.call("resize", func() error { return h.Handle.Resize(ctx, size) })
}

func (h tappedHandle) Encrypt(ctx context.Context, e backend.Encryption) error {
	return h.tap.call("encrypt", func() error { return h.Handle.Encrypt(ctx, e) })
}

func (h tappedHandle) Snapshots(ctx context.Context) (all []backend.Snapshot, err error) {
	err = h.tap.call("snapshots", func() (err error) { all, err = h.Handle.Snapshots(ctx); return err })
	return all, err
}

func (h tappedHandle) CreateSnapshot(ctx context.Context, name string) error {
	return h.tap.call("snap", func() error { return h.Handle.CreateSnapshot(ctx, name) })
}

func (h tappedHandle) RemoveSnapshot(ctx context.Context, name string) error {
	return h.tap.call("unsnap", func() error { return h.Handle.RemoveSnapshot(ctx, name) })
}

func (h tappedHandle) Rollback(ctx context.Context, name string) error {
	return h.tap.call("rollback", func() error { return h.Handle.Rollback(ctx, name) })
}

func (h tappedHandle) Managers(ctx context.Context) (addrs []string, err error) {
	err = h.tap.call("managers", func() (err error) { addrs, err = h.Handle.Managers(ctx); return err })
	return addrs, err
}

func (h tappedHandle) Depth(ctx context.Context) (n int, err error) {
	err = h.tap.call("depth", func() (err error) { n, err = h.Handle.Depth(ctx); return err })
	return n, err
}

func (h tappedHandle) Flatten(ctx context.Context) error {
	return h.tap.call("flatten", func() error { return h.Handle.Flatten(ctx) })
}

func (p *tap) Open(ctx context.Context, name string, mode backend.OpenMode) (h backend.Handle, err error) {
	what := "look"
	if mode == backend.ReadWrite {
		what = "open"
	}
	err = p.call(what, func() (err error) { h, err = p.client.Open(ctx, name, mode); return err })
	if err != nil {
		return nil, err
	}
	return tappedHandle{h, p}, nil
}

func (p *tap) OpenApart(ctx context.Context, name string) (h backend.Handle, err error) {
	err = p.call("open apart", func() (err error) { h, err = p.client.OpenApart(ctx, name); return err })
	if err != nil {
		return nil, err
	}
	return tappedHandle{h, p}, nil
}

type tappedHandle struct {
	backend.Handle
	tap *tap
}

func (h tappedHandle) SetMeta(ctx context.Context, m map[string]string) error {
	return h.tap.call("setmeta", func() error { return h.Handle.SetMeta(ctx, m) })
}

func (h tappedHandle) Whole(ctx context.Context) (whole bool, err error) {
	err = h.tap.call("whole", func() (err error) { whole, err = h.Handle.Whole(ctx); return err })
	return whole, err
}

func (h tappedHandle) Watchers(ctx context.Context) (addrs []string, err error) {
	err = h.tap.call("watchers", func() (err error) { addrs, err = h.Handle.Watchers(ctx); return err })
	return addrs, err
}

func (h tappedHandle) Meta(ctx context.Context) (meta map[string]string, err error) {
	err = h.tap.call("meta", func() (err error) { meta, err = h.Handle.Meta(ctx); return err })
	return meta, err
}

func (h tappedHandle) DiskUsage(ctx context.Context) (used uint64, known bool, err error) {
	err = h.tap.call("used", func() (err error) { used, known, err = h.Handle.DiskUsage(ctx); return err })
	return used, known, err
}

func (h tappedHandle) Empty(ctx context.Context) (empty, sure bool, err error) {
	err = h.tap.call("empty", func() (err error) { empty, sure, err = h.Handle.Empty(ctx); return err })
	return empty, sure, err
}

func (h tappedHandle) Close(ctx context.Context) error {
	return h.tap.call("close", func() error { return h.Handle.Close(ctx) })
}

func (p *tap) Load(ctx context.Context, key string, into any) (v backend.Version, err error) {
	err = p.call("load", func() (err error) { v, err = p.client.Load(ctx, key, into); return err })
	return v, err
}

func (p *tap) CompareAndSwap(ctx context.Context, key string, old backend.Version, value any) (v backend.Version, err error) {
	err = p.call("swap "+strings.SplitN(key, ".", 2)[0], func() (err error) { v, err = p.client.CompareAndSwap(ctx, key, old, value); return err })
	return v, err
}

func (p *tap) Delete(ctx context.Context, key string, old backend.Version) error {
	return p.call("delete", func() error { return p.client.Delete(ctx, key, old) })
}

func (p *tap) Fence(ctx context.Context, addrs ...string) error {
	return p.call("fence", func() error { return p.client.Fence(ctx, addrs...) })
}

func (p *tap) Fenced(ctx context.Context, addrs ...string) (f map[string]bool, err error) {
	err = p.call("fenced", func() (err error) { f, err = p.client.Fenced(ctx, addrs...); return err })
	return f, err
}

func (p *tap) Map(ctx context.Context, i backend.Image, mode backend.OpenMode) (m backend.Mapping, err error) {
	err = p.call("map", func() (err error) { m, err = p.host.Map(ctx, i, mode); return err })
	return m, err
}

func (p *tap) Unmap(ctx context.Context, id string) error {
	return p.call("unmap", func() error { return p.host.Unmap(ctx, id) })
}

func (p *tap) ForceUnmap(ctx context.Context, id string) error {
	return p.call("drop", func() error { return p.host.ForceUnmap(ctx, id) })
}

func (p *tap) Mappings(ctx context.Context) (m []backend.Mapping, err error) {
	err = p.call("mappings", func() (err error) { m, err = p.host.Mappings(ctx); return err })
	return m, err
}

func (p *tap) Probe(ctx context.Context, device string) (fstype string, err error) {
	err = p.call("probe", func() (err error) { fstype, err = p.host.Probe(ctx, device); return err })
	return fstype, err
}

func (p *tap) Format(ctx context.Context, device, fstype string, options []string, fresh bool) error {
	return p.call("format", func() error { return p.host.Format(ctx, device, fstype, options, fresh) })
}

func (p *tap) Check(ctx context.Context, device, fstype string) error {
	return p.call("check", func() error { return p.host.Check(ctx, device, fstype) })
}

func (p *tap) Mount(ctx context.Context, m backend.Mount) error {
	return p.call("mount", func() error { return p.host.Mount(ctx, m) })
}

func (p *tap) InitRoot(ctx context.Context, path string, o backend.Owner) error {
	return p.call("prepare", func() error { return p.host.InitRoot(ctx, path, o) })
}

func (p *tap) Unmount(ctx context.Context, path string) error {
	return p.call("unmount", func() error { return p.host.Unmount(ctx, path) })
}

func (p *tap) LazyUnmount(ctx context.Context, path string) error {
	return p.call("detach", func() error { return p.host.LazyUnmount(ctx, path) })
}

func (p *tap) Held(ctx context.Context, dir string, devices []string) (held map[string]bool, err error) {
	err = p.call("held", func() (err error) { held, err = p.host.Held(ctx, dir, devices); return err })
	return held, err
}

func (p *tap) CheckHealth(ctx context.Context, m backend.Mount) error {
	return p.call("sound", func() error { return p.host.CheckHealth(ctx, m) })
}

func (p *tap) CheckPropagation(ctx context.Context, dir string) error {
	return p.call("reaches", func() error { return p.host.CheckPropagation(ctx, dir) })
}

func (p *tap) Mounted(ctx context.Context, dir string) (m map[string]backend.Mount, err error) {
	err = p.call("mounted", func() (err error) { m, err = p.host.Mounted(ctx, dir); return err })
	return m, err
}

func (p *tap) Purge(ctx context.Context) (names []string, err error) {
	err = p.call("purge", func() (err error) { names, err = p.client.Purge(ctx); return err })
	return names, err
}

func (p *tap) Secret(ctx context.Context, name string) (secret []byte, err error) {
	err = p.call("secret", func() (err error) { secret, err = p.client.Secret(ctx, name); return err })
	return secret, err
}

func (p *tap) Size(ctx context.Context, m backend.Mapping) (size uint64, err error) {
	err = p.call("size", func() (err error) { size, err = p.host.Size(ctx, m); return err })
	return size, err
}

func (p *tap) Supports(features []string) error { return p.host.Supports(features) }

func (p *tap) NeedsResize(ctx context.Context, device, fstype string) (needs bool, err error) {
	err = p.call("needs resize", func() (err error) { needs, err = p.host.NeedsResize(ctx, device, fstype); return err })
	return needs, err
}

func (p *tap) Resize(ctx context.Context, m backend.Mount) error {
	return p.call("grow", func() error { return p.host.Resize(ctx, m) })
}

func (p *tap) RegenerateUUID(ctx context.Context, m backend.Mount) error {
	return p.call("renew", func() error { return p.host.RegenerateUUID(ctx, m) })
}

func (p *tap) Freeze(ctx context.Context, path string) error {
	return p.call("freeze", func() error { return p.host.Freeze(ctx, path) })
}

func (p *tap) Thaw(ctx context.Context, path string) error {
	return p.call("thaw", func() error { return p.host.Thaw(ctx, path) })
}

func (p *tap) Usage(ctx context.Context, path string) (size, used uint64, err error) {
	err = p.call("space", func() (err error) { size, used, err = p.host.Usage(ctx, path); return err })
	return size, used, err
}

func (p *tap) Subpath(ctx context.Context, path, directory string) (inside string, err error) {
	err = p.call("inside", func() (err error) { inside, err = p.host.Subpath(ctx, path, directory); return err })
	return inside, err
}

func (h tappedHandle) Clones(ctx context.Context) (names []string, err error) {
	err = h.tap.call("clones", func() (err error) { names, err = h.Handle.Clones(ctx); return err })
	return names, err
}

func (h tappedHandle) Layout(ctx context.Context) (l backend.Layout, err error) {
	err = h.tap.call("layout", func() (err error) { l, err = h.Handle.Layout(ctx); return err })
	return l, err
}
