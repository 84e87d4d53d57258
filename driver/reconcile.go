package driver

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Watch compares, now and at each interval until the context ends, what is
// mapped on this node with the guards, and puts right what does not fit. It
// learns which volumes there are, for the time when Ceph cannot be asked, and so
// whether it can, before Docker asks.
//
// Once a day, ten minutes after the start for the first time, it sweeps, and at least
// each hour it empties the trash of what has been there for long enough.
func (d *Driver) Watch(ctx context.Context, interval time.Duration) {
	sweep := time.Now().Add(10 * time.Minute)
	purge := time.Now().Add(d.purgeInterval())
	d.survive("thaw", "", func() { d.thawAll(ctx) })
	known := d.outage.start(d.patience / 10)
	d.survive("list", "", func() { _ = d.learn(ctx) })
	known()
	for {
		d.survive("reconcile", "", func() { d.Reconcile(ctx) })
		if time.Now().After(sweep) {
			go d.survive("sweep", "", func() { d.Sweep(ctx) })
			sweep = time.Now().Add(24 * time.Hour)
		}
		if time.Now().After(purge) {
			if d.purging.TryLock() {
				go func() {
					defer d.purging.Unlock()
					d.survive("empty the trash", "", func() { d.Purge(ctx) })
				}()
			}
			purge = time.Now().Add(d.purgeInterval())
		}
		if !backend.Sleep(ctx, interval) {
			return
		}
		d.survive("list", "", func() { _ = d.learn(ctx) })
	}
}

// Reconcile looks once at every mapping and mount of this node:
//   - a guard in other hands, or a fenced client: the volume was taken over
//     while this node was away. Mount, device and client go, at once and by
//     force, so that nothing is left to write when the fence expires.
//   - mapped and used by nobody: forgotten by a crashed engine, or the last
//     unmount met a container that still held it. It is let go, unless a mount
//     table says that a container has it; what Docker has mounted, after a while.
//   - mounted without a mapping: what a dead userspace mapper leaves.
//   - nothing mapped, and mounts would not reach the host: the plugin ends, to
//     be started afresh, before somebody wants to mount.
func (d *Driver) Reconcile(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	mappings, err := d.mappings(ctx)
	if err != nil {
		d.log.Warnf("reconcile: mappings of this node: %v", err)
		return
	}
	if len(mappings) == 0 {
		switch err := d.fs.CheckPropagation(ctx, d.mounts); {
		case errors.Is(err, backend.ErrNotPropagated):
			d.startAfresh(ctx)
		case err != nil:
			d.log.Warnf("reconcile: do mounts reach the host: %v", err)
		}
	}
	mounts, err := d.fs.Mounted(ctx, d.mounts)
	if err != nil {
		d.log.Warnf("reconcile: mounts of this node: %v", err)
		return
	}
	volumes := map[string]bool{}
	var addrs []string
	for _, m := range mappings {
		volumes[m.Name] = true
		if m.Mode == backend.ReadWrite {
			addrs = append(addrs, m.Addr)
		}
	}
	for path := range mounts {
		volumes[filepath.Base(path)] = true
	}
	var fenced map[string]bool
	if len(addrs) > 0 { // once for all: the list may be long
		ask, cancel := context.WithTimeout(ctx, d.patience)
		defer cancel()
		if fenced, err = d.fences.Fenced(ask, addrs...); err != nil {
			d.log.Debugf("reconcile: %v", err)
			fenced = nil
		}
		if errors.Is(err, backend.ErrUnavailable) {
			for _, m := range mappings { // nothing would be done to them, and who mounts one again would wait
				if m.Alive {
					delete(volumes, m.Name)
				}
			}
		}
	}
	held := d.held(ctx, mappings)
	var wg sync.WaitGroup
	for name := range volumes {
		wg.Go(func() { d.survive("reconcile", name, func() { d.reconcileVolume(ctx, name, fenced, held) }) })
	}
	wg.Wait()
	d.tidyReaders(ctx)
}

// Shutdown gives up, at the end of the plugin, all that no container holds. What
// one holds stays mounted and guarded; the next start finds it.
func (d *Driver) Shutdown(ctx context.Context) {
	d.thawAll(ctx) // a snapshot may be under way
	mappings, err := d.mappings(ctx)
	if err != nil {
		d.log.Warnf("stop: mappings of this node: %v", err)
	}
	held := d.held(ctx, mappings)
	var wg sync.WaitGroup
	for _, m := range mappings {
		wg.Go(func() {
			d.unkeep(m.Name)
			d.refs.forget(m.Name)
			d.survive("let go of", m.Name, func() { d.reconcileVolume(ctx, m.Name, nil, held) })
		})
	}
	wg.Wait()
}

// Sweep takes away what nobody else would:
//   - the guards of images that are gone, and the notes of their readers: a removal
//     died at its very end, or an image was deleted by hand. An id never comes again.
//   - the snapshots that were made for a copy, by a plugin that was killed then.
func (d *Driver) Sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Hour) // it goes through the whole pool
	defer cancel()
	if err := errors.Join(d.guards.Sweep(ctx), d.sweepSnapshots(ctx)); err != nil {
		d.log.Warn(wrap("sweep", "", err))
	}
}

// purgeInterval is an hour, or less where nobody wants to keep anything for so long:
// what copies still needed is to go soon after them.
func (d *Driver) purgeInterval() time.Duration { return max(15*time.Second, min(time.Hour, d.trash/4)) }

// Purge empties the trash of removed volumes whose time there is up.
func (d *Driver) Purge(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	names, err := d.images.Purge(ctx)
	for _, name := range names {
		d.log.WithField("volume", name).Info("its time in the trash is up: its data is deleted")
	}
	if err != nil {
		d.log.Warn(wrap("empty the trash", "", err))
	}
}

// reconcileVolume puts one volume of this node right. Which clients are fenced may have
// been asked for many volumes at once, and which devices containers have; nil = not.
func (d *Driver) reconcileVolume(ctx context.Context, name string, fenced, held map[string]bool) {
	log := d.log.WithField("volume", name)
	unlock, err := d.locks.lock(ctx, name, "reconcile")
	if err != nil {
		return // somebody works on it; next time
	}
	defer unlock()
	if err = d.dropLost(ctx, name, fenced); err == nil {
		err = d.unstageUnheld(ctx, name, held)
	}
	switch {
	case errors.Is(err, backend.ErrBusy):
		log.Debugf("reconcile: in use by a container: %v", err)
	case errors.Is(err, backend.ErrUnavailable): // nothing is known, so nothing is done
		log.Debugf("reconcile: %v", err)
	case err != nil:
		log.Warnf("reconcile: %v", err)
	}
}

// dropLost takes away what this node has no right to, or no use of, any more:
// a mount without a working mapping, a mapping that is dead or not under a
// guard of ours. What is left afterwards may be written.
func (d *Driver) dropLost(ctx context.Context, name string, fenced map[string]bool) error {
	if err := d.detachStale(ctx, name); err != nil {
		return err
	}
	m, found, err := d.mapping(ctx, name)
	if err != nil || !found {
		return err
	}
	lost := !m.Alive
	if !lost && m.Mode == backend.ReadOnly {
		return d.rewatch(ctx, m)
	}
	if !lost {
		if lost, err = d.guards.Lost(ctx, m, fenced); err != nil {
			return err
		}
	}
	if lost {
		return d.forceUnmap(ctx, m)
	}
	return nil
}
