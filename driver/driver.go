package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// Config is what a Driver stands on. Pool, Trash and Defaults are shown and
// applied; everything else does the work.
type Config struct {
	Images     backend.Images
	Records    backend.Records
	Fences     backend.Fences
	Secrets    backend.Secrets
	Mapper     backend.Mapper
	Filesystem backend.Filesystem
	Why        string // which mapper it is, and why: shown with each volume
	Node       guard.Node
	Pool       backend.PoolSpec
	Trash      time.Duration     // for how long a removed volume can be restored; 0 = its data is deleted at once
	Defaults   map[string]string // by option name, see BuiltinDefaults
	Root       string            // directory that propagates to the host: mounts, the cache, marks
	Log        logrus.FieldLogger
	BreakLock  bool   // see Handle.BreakLock; not with the kernel's client, which waits for the newest OSD map only while it does that itself
	Restart    func() // ends the plugin, so that Docker starts it afresh; nil = cannot

	Poll     time.Duration // between two looks at whether a holder is alive; default 300 ms
	Patience time.Duration // for Ceph before Get and List fall back to the cache; default 5 s
	Unheld   time.Duration // after which a volume that no container has is let go, though Docker has it mounted; default 10 min
	Keep     time.Duration // for which a mount is kept that nobody has heard of; default 1 min
}

// Driver holds the policy: who may mount what, in which order, and what is
// undone when a step fails. Its methods may be called at the same time.
type Driver struct {
	images     backend.Images
	records    backend.Records
	fences     backend.Fences
	secrets    backend.Secrets
	mapper     backend.Mapper
	why        string
	fs         backend.Filesystem
	node       guard.Node
	guards     *guard.Guards
	pool       backend.PoolSpec
	trash      time.Duration
	defaults   map[string]string
	mounts     string
	frozen     string // directory of marks
	reading    string // the same
	cache      *cache
	log        logrus.FieldLogger
	restart    func()
	poll       time.Duration
	patience   time.Duration
	unheldTime time.Duration
	keepTime   time.Duration
	now        func() time.Time

	locks   locks
	refs    refs
	kept    kept
	outage  outage
	sizes   sizes
	unheld  unheld
	watches watches
	works   works
	purging sync.Mutex
	within  sync.Map // by volume: the directory of it that containers get, if not all
}

// New checks the configuration and reads the cache. It does not ask Ceph.
func New(c Config) (*Driver, error) {
	if err := volume.CheckDefaults(c.Defaults); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	d := &Driver{
		images: c.Images, records: c.Records, fences: c.Fences, secrets: c.Secrets, mapper: c.Mapper, why: c.Why, fs: c.Filesystem,
		node: c.Node, pool: c.Pool, trash: c.Trash, defaults: c.Defaults,
		mounts: filepath.Join(c.Root, "volumes"),
		frozen: filepath.Join(c.Root, "frozen"), reading: filepath.Join(c.Root, "reading"),
		cache: openCache(filepath.Join(c.Root, "cache.json"), c.Log),
		log:   c.Log, restart: c.Restart, poll: c.Poll, patience: c.Patience,
		now: func() time.Time { return time.Now().UTC().Truncate(time.Second) },
	}
	if d.poll == 0 {
		d.poll = 300 * time.Millisecond
	}
	d.guards = &guard.Guards{
		Images: c.Images, Records: c.Records, Fences: c.Fences, Local: localState{d}, Node: c.Node, Log: c.Log, Poll: d.poll, Now: d.now, BreakLock: c.BreakLock,
	}
	if d.patience == 0 {
		d.patience = 5 * time.Second
	}
	if d.unheldTime = c.Unheld; d.unheldTime == 0 {
		d.unheldTime = 10 * time.Minute
	}
	if d.keepTime = c.Keep; d.keepTime == 0 {
		d.keepTime = time.Minute
	}
	return d, nil
}

// begin checks a name and waits for its volume's turn.
func (d *Driver) begin(ctx context.Context, name, op string) (unlock func(), err error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	unlock, err = d.locks.lock(ctx, name, op)
	if what := d.underWay(name); err != nil && what != "" {
		err = fmt.Errorf("%w: %s, for a request of before; it goes on, and the next one for the volume waits for its end", backend.ErrBusy, what)
	}
	return unlock, err
}

// path is where a volume is mounted.
func (d *Driver) path(volume string) string { return filepath.Join(d.mounts, volume) }

// mapping finds a volume's mapping on this node.
func (d *Driver) mapping(ctx context.Context, volume string) (m backend.Mapping, found bool, err error) {
	all, err := d.mappings(ctx)
	for _, m := range all {
		if m.Name == volume {
			return m, true, nil
		}
	}
	return backend.Mapping{}, false, err
}

// mappings are those of this node under a guard: snapshots have none.
func (d *Driver) mappings(ctx context.Context) ([]backend.Mapping, error) {
	all, err := d.mapper.Mappings(ctx)
	return slices.DeleteFunc(all, func(m backend.Mapping) bool { return m.Snap != "" }), err
}

// mounted finds a volume's mount on this node.
func (d *Driver) mounted(ctx context.Context, volume string) (m backend.Mount, found bool, err error) {
	all, err := d.fs.Mounted(ctx, d.mounts)
	m, found = all[d.path(volume)]
	return m, found, err
}

func (d *Driver) closeHandle(ctx context.Context, h backend.Handle) { guard.CloseHandle(ctx, d.log, h) }

// refs counts the mounts that Docker has asked for, per volume and id: docker
// cp mounts once more with the id of the running container (moby 47964).
type refs struct {
	mu sync.Mutex
	m  map[string]map[string]int
}

func (r *refs) add(volume, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string]map[string]int{}
	}
	if r.m[volume] == nil {
		r.m[volume] = map[string]int{}
	}
	r.m[volume][id]++
}

// drop takes one reference away and tells how many are left. An id that is not
// known, because the plugin was restarted since, changes nothing.
func (r *refs) drop(volume, id string) (left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := r.m[volume]
	if ids[id] > 1 {
		ids[id]--
	} else {
		delete(ids, id)
	}
	if len(ids) == 0 {
		delete(r.m, volume)
	}
	return len(ids)
}

func (r *refs) has(volume, id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m[volume][id] > 0
}

// forget drops all references of a volume whose mount is lost.
func (r *refs) forget(volume string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, volume)
}

func (r *refs) count(volume string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.m[volume])
}
