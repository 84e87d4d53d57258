package rbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
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

// Pool is one pool and namespace of a cluster.
type Pool struct {
	*cluster
	cfg Config
}

// cluster is the connection that pools share. It is made when it is first
// needed and made anew when it is lost.
type cluster struct {
	calls   slots // for what is done on the pools
	images  slots // for open images: apart, as who has one open goes on with calls
	manager slots // for questions to the manager

	mu      sync.Mutex
	fsid    string // "" = not known yet
	current *client
	dialing *dial
	asked   *diagnosis // the monitors, of the cluster's health; nil = nobody asks
}

// New returns a pool; it does not connect.
func New(cfg Config) *Pool {
	shared := &cluster{calls: make(slots, manyCalls), images: make(slots, manyImages), manager: make(slots, 1)}
	return &Pool{cfg: cfg.WithDefaults(), cluster: shared}
}

// Beside returns another pool of the same cluster, by the same connection.
func (p *Pool) Beside(spec backend.PoolSpec) *Pool {
	cfg := p.cfg
	cfg.Pool, cfg.Namespace = spec.Pool, spec.Namespace
	return &Pool{cfg: cfg, cluster: p.cluster}
}

// Config is what the pool was made with, and what follows from that.
func (p *Pool) Config() Config { return p.cfg }

func (p *Pool) poolSpec() backend.PoolSpec {
	return backend.PoolSpec{Pool: p.cfg.Pool, Namespace: p.cfg.Namespace}
}

// WithDefaults fills in what follows from the rest.
func (cfg Config) WithDefaults() Config {
	if cfg.ConfFile == "" {
		cfg.ConfFile = "/etc/ceph/" + cfg.Cluster + ".conf"
	}
	return cfg
}

// client is one connection to the cluster: one address, one entry for a fence. Who
// has not counted itself among its users may not touch conn: librados would go
// through memory that is free.
type client struct {
	conn     *rados.Conn
	addr     string
	mons     string    // as monitorsOf; noted, as the connection may not be asked any more when that is wanted
	key      string    // with which it was made; "" = not known
	look     time.Time // when to look again whether another client is needed
	renewing bool      // it is being looked at
	silent   bool      // the monitors have not answered it
	why      string    // no other could be made; "" = none was tried
	users    int       // calls and open images; shut down when retired and 0
	retired  bool
	checked  map[backend.PoolSpec]bool // namespaces that are there
}

// dial is an attempt to connect that several calls may be waiting for.
type dial struct {
	done  chan struct{}
	err   error
	waits string // what for, as long as it is not done
}

// get returns the current client, connecting if there is none.
func (p *Pool) get(ctx context.Context) (*client, error) {
	for {
		p.mu.Lock()
		if c := p.current; c != nil {
			c.users++
			if !c.renewing && time.Now().After(c.look) {
				c.renewing = true
				c.users++
				go p.renew(c)
			}
			p.mu.Unlock()
			return c, nil
		}
		if p.dialing == nil {
			p.dialing = &dial{done: make(chan struct{}), waits: "not connected yet"}
			go p.connect(p.dialing)
		}
		d := p.dialing
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, d.err)
			}
		case <-ctx.Done():
			p.mu.Lock()
			defer p.mu.Unlock()
			return nil, fmt.Errorf("%w: %s", backend.ErrUnavailable, d.waits)
		}
	}
}

func (p *Pool) connect(d *dial) {
	waits := func(what string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		d.waits = what
	}
	c, err := p.newClient(func(mons string) { waits(noMonitor(mons)) })
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.take(c)
	}
	d.err, p.dialing = err, nil
	close(d.done)
}

func (p *Pool) newClient(dials func(mons string)) (*client, error) {
	conn, err := newConn(p.cfg, timeouts)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, mons: monitorsOf(conn), checked: map[backend.PoolSpec]bool{}, look: time.Now().Add(keyInterval)}
	c.key, _ = keyOf(p.cfg.client(), conn.GetConfigOption) // librados says what is wrong with it
	dials(c.mons)
	if err := greet(conn, p.cfg); err != nil {
		return nil, err
	}
	if c.addr, err = conn.GetAddrs(); err != nil {
		conn.Shutdown()
		return nil, err
	}
	return c, nil
}

// take makes a client the current one, if there is none; p.mu is held.
func (p *Pool) take(c *client) {
	if p.current != nil { // somebody was faster
		go c.conn.Shutdown()
		return
	}
	p.current = c
	p.cfg.Log.Debugf("connected to ceph as %s, %s", p.cfg.User, c.addr)
}

// checkNamespace keeps a namespace that does not exist from looking like one
// without volumes: dockerd would forget all that it knows of them.
func (p *Pool) checkNamespace(c *client) error {
	p.mu.Lock()
	checked := c.checked[p.poolSpec()]
	p.mu.Unlock()
	if p.cfg.Namespace == "" || checked {
		return nil
	}
	ioctx, err := p.open(c)
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	exists, err := rbd.NamespaceExists(ioctx, p.cfg.Namespace)
	if errno(err) == syscall.EACCES || errno(err) == syscall.EPERM {
		exists, err = true, nil // a key for this namespace only may not look; it would not be there without it
	}
	if err == nil && !exists {
		err = fmt.Errorf("it does not exist; make it with rbd namespace create %s/%s", p.cfg.Pool, p.cfg.Namespace)
	}
	if err != nil {
		// Its errno must not be taken for the volume's.
		return fmt.Errorf("namespace %q: %w: %s", p.cfg.Namespace, backend.ErrUnavailable, err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.checked[p.poolSpec()] = true
	return nil
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
	p.retireLocked(c, why)
}

func (p *Pool) retireLocked(c *client, why error) {
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
