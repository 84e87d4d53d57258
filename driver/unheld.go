package driver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// That Docker has mounted a volume and not unmounted it need not mean that a
// container has it: an engine that crashes may forget to unmount, and a request to
// mount may have been given up just when it had been answered. The kernel knows; but
// between a mount and the start of its container there may be minutes.

// unheld remembers since when no container has had what Docker has mounted.
type unheld struct {
	mu sync.Mutex
	m  map[string]sighting // by volume
}

type sighting struct {
	addr  string // of the mapping
	since time.Time
}

// see notes that nobody has the volume, and tells for how long that has been so.
func (u *unheld) see(m backend.Mapping) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s, ok := u.m[m.Name]; ok && s.addr == m.Addr {
		return time.Since(s.since)
	}
	if u.m == nil {
		u.m = map[string]sighting{}
	}
	u.m[m.Name] = sighting{m.Addr, time.Now()}
	return 0
}

func (u *unheld) forget(volume string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.m, volume)
}

// held looks once, for all mappings, which of them containers have. A device of which
// nothing is known is not in the answer.
func (d *Driver) held(ctx context.Context, mappings []backend.Mapping) map[string]bool {
	var devices []string
	for _, m := range mappings {
		if m.Device != "" {
			devices = append(devices, m.Device)
		}
	}
	if len(devices) == 0 {
		return nil
	}
	held, err := d.fs.Held(ctx, d.mounts, devices)
	if err != nil {
		d.log.Debugf("reconcile: %v", err)
	}
	return held
}

// unstageUnheld lets go of a volume that no container has, as the look at all mappings
// said: at once if Docker does not say that it is mounted, else after a while, which is
// shorter if another node waits for it. Where nothing is known of containers, and Docker
// does not say so, the kernel refuses to let go of what they have.
func (d *Driver) unstageUnheld(ctx context.Context, name string, held map[string]bool) error {
	users := d.refs.count(name)
	m, found, err := d.mapping(ctx, name)
	if err != nil {
		return err
	}
	is, known := held[m.Device]
	switch {
	case found && is:
		d.unheld.forget(name)
		return nil
	case users == 0:
		return d.unstage(ctx, name)
	case !found || !known:
		return nil
	}
	since := d.unheld.see(m)
	if since < d.unheldTime {
		if since < d.unheldTime/10 || m.Mode == backend.ReadOnly {
			return nil
		}
		if wanted, err := d.guards.Wanted(ctx, m.ID); err != nil || !wanted {
			return err
		}
	}
	if err := d.unstage(ctx, name); err != nil {
		return err
	}
	d.refs.forget(name)
	d.unheld.forget(name)
	d.log.WithField("volume", name).Warnf("let go: docker has not unmounted it, but no container has had it for %v", since.Round(time.Second))
	return nil
}

// waitUnheld gives containers that have ended a moment: their mounts go a little after
// them. ErrBusy if one has the volume; nothing is changed to find that out.
func (d *Driver) waitUnheld(ctx context.Context, m backend.Mapping) error {
	for end := time.Now().Add(2 * time.Second); ; {
		if !d.held(ctx, []backend.Mapping{m})[m.Device] {
			return ctx.Err()
		}
		if time.Now().After(end) || !backend.Sleep(ctx, 100*time.Millisecond) {
			return fmt.Errorf("%w: a container on this node (%s) has %s mounted", backend.ErrBusy, d.node.Name, m.Device)
		}
	}
}
