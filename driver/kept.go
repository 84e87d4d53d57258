package driver

import (
	"context"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// A client may run out of patience before a mount has come to its end: podman's is 5 s,
// and less than a take-over takes. It asks again with the same id, so a mount that
// nobody has heard of is kept for a while.

// kept are these mounts. Each is counted among the references.
type kept struct {
	mu sync.Mutex
	m  map[user]chan struct{} // closed when it is kept no longer
}

// user is one who has a volume mounted, as Docker tells them apart.
type user struct{ volume, id string }

// add begins to keep a mount; false if it is kept already.
func (k *kept) add(u user) (over <-chan struct{}, added bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m == nil {
		k.m = map[user]chan struct{}{}
	}
	if over = k.m[u]; over != nil {
		return over, false
	}
	k.m[u] = make(chan struct{})
	return k.m[u], true
}

// take ends the keeping of a mount, with over only the one that add has begun; false if
// it has ended already.
func (k *kept) take(u user, over <-chan struct{}) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	is := k.m[u]
	if is == nil || over != nil && over != is {
		return false
	}
	close(is)
	delete(k.m, u)
	return true
}

// of lists whom a volume is kept for.
func (k *kept) of(volume string) (users []user) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for u := range k.m {
		if u.volume == volume {
			users = append(users, u)
		}
	}
	return users
}

// Keep is for a mount that has succeeded when nobody waited for it any more. The same id
// finds it within a minute; after that, or when another node or another operation wants
// the volume, it is unmounted.
func (d *Driver) Keep(ctx context.Context, name, id string) {
	u := user{name, id}
	over, added := d.kept.add(u)
	if !added { // two requests of the same id, both given up: one reference is kept
		d.refs.drop(name, id)
		return
	}
	ctx = context.WithoutCancel(ctx)
	go d.survive("keep", name, func() { d.waitKept(ctx, u, over) })
}

func (d *Driver) waitKept(ctx context.Context, u user, over <-chan struct{}) {
	end := time.After(d.keepTime)
	for waits := true; waits; {
		select {
		case <-over:
			return
		case <-end:
			waits = false
		case <-time.After(d.keepTime / 12):
			waits = !d.wantedElsewhere(ctx, u.volume)
		}
	}
	if !d.kept.take(u, over) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.keepTime)
	defer cancel()
	log := d.log.WithField("volume", u.volume).WithField("id", u.id)
	if err := d.Unmount(ctx, u.volume, u.id); err != nil {
		log.Warnf("mounted when nobody waited for it any more, and not asked for again: %v", err)
		return
	}
	log.Info("mounted when nobody waited for it any more, and not asked for again: unmounted")
}

// wantedElsewhere tells, as far as that is known, whether another node waits for what is
// mounted here.
func (d *Driver) wantedElsewhere(ctx context.Context, volume string) bool {
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	m, found, err := d.mapping(ctx, volume)
	if err != nil || !found || m.Mode != backend.ReadWrite {
		return false
	}
	wanted, err := d.guards.Wanted(ctx, m.ID)
	return err == nil && wanted
}

// unkeep drops the references of mounts that are only kept: somebody wants the volume
// for something else, or the plugin ends.
func (d *Driver) unkeep(name string) {
	for _, u := range d.kept.of(name) {
		if d.kept.take(u, nil) {
			d.refs.drop(name, u.id)
		}
	}
}

// refer counts one more user of a mounted volume. If nobody waits to hear of it the
// mount is kept.
func (d *Driver) refer(ctx context.Context, name, id string) {
	if !d.kept.take(user{name, id}, nil) || !d.refs.has(name, id) {
		d.refs.add(name, id)
	}
	if unawaited(ctx) {
		d.Keep(ctx, name, id)
	}
}
