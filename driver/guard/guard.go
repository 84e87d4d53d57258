package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// State is what may be done under a guard.
type State string

// The states of a guard.
const (
	// Mapping: the holder has written nothing yet and will not before its next change of
	// the record. Whoever finds it dead may take over without fencing.
	Mapping State = "mapping"
	// Mapped: the clients in Addrs may write. Whoever takes over fences all of them first.
	Mapped State = "mapped"
	// Removing: as Mapped, and the image is about to go.
	Removing State = "removing"
	// Reading is shown of a reader of a sealed volume. No record is in this state.
	Reading State = "reading"
)

// Record says which node has an image.
type Record struct {
	Node  string    `json:"node"`
	Boot  string    `json:"boot"` // boot id of the node's kernel
	State State     `json:"state"`
	Addrs []string  `json:"addrs"` // clients that act under this guard, "ip:0/nonce"
	Since time.Time `json:"since"` // by the holder's clock: to be shown, never compared
}

// Authorizes tells whether a mapping, and nothing else, may write under the guard. While a
// filesystem is being made the control client may as well: what a crash then leaves is not
// continued but begun anew.
func (r Record) Authorizes(m backend.Mapping) bool {
	return r.State == Mapped && slices.Equal(r.Addrs, []string{m.Addr})
}

// InUseError tells who has an image. It is a backend.ErrInUse.
type InUseError struct{ Record }

func (e *InUseError) Error() string {
	return fmt.Sprintf("%v by node %s (%s), %s since %s; stop what uses it there",
		backend.ErrInUse, e.Node, strings.Join(e.Addrs, ", "), e.State, e.Since.Format(time.RFC3339))
}

func (e *InUseError) Unwrap() error { return backend.ErrInUse }

// Node is this node, as its guards name it.
type Node struct {
	Name  string
	Boot  string
	Hosts func() ([]netip.Addr, error) // the addresses this host has now
}

// Local is what the guards are asked about on this node.
type Local interface {
	// Mappings are those of this node that write under a guard, or read a sealed volume.
	Mappings(ctx context.Context) ([]backend.Mapping, error)
	// Adopt tells whether to go on with what this node has mapped under the guard. What is
	// mapped and not under it is taken away.
	Adopt(ctx context.Context, image backend.Image, held Record) (bool, error)
	// IsMounted tells whether a volume is mounted on this node.
	IsMounted(ctx context.Context, volume string) (bool, error)
}

// Images are what the guards ask about a pool; see backend.Images.
type Images interface {
	Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error)
	Names(ctx context.Context) ([]string, error)
	HasID(ctx context.Context, id string) (bool, error)
}

// Guards are those of the images of one pool and namespace. All fields are needed.
type Guards struct {
	Images  Images
	Records backend.Records
	Fences  backend.Fences
	Local   Local
	Node    Node
	Log     logrus.FieldLogger
	Poll    time.Duration // between two looks at whether a holder is alive
	Now     func() time.Time

	// BreakLock: Ceph's exclusive lock is taken from a fenced holder, see backend.Handle.
	BreakLock bool
}

func guardKey(imageID string) string { return "guard." + imageID }

// Load reads the guard of an image; backend.ErrNotFound if nobody has it.
func (g *Guards) Load(ctx context.Context, imageID string) (r Record, version backend.Version, err error) {
	version, err = g.Records.Load(ctx, guardKey(imageID), &r)
	return r, version, err
}

// Release makes the image free. That somebody took over meanwhile is no error: they hold
// what is given up.
func (g *Guards) Release(ctx context.Context, imageID string, version backend.Version) error {
	err := g.Records.Delete(ctx, guardKey(imageID), version)
	if errors.Is(err, backend.ErrConflict) || errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	return err
}

// Held is a guard that this node holds, with the image open so that the control client is
// among its watchers for as long.
type Held struct {
	backend.Handle
	Record  Record
	Adopted bool // the guard was ours already and a mapping stands under it

	version backend.Version
	guards  *Guards
}

// SetState moves the guard to a state in which these clients act; backend.ErrConflict if another
// node has it by now.
func (h *Held) SetState(ctx context.Context, state State, addrs ...string) error {
	next := h.Record
	next.State, next.Addrs = state, addrs
	version, err := h.guards.Records.CompareAndSwap(ctx, guardKey(h.Image().ID), h.version, next)
	if err != nil {
		return err
	}
	h.Record, h.version = next, version
	return nil
}

// Release makes the image free; see Guards.Release.
func (h *Held) Release(ctx context.Context) error {
	return h.guards.Release(ctx, h.Image().ID, h.version)
}

// Undo is Release after what may have been an error, whose request may have ended.
func (h *Held) Undo(ctx context.Context, err error) error {
	ctx, cancel := backend.CleanupContext(ctx)
	defer cancel()
	return backend.Also(err, "give the guard back", h.Release(ctx))
}

// isOwn: the kernel here has a mapping of the image that the guard authorizes, whatever this
// node and its address are called by now; or, of what is not mapped, it has this node's name
// and an address of this host. Cloned machines share names and machine-ids; two live hosts
// never share an address.
func (g *Guards) isOwn(ctx context.Context, imageID string, r Record) (bool, error) {
	if named, err := g.isNamed(r); err != nil || named || len(r.Addrs) == 0 {
		return named, err
	}
	mapped, err := g.Local.Mappings(ctx)
	return slices.ContainsFunc(mapped, func(m backend.Mapping) bool { return m.ID == imageID && r.Authorizes(m) }), err
}

// isNamed tells whether a guard has this node's name and an address of this host.
func (g *Guards) isNamed(r Record) (bool, error) {
	if r.Node != g.Node.Name {
		return false, nil
	}
	hosts, err := g.Node.Hosts()
	if err != nil {
		return false, fmt.Errorf("addresses of this host: %w", err)
	}
	if len(r.Addrs) == 0 {
		return false, nil
	}
	for _, addr := range r.Addrs {
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

// CloseHandle closes an image though the request may have ended; an error is logged.
func CloseHandle(ctx context.Context, log logrus.FieldLogger, h backend.Handle) {
	ctx, cancel := backend.CleanupContext(ctx)
	defer cancel()
	if err := h.Close(ctx); err != nil {
		log.WithField("volume", h.Image().Name).Warnf("close the image: %v", err)
	}
}
