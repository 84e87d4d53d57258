package memory

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Cluster is one pool of a Ceph cluster.
type Cluster struct {
	*shared
	spec    backend.PoolSpec
	images  map[string]*image // by name
	names   map[string]bool   // taken, and no image has them
	trash   []trashed
	records map[string]entry
}

// shared is what all pools of a cluster have in common.
type shared struct {
	mu      sync.Mutex
	pools   map[backend.PoolSpec]*Cluster
	fenced  map[string]bool
	secrets map[string]string
	next    uint64 // ids, versions and nonces
	flatten []string
	cut     *int // how many steps the next call has; nil = all
}

type image struct {
	backend.Image
	spec     backend.ImageSpec
	meta     map[string]string
	watchers map[string]int // by address
	disk
	locked *backend.Encryption // nil = not encrypted

	unaccounted bool // its object map is not valid
	snaps       []snapshot

	mapped   bool // its object map is made
	attached bool // its parent, if it has one, knows it
}

// disk is what is on an image.
type disk struct {
	data   []byte // empty = nothing was ever written
	filled uint64 // bytes that its filesystem takes
}

type snapshot struct {
	backend.Snapshot
	disk
}

type trashed struct {
	*image
	until time.Time // zero = nobody said for how long
}

type entry struct {
	data    []byte
	version backend.Version
}

// NewCluster returns an empty cluster with the pool "rbd".
func NewCluster() *Cluster {
	c := &Cluster{shared: &shared{pools: map[backend.PoolSpec]*Cluster{}, fenced: map[string]bool{}, secrets: map[string]string{}}}
	return c.Beside(backend.PoolSpec{Pool: "rbd"})
}

// Beside makes another pool of the cluster.
func (c *Cluster) Beside(spec backend.PoolSpec) *Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools[spec] = &Cluster{shared: c.shared, spec: spec, images: map[string]*image{}, names: map[string]bool{}, records: map[string]entry{}}
	return c.pools[spec]
}

// Flattened names the images that the manager was asked to make independent, and
// forgets them.
func (c *Cluster) Flattened() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.flatten = nil }()
	return c.flatten
}

// Keep puts a passphrase into the config-key store, or what stands for one.
func (c *Cluster) Keep(name, passphrase string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secrets[name] = passphrase
}

func (c *Cluster) number() uint64 {
	c.next++
	return c.next
}

// Connect makes a client with an address of the host.
func (c *Cluster) Connect(ip string) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &Client{cluster: c, addr: fmt.Sprintf("%s:0/%d", ip, c.number())}
}

func (c *Cluster) unwatch(addr string) {
	for _, pool := range c.pools {
		for _, i := range pool.images {
			delete(i.watchers, addr)
		}
	}
}

func (c *Cluster) clone(made *image, from backend.Parent) error {
	parent := c.byID(from.PoolSpec, from.ID)
	if parent == nil {
		return fmt.Errorf("%w: the image to be cloned is gone", backend.ErrInvalid)
	}
	for _, s := range parent.snaps {
		if s.ID == from.SnapID && s.Name == from.Snap {
			return c.make(made, parent, &s)
		}
	}
	return fmt.Errorf("%w: the snapshot to be cloned is gone", backend.ErrInvalid)
}

// byID finds an image, be it in the trash.
func (c *Cluster) byID(spec backend.PoolSpec, id string) *image {
	pool := c.pools[spec]
	if pool == nil {
		return nil
	}
	for _, i := range pool.images {
		if i.ID == id {
			return i
		}
	}
	for _, t := range pool.trash {
		if t.ID == id {
			return t.image
		}
	}
	return nil
}

// clones are the images that have this one as their parent.
func (c *Cluster) clones(of *image) (names []string) {
	for spec, pool := range c.pools {
		for _, i := range pool.images {
			if i.Parent != nil && i.attached && c.byID(i.Parent.PoolSpec, i.Parent.ID) == of {
				names = append(names, spec.String()+"/"+i.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Snapshot makes one of an image, which must exist.
func (c *Cluster) Snapshot(image, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[image].snap(name, c.number())
}

func (i *image) snap(name string, id uint64) {
	i.snaps = append(i.snaps, snapshot{backend.Snapshot{Name: name, ID: id, Size: i.Size, Created: time.Now()}, i.disk})
}

// Watch has a stranger watch an image, until stop is called.
func (c *Cluster) Watch(image, addr string) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[image].watchers[addr]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.unwatch(addr)
	}
}

// Invalidate makes the object map of an image one that is not valid.
func (c *Cluster) Invalidate(image string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[image].unaccounted = true
}

// Resize makes an image larger, as rbd resize does.
func (c *Cluster) Resize(image string, size uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[image].Size = size
}

// Rename gives an image another name, as rbd mv does: mapped or not.
func (c *Cluster) Rename(from, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.images[from]
	delete(c.images, from)
	i.Name = to
	c.images[to] = i
}

// Restore takes an image out of the trash, as rbd trash restore does.
func (c *Cluster) Restore(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, t := range c.trash {
		if t.Name == name {
			c.images[name] = t.image
			c.trash = slices.Delete(c.trash, n, n+1)
			return true
		}
	}
	return false
}

// Age makes all snapshots, and all that is in the trash, older.
func (c *Cluster) Age(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, t := range c.trash {
		if !t.until.IsZero() {
			c.trash[i].until = t.until.Add(-by)
		}
	}
	for _, image := range c.images {
		for i, s := range image.snaps {
			image.snaps[i].Created = s.Created.Add(-by)
		}
	}
}
