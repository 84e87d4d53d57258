package rbd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// Config says which pool of which cluster, and as whom.
type Config struct {
	Cluster   string // name of the cluster: its files are /etc/ceph/NAME.conf, ...
	ConfFile  string // "" = /etc/ceph/<Cluster>.conf
	User      string // "client.docker" or "docker"
	Keyring   string // "" = where ceph.conf says, by default beside it
	Pool      string
	Namespace string
	Log       logrus.FieldLogger
}

// Pool is one pool and namespace of a cluster. The connection is made when it
// is first needed and made anew when it is lost.
type Pool struct {
	cfg Config

	diagnosing atomic.Bool
	verdict    atomic.Value // string: the last diagnosis
	calls      slots        // for what is done on the pool
	images     slots        // for open images: apart, as who has one open goes on with calls

	mu      sync.Mutex
	fsid    string // "" = not known yet
	current *client
	dialing *dial
}

// New returns a pool; it does not connect.
func New(cfg Config) *Pool {
	return &Pool{cfg: cfg.WithDefaults(), calls: make(slots, manyCalls), images: make(slots, manyImages)}
}

// manyCalls bounds the threads that hang in librados while Ceph is away: each
// call has one, and may outlive its request by rados_osd_op_timeout. An open
// image has none, but who waits for its holder has it open all the while.
const manyCalls, manyImages = 32, 256

// slots are so many at a time.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %d requests wait for it already", driver.ErrUnavailable, cap(s))
	}
}

func (s slots) free() { <-s }

// WithDefaults fills in what follows from the rest.
func (cfg Config) WithDefaults() Config {
	if cfg.ConfFile == "" {
		cfg.ConfFile = "/etc/ceph/" + cfg.Cluster + ".conf"
	}
	return cfg
}

// client is one connection to the cluster: one address, one entry for a fence.
type client struct {
	conn    *rados.Conn
	addr    string
	users   int // calls and open images; shut down when retired and 0
	retired bool
}

// dial is an attempt to connect that several calls may be waiting for.
type dial struct {
	done chan struct{}
	err  error
}

// timeouts bound what hangs inside librados, so that a thread left behind by a
// call comes back in the end. The admin socket goes: its thread dies of
// SIGPIPE in a Go process, and nobody looks at it.
var timeouts = map[string]string{
	"client_mount_timeout": "10",
	"rados_mon_op_timeout": "20",
	"rados_osd_op_timeout": "30",
	"admin_socket":         "",
}

// Connect makes a connection as the configuration says; options come on top.
// The caller shuts it down.
func Connect(cfg Config, options map[string]string) (*rados.Conn, error) {
	conn, err := newConn(cfg, options)
	if err != nil {
		return nil, err
	}
	if err := conn.Connect(); err != nil {
		user := strings.TrimPrefix(cfg.User, "client.")
		switch errno(err) {
		case syscall.ENOENT:
			return nil, fmt.Errorf("connect as client.%s: no key found (%w); put its keyring beside %s", user, err, cfg.ConfFile)
		case syscall.EACCES, syscall.EPERM:
			return nil, fmt.Errorf("connect as client.%s: the cluster does not accept the key (%w)", user, err)
		case syscall.ETIMEDOUT:
			return nil, fmt.Errorf("connect as client.%s: no monitor answers within %s s (%s); is this node's network up, is ceph running? (%w)",
				user, timeouts["client_mount_timeout"], monHost(conn), err)
		}
		return nil, fmt.Errorf("connect as client.%s: %w", user, err)
	}
	return conn, nil
}

func newConn(cfg Config, options map[string]string) (*rados.Conn, error) {
	user := strings.TrimPrefix(cfg.User, "client.")
	conn, err := rados.NewConnWithClusterAndUser(cfg.Cluster, "client."+user)
	if err != nil {
		return nil, fmt.Errorf("ceph client %s: %w", cfg.User, err)
	}
	if err := conn.ReadConfigFile(cfg.ConfFile); err != nil {
		return nil, fmt.Errorf("read %s: %w (is /etc/ceph of the host there?)", cfg.ConfFile, err)
	}
	set := func(option, value string) {
		if err == nil {
			if err = conn.SetConfigOption(option, value); err != nil {
				err = fmt.Errorf("ceph option %s=%s: %w", option, value, err)
			}
		}
	}
	if cfg.Keyring != "" {
		set("keyring", cfg.Keyring)
	}
	for option, value := range options {
		set(option, value)
	}
	return conn, err
}

// get returns the current client, connecting if there is none.
func (p *Pool) get(ctx context.Context) (*client, error) {
	for {
		p.mu.Lock()
		if c := p.current; c != nil {
			c.users++
			p.mu.Unlock()
			return c, nil
		}
		if p.dialing == nil {
			p.dialing = &dial{done: make(chan struct{})}
			go p.connect(p.dialing)
		}
		d := p.dialing
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, fmt.Errorf("%w: %w", driver.ErrUnavailable, d.err)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: no connection to the monitors yet; is this node's network up, is ceph running?", driver.ErrUnavailable)
		}
	}
}

func (p *Pool) connect(d *dial) {
	conn, err := Connect(p.cfg, timeouts)
	var c *client
	if err == nil {
		c = &client{conn: conn}
		if c.addr, err = conn.GetAddrs(); err == nil {
			err = p.checkNamespace(c)
		}
		if err != nil {
			conn.Shutdown()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.current = c
		p.cfg.Log.Debugf("connected to ceph as %s, %s", p.cfg.User, c.addr)
	}
	d.err, p.dialing = err, nil
	close(d.done)
}

// checkNamespace keeps a namespace that does not exist from looking like one
// without volumes: dockerd would forget all that it knows of them.
func (p *Pool) checkNamespace(c *client) error {
	if p.cfg.Namespace == "" {
		return nil
	}
	ioctx, err := c.conn.OpenIOContext(p.cfg.Pool)
	if err != nil {
		return fmt.Errorf("pool %q: %w", p.cfg.Pool, err)
	}
	defer ioctx.Destroy()
	exists, err := rbd.NamespaceExists(ioctx, p.cfg.Namespace)
	if errno(err) == syscall.EACCES || errno(err) == syscall.EPERM {
		return nil // a key for this namespace only may not look; it would not be there without it
	}
	if err == nil && !exists {
		err = fmt.Errorf("it does not exist; make it with rbd namespace create %s/%s", p.cfg.Pool, p.cfg.Namespace)
	}
	if err != nil {
		return fmt.Errorf("namespace %q: %w", p.cfg.Namespace, err)
	}
	return nil
}

// use is one more use of a client; false if it has been shut down.
func (p *Pool) use(c *client) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.retired && c.users == 0 {
		return false
	}
	c.users++
	return true
}

// put ends a use of a client.
func (p *Pool) put(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.users--; c.users == 0 && c.retired {
		go c.conn.Shutdown()
	}
}

// retire keeps a client from serving further calls.
func (p *Pool) retire(c *client, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.retired {
		return
	}
	c.retired = true
	p.cfg.Log.Warnf("ceph client %s is retired: %v", c.addr, why)
	if p.current == c {
		p.current = nil
	}
}

// Close ends the connection once nobody uses it any more.
func (p *Pool) Close() {
	p.mu.Lock()
	c := p.current
	if c != nil {
		c.users++
	}
	p.mu.Unlock()
	if c != nil {
		p.retire(c, errors.New("closing"))
		p.put(c)
	}
}

// effect tells a call that only looks from one that changes something.
type effect bool

const (
	reads   effect = false
	changes effect = true
)

// do runs fn on the pool, on the current client. It returns when fn does, or
// with ErrUnavailable when the context ends first; fn then goes on alone.
func (p *Pool) do(ctx context.Context, what string, e effect, fn func(*client, *rados.IOContext) error) error {
	if err := p.calls.take(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	c, err := p.get(ctx)
	if err != nil {
		p.calls.free()
		return fmt.Errorf("%s: %w", what, err)
	}
	return p.run(ctx, c, what, e, func() error {
		defer p.calls.free()
		defer p.put(c)
		ioctx, err := p.ioctx(c)
		if err != nil {
			return err
		}
		defer ioctx.Destroy()
		return fn(c, ioctx)
	})
}

// run is do on a given client.
func (p *Pool) run(ctx context.Context, c *client, what string, e effect, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		if errno(err) == syscall.ETIMEDOUT { // in librados
			why := p.diagnose(c)
			if e == changes { // the OSD may have it, and do it later
				p.retire(c, err)
			}
			return fmt.Errorf("%w; %s", translate(what, err), why)
		}
		if gone(err) {
			p.retire(c, err)
		}
		return translate(what, err)
	case <-ctx.Done():
		why := "the request has ended"
		if !errors.Is(ctx.Err(), context.Canceled) {
			why = p.diagnose(c)
		}
		if e == changes {
			p.retire(c, fmt.Errorf("%s has not ended in time", what))
		}
		return fmt.Errorf("%s: %w: no answer in time; %s", what, driver.ErrUnavailable, why)
	}
}

// ioctx is a context of its own for each call: the version of the last object
// that was read, which the guard needs, belongs to the context.
func (p *Pool) ioctx(c *client) (*rados.IOContext, error) {
	ioctx, err := c.conn.OpenIOContext(p.cfg.Pool)
	if err != nil {
		// Its "not found" must not be taken for the volume's.
		return nil, fmt.Errorf("pool %q: %w: %s", p.cfg.Pool, driver.ErrUnavailable, err.Error())
	}
	ioctx.SetNamespace(p.cfg.Namespace)
	return ioctx, nil
}
