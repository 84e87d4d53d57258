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

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/memory"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/test/faults"
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
	n.tap = &tap{ceph: ceph{n.client}}
	log := logrus.New()
	log.SetOutput(n.log)
	log.SetLevel(logrus.DebugLevel)
	client := &n.tap.ceph
	d, err := driver.New(faults.Wrap(driver.Config{
		Images: client, Records: client, Fences: client, Mapper: n.Host, Filesystem: n.Host,
		Node: guard.Node{Name: n.name, Boot: n.boot, Hosts: func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(n.IP)}, nil
		}},
		Secrets: client, Trash: n.trash, BreakLock: true, Restart: func() { n.ended++ },
		Pool: backend.PoolSpec{Pool: "rbd"}, Root: n.root, Log: log, Poll: n.poll, Patience: 200 * time.Millisecond, Unheld: n.unheld, Keep: n.keep,
	}, n.tap.step))
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
	n.tap.Client = n.client
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

// ceph is the control client that a plugin has now.
type ceph struct{ *memory.Client }

// tap stands between a driver and its parts. It counts calls, can end the
// plugin before or after any of them, and can do something else in between.
type tap struct {
	ceph

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

// step bears the name of its method, and what tells two uses of one from each other.
func (p *tap) step(_ context.Context, name string, args []any, effect func() error) error {
	switch name {
	case "Images.Open":
		if args[1] == backend.ReadWrite {
			name += " to write"
		}
	case "Records.CompareAndSwap":
		kind, _, _ := strings.Cut(args[0].(string), ".")
		name += " " + kind
	}
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
