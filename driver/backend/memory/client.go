package memory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Client is a connection to the cluster: it has an address, which can be
// fenced, and all it does fails afterwards. It implements backend.Images,
// backend.Records and backend.Fences.
type Client struct {
	cluster *Cluster
	addr    string
}

// Addr is the address of the client.
func (c *Client) Addr() string { return c.addr }

// Cluster is the pool that the client is connected to.
func (c *Client) Cluster() *Cluster { return c.cluster }

// Kill ends the client as the death of its process does, once Ceph has noticed:
// its watches are gone.
func (c *Client) Kill() {
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	c.cluster.unwatch(c.addr)
}

// enter takes the cluster's lock for a call, if the call may be made.
func (c *Client) enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	c.cluster.mu.Lock()
	if c.cluster.fenced[c.addr] {
		c.cluster.mu.Unlock()
		return nil, fmt.Errorf("%w: client %s is fenced", backend.ErrUnavailable, c.addr)
	}
	return c.cluster.mu.Unlock, nil
}

// Ping answers unless the client is fenced; see backend.Images.
func (c *Client) Ping(ctx context.Context) error {
	leave, err := c.enter(ctx)
	if err == nil {
		leave()
	}
	return err
}

// Create makes an image; see backend.Images.
func (c *Client) Create(ctx context.Context, spec backend.ImageSpec) error {
	leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if c.cluster.images[spec.Name] != nil {
		return fmt.Errorf("create image: %w", backend.ErrExists)
	}
	made := &image{
		Image: backend.Image{
			Name: spec.Name, ID: fmt.Sprintf("%x", c.cluster.number()), Size: spec.Size,
			Created: time.Now().UTC(), Features: spec.Features,
		},
		spec: spec, meta: map[string]string{}, watchers: map[string]int{},
	}
	if spec.Parent == nil {
		return c.cluster.make(made, nil, nil)
	}
	return c.cluster.clone(made, *spec.Parent)
}

// Purge empties the trash; see backend.Images.
func (c *Client) Purge(ctx context.Context) ([]string, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var names []string
	c.cluster.trash = slices.DeleteFunc(c.cluster.trash, func(t trashed) bool {
		if t.until.IsZero() || time.Now().Before(t.until) {
			return false
		}
		if clones := c.cluster.clones(t.image); len(clones) > 0 {
			c.cluster.flatten = append(c.cluster.flatten, clones...)
			return false
		}
		names = append(names, t.Name)
		return true
	})
	return names, nil
}

// Secret reads what Keep has kept; see backend.Secrets.
func (c *Client) Secret(ctx context.Context, name string) ([]byte, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if secret, ok := c.cluster.secrets[name]; ok {
		return []byte(secret), nil
	}
	return nil, fmt.Errorf("%w passphrase %s: there is none", backend.ErrInvalid, name)
}

// Exists looks for an image; see backend.Images.
func (c *Client) Exists(ctx context.Context, name string) (bool, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	_, err = c.cluster.find(name)
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// ID looks for an image; see backend.Images.
func (c *Client) ID(ctx context.Context, name string) (string, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	i := c.cluster.images[name]
	if i == nil {
		return "", fmt.Errorf("id of image: %w", backend.ErrNotFound)
	}
	return i.ID, nil
}

// HasID looks for an image; see backend.Images.
func (c *Client) HasID(ctx context.Context, id string) (bool, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	return c.cluster.byID(c.cluster.spec, id) != nil, nil
}

// Names lists the images; see backend.Images.
func (c *Client) Names(ctx context.Context) ([]string, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	names := slices.AppendSeq(slices.Collect(maps.Keys(c.cluster.images)), maps.Keys(c.cluster.names))
	slices.Sort(names)
	return slices.DeleteFunc(names, func(n string) bool { return !backend.ValidName(n) }), nil
}

// Open opens an image; see backend.Images.
func (c *Client) Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	i, err := c.cluster.find(name)
	if err != nil {
		return nil, err
	}
	if mode == backend.ReadWrite {
		i.watchers[c.addr]++
	}
	return &handle{client: c, image: i, mode: mode}, nil
}

// OpenApart opens an image; see backend.Images.
func (c *Client) OpenApart(ctx context.Context, name string) (backend.Handle, error) {
	ip, _, _ := strings.Cut(c.addr, ":0/")
	return c.cluster.Connect(ip).Open(ctx, name, backend.ReadWrite)
}

// Load reads a record; see backend.Records.
func (c *Client) Load(ctx context.Context, key string, into any) (backend.Version, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	e, ok := c.cluster.records[key]
	if !ok {
		return 0, fmt.Errorf("read %s: %w", key, backend.ErrNotFound)
	}
	return e.version, json.Unmarshal(e.data, into)
}

// CompareAndSwap replaces a record; see backend.Records.
func (c *Client) CompareAndSwap(ctx context.Context, key string, old backend.Version, value any) (backend.Version, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	if c.cluster.records[key].version != old {
		return 0, fmt.Errorf("write %s: %w", key, backend.ErrConflict)
	}
	data, err := json.Marshal(value)
	if err != nil {
		return 0, err
	}
	version := backend.Version(c.cluster.number())
	c.cluster.records[key] = entry{data, version}
	return version, nil
}

// Delete removes a record; see backend.Records.
func (c *Client) Delete(ctx context.Context, key string, old backend.Version) error {
	leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if old == 0 {
		return fmt.Errorf("remove %s: %w", key, backend.ErrNotFound)
	}
	if c.cluster.records[key].version != old {
		return fmt.Errorf("remove %s: %w", key, backend.ErrConflict)
	}
	delete(c.cluster.records, key)
	return nil
}

// List lists the records; see backend.Records.
func (c *Client) List(ctx context.Context, prefix string) ([]string, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	keys := slices.Sorted(maps.Keys(c.cluster.records))
	return slices.DeleteFunc(keys, func(k string) bool { return !strings.HasPrefix(k, prefix) }), nil
}

// Fence bars clients; see backend.Fences. Their watches go at once.
func (c *Client) Fence(ctx context.Context, addrs ...string) error {
	leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	for _, addr := range addrs {
		c.cluster.fenced[addr] = true
		c.cluster.unwatch(addr)
	}
	return nil
}

// Fenced looks addresses up; see backend.Fences.
func (c *Client) Fenced(ctx context.Context, addrs ...string) (map[string]bool, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	fenced := map[string]bool{}
	for _, addr := range addrs {
		if c.cluster.fenced[addr] {
			fenced[addr] = true
		}
	}
	return fenced, nil
}
