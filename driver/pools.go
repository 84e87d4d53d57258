package driver

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Pools is all that this node may use: a Driver for each pool and namespace. A
// volume is in one of them, and its name is unique over all. The first pool is
// where new volumes go unless somebody says otherwise.
type Pools []*Driver

// Create makes a volume; see Driver.Create.
func (p Pools) Create(ctx context.Context, name string, opts map[string]string) error {
	at, source, err := p.choose(ctx, name, opts)
	if err != nil {
		return wrap("create", name, err)
	}
	if err := at.CreateFrom(ctx, name, opts, source); err != nil || len(p) == 1 {
		return err
	}
	_, err = p.where(ctx, name) // another node may have made it elsewhere at the same time
	return wrap("create", name, err)
}

// Get describes a volume; see Driver.Get. Each pool answers for itself, from its
// record where its part of Ceph is away; what Ceph says comes before what is cached.
// Of two volumes the answer is one, with an error that names both: were it an error
// itself, dockerd would forget them.
func (p Pools) Get(ctx context.Context, name string) (Volume, error) {
	if len(p) == 1 {
		return p[0].Get(ctx, name)
	}
	volumes, found, errs := make([]Volume, len(p)), make([]bool, len(p)), make([]error, len(p))
	cached := -1
	p.each(func(i int, d *Driver) {
		volumes[i], errs[i] = d.Get(ctx, name)
		if found[i] = errs[i] == nil && !volumes[i].cached; errors.Is(errs[i], backend.ErrNoVolume) {
			errs[i] = nil
		}
	})
	for i, v := range volumes {
		if v.cached && cached < 0 {
			cached = i
		}
	}
	at, err := p.only(name, found, errs)
	switch {
	case errors.Is(err, backend.ErrAmbiguous):
		v := volumes[slices.Index(found, true)]
		v.Status["error"] = wrap("get", name, err).Error()
		return v, nil
	case at != nil:
		return volumes[slices.Index(p, at)], nil
	case cached >= 0:
		return volumes[cached], nil
	case errors.Is(err, backend.ErrNoVolume):
		return Volume{}, wrap("get", name, err)
	}
	return Volume{}, err
}

// List names the volumes of all pools; see Driver.List.
func (p Pools) List(ctx context.Context) ([]Volume, error) {
	lists, errs := make([][]Volume, len(p)), make([]error, len(p))
	p.each(func(i int, d *Driver) { lists[i], errs[i] = d.List(ctx) })
	all := map[string]Volume{}
	for _, v := range slices.Concat(lists...) {
		if there, twice := all[v.Name]; !twice || there.Mountpoint == "" {
			all[v.Name] = v
		}
	}
	names := slices.Sorted(maps.Keys(all))
	volumes := make([]Volume, len(names))
	for i, name := range names {
		volumes[i] = all[name]
	}
	return volumes, together(errs)
}

// Path asks the kernel; see Driver.Path.
func (p Pools) Path(ctx context.Context, name string) string {
	for _, d := range p {
		if path := d.Path(ctx, name); path != "" {
			return path
		}
	}
	return ""
}

// Mount mounts a volume; see Driver.Mount.
func (p Pools) Mount(ctx context.Context, name, id string) (string, error) {
	d, err := p.at(ctx, "mount", name)
	if err != nil {
		return "", err
	}
	return d.Mount(ctx, name, id)
}

// Keep keeps a mount that nobody has heard of; see Driver.Keep.
func (p Pools) Keep(ctx context.Context, name, id string) {
	for _, d := range p {
		if d.refs.count(name) > 0 {
			d.Keep(ctx, name, id)
		}
	}
}

// Unmount takes one user of a volume away; see Driver.Unmount. What is mounted here
// is known without Ceph.
func (p Pools) Unmount(ctx context.Context, name, id string) error {
	var errs []error
	for _, d := range p {
		if len(p) == 1 || d.refs.count(name) > 0 || d.Path(ctx, name) != "" {
			errs = append(errs, d.Unmount(ctx, name, id))
		}
	}
	return together(errs)
}

// Remove deletes a volume; see Driver.Remove.
func (p Pools) Remove(ctx context.Context, name string) error {
	d, err := p.at(ctx, "remove", name)
	if errors.Is(err, backend.ErrNotFound) {
		d, err = p[0], nil // says that it is done
	}
	if err != nil {
		return err
	}
	return d.Remove(ctx, name)
}

// Snapshots lists those of a volume; see Driver.Snapshots.
func (p Pools) Snapshots(ctx context.Context, name string) ([]backend.Snapshot, error) {
	d, err := p.at(ctx, "list snapshots of", name)
	if err != nil {
		return nil, err
	}
	return d.Snapshots(ctx, name)
}

// CreateSnapshot makes a snapshot; see Driver.CreateSnapshot.
func (p Pools) CreateSnapshot(ctx context.Context, name, snap string) (frozen bool, err error) {
	d, err := p.at(ctx, "make a snapshot of", name)
	if err != nil {
		return false, err
	}
	return d.CreateSnapshot(ctx, name, snap)
}

// RemoveSnapshot removes a snapshot; see Driver.RemoveSnapshot.
func (p Pools) RemoveSnapshot(ctx context.Context, name, snap string) error {
	d, err := p.at(ctx, "remove a snapshot of", name)
	if err != nil {
		return err
	}
	return d.RemoveSnapshot(ctx, name, snap)
}

// Rollback gives a volume the content of a snapshot; see Driver.Rollback.
func (p Pools) Rollback(ctx context.Context, name, snap string) error {
	d, err := p.at(ctx, "roll back", name)
	if err != nil {
		return err
	}
	return d.Rollback(ctx, name, snap)
}

// Watch is Driver.Watch for all pools, and Driver.Follow.
func (p Pools) Watch(ctx context.Context, interval, follow time.Duration) {
	p.each(func(_ int, d *Driver) {
		go d.survive("grow", "", func() { d.Follow(ctx, follow) })
		d.Watch(ctx, interval)
	})
}

// Shutdown is Driver.Shutdown for all pools.
func (p Pools) Shutdown(ctx context.Context) { p.each(func(_ int, d *Driver) { d.Shutdown(ctx) }) }

// InUse tells whether any volume is mapped on this node, as far as can be told.
func (p Pools) InUse(ctx context.Context) bool {
	for _, d := range p {
		if all, err := d.mapper.Mappings(ctx); err != nil || len(all) > 0 {
			return true
		}
	}
	return false
}
