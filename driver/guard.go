package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// The states of a guard.
const (
	// guardMapping: the holder has written nothing yet and will not before its
	// next swap. Whoever finds it dead may swap without fencing.
	guardMapping = "mapping"
	// guardMapped: the clients in Addrs may write. Whoever takes over fences
	// all of them first.
	guardMapped = "mapped"
	// guardRemoving: as guardMapped, and the image is about to go.
	guardRemoving = "removing"
)

// Guard is the record that says which node has an image.
type Guard struct {
	Node  string    `json:"node"`
	Boot  string    `json:"boot"` // boot id of the node's kernel
	State string    `json:"state"`
	Addrs []string  `json:"addrs"` // clients that act under this guard, "ip:0/nonce"
	Since time.Time `json:"since"` // by the holder's clock: to be shown, never compared
}

// covers tells whether a mapping, and nothing else, may write under the guard.
// While a filesystem is being made the control client may as well: what a crash
// then leaves is not continued but begun anew.
func (g Guard) covers(m backend.Mapping) bool {
	return g.State == guardMapped && slices.Equal(g.Addrs, []string{m.Addr})
}

func guardKey(imageID string) string { return "guard." + imageID }

func (d *Driver) loadGuard(ctx context.Context, imageID string) (g Guard, version backend.Version, err error) {
	version, err = d.records.Load(ctx, guardKey(imageID), &g)
	return g, version, err
}

// Node is this node, as its guards name it.
type Node struct {
	Name  string
	Boot  string
	Hosts func() ([]netip.Addr, error) // the addresses this host has now
}

// lease is a guard that this node holds, with the image open so that the
// control client is among its watchers for as long.
type lease struct {
	backend.Handle
	guard   Guard
	version backend.Version
	adopted bool // the guard was ours already and a mapping stands under it
}

// swap moves the lease's record to a state in which these clients act.
func (d *Driver) swap(ctx context.Context, l *lease, state string, addrs ...string) error {
	next := l.guard
	next.State, next.Addrs = state, addrs
	version, err := d.records.Swap(ctx, guardKey(l.Image().ID), l.version, next)
	if err != nil {
		return err
	}
	l.guard, l.version = next, version
	return nil
}

// giveBack makes the image free. ErrLost or ErrNotFound, somebody took over
// meanwhile, is no error: they hold what we gave up.
func (d *Driver) giveBack(ctx context.Context, id string, version backend.Version) error {
	err := d.records.Delete(ctx, guardKey(id), version)
	if errors.Is(err, backend.ErrLost) || errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	return err
}

// isMine: the kernel here has a mapping of the image that the guard covers, whatever
// this node and its address are called by now; or, of what is not mapped, it has this
// node's name and an address of this host. Cloned machines share names and
// machine-ids; two live hosts never share an address.
func (d *Driver) isMine(ctx context.Context, imageID string, g Guard) (bool, error) {
	if named, err := d.isNamed(g); err != nil || named || len(g.Addrs) == 0 {
		return named, err
	}
	mapped, err := d.mappings(ctx)
	return slices.ContainsFunc(mapped, func(m backend.Mapping) bool { return m.ID == imageID && g.covers(m) }), err
}

// isNamed tells whether a guard has this node's name and an address of this host.
func (d *Driver) isNamed(g Guard) (bool, error) {
	if g.Node != d.node.Name {
		return false, nil
	}
	hosts, err := d.node.Hosts()
	if err != nil {
		return false, fmt.Errorf("addresses of this host: %w", err)
	}
	if len(g.Addrs) == 0 {
		return false, nil
	}
	for _, addr := range g.Addrs {
		if ip, ok := addrIP(addr); !ok || !slices.Contains(hosts, ip) {
			return false, nil
		}
	}
	return true, nil
}

// addrIP takes the IP out of Ceph's "ip:port/nonce", "[ip6]:port/nonce" and
// "v1:ip:port/nonce".
func addrIP(addr string) (netip.Addr, bool) {
	hostport, _, _ := strings.Cut(addr, "/")
	for _, kind := range []string{"v1:", "v2:", "any:"} {
		hostport = strings.TrimPrefix(hostport, kind)
	}
	ap, err := netip.ParseAddrPort(hostport)
	return ap.Addr().Unmap(), err == nil
}
