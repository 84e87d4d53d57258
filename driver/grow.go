package driver

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/volume"
)

// sizes remembers how large the devices were for which filesystems were grown: a
// filesystem may leave a rest of its device, and would be asked to grow for ever.
type sizes struct {
	mu sync.Mutex
	m  map[string]uint64 // bytes, by device and address of the mapping
}

func sizeKey(m backend.Mapping) string { return m.Device + " " + m.Addr }

func (s *sizes) get(m backend.Mapping) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[sizeKey(m)]
}

func (s *sizes) set(m backend.Mapping, size uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]uint64{}
	}
	s.m[sizeKey(m)] = size
}

// all is a copy.
func (s *sizes) all() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m)
}

// forget drops, of those, the ones that are not mapped any more.
func (s *sizes) forget(those map[string]uint64, mapped []backend.Mapping) {
	for _, m := range mapped {
		delete(those, sizeKey(m))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range those {
		delete(s.m, key)
	}
}

// mountFull mounts a filesystem, and makes it as large as its device if that has
// been made larger since. A failed resize is logged; the mount still succeeds.
func (d *Driver) mountFull(ctx context.Context, mount backend.Mount, m backend.Mapping) error {
	size, sizeErr := d.mapper.Size(ctx, m) // a device that was adopted may have to grow first
	needs, err := d.fs.NeedsResize(ctx, mount.Device, mount.FSType)
	if err != nil {
		return err
	}
	if err := d.fs.Mount(ctx, mount); err != nil {
		return err
	}
	if err = sizeErr; err == nil && needs {
		if err = d.fs.Resize(ctx, mount); err == nil {
			d.log.WithField("volume", m.Name).Infof("%s was grown to %s", mount.FSType, volume.FormatSize(size))
		}
	}
	if err != nil {
		d.log.WithField("volume", m.Name).Warnf("grow the filesystem: %v", err)
		return nil
	}
	d.sizes.set(m, size)
	return nil
}

// Follow looks, at each interval until the context ends, whether images that are
// mounted here have become larger, and makes their filesystems as large. It asks
// nobody but this node, and so does not mind if Ceph is away.
func (d *Driver) Follow(ctx context.Context, interval time.Duration) {
	for backend.Sleep(ctx, interval) {
		d.survive("grow", "", func() { d.growAll(ctx, interval) })
	}
}

func (d *Driver) growAll(ctx context.Context, limit time.Duration) {
	before := d.sizes.all() // what is mapped while the list is made is not to be forgotten
	mappings, err := d.mappings(ctx)
	if err != nil {
		return // others say so
	}
	d.sizes.forget(before, mappings)
	look, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range mappings {
		if !m.Alive || m.Mode == backend.ReadOnly {
			continue
		}
		// The first look since the start has tools touch the device, which would hang.
		if d.sizes.get(m) == 0 && d.outage.doubtful() {
			continue
		}
		wg.Go(func() {
			d.survive("grow", m.Name, func() {
				if size, err := d.mapper.Size(look, m); err == nil && size > d.sizes.get(m) {
					d.grow(ctx, m, size)
				}
			})
		})
	}
	wg.Wait()
}

// grow makes the filesystem of a mapping as large as its device, unless somebody
// is at work on the volume: then the next look will.
func (d *Driver) grow(ctx context.Context, m backend.Mapping, size uint64) {
	log := d.log.WithField("volume", m.Name)
	turn, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	unlock, err := d.locks.lock(turn, m.Name, "grow")
	if err != nil {
		return
	}
	defer unlock()
	mount, found, err := d.mounted(ctx, m.Name)
	if err != nil || !found || mount.Device != m.Device {
		return
	}
	before := d.sizes.get(m) // 0 = it is the first look since the start
	if size <= before {      // a mount, under way during the look, has seen to it
		return
	}
	ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := d.fs.Resize(ctx, mount); err != nil {
		log.Warnf("grow %s on %s to %s, to be tried again in a minute: %v", mount.FSType, m.Device, volume.FormatSize(size), err)
		time.AfterFunc(time.Minute, func() { d.sizes.set(m, 1) })
	} else if before != 0 {
		log.Infof("grew %s on %s to %s while it is mounted", mount.FSType, m.Device, volume.FormatSize(size))
	}
	d.sizes.set(m, size)
}
