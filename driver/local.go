package driver

import (
	"context"
	"fmt"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/guard"
)

// localState answers what the guards ask about this node; see guard.Local.
type localState struct{ *Driver }

// Mappings are those of this node.
func (l localState) Mappings(ctx context.Context) ([]backend.Mapping, error) { return l.mappings(ctx) }

// IsMounted tells whether a volume is mounted on this node.
func (l localState) IsMounted(ctx context.Context, volume string) (bool, error) {
	_, mounted, err := l.mounted(ctx, volume)
	return mounted, err
}

// Adopt tells whether to continue with what this node has mapped under the
// guard. A mapping that is not under it is dropped: an orphan of a killed plugin
// that came up late, or one of ours that another node fenced, and gave the guard
// back, since we looked.
func (l localState) Adopt(ctx context.Context, image backend.Image, held guard.Record) (bool, error) {
	all, err := l.Mappings(ctx)
	if err != nil {
		return false, err
	}
	if err := l.alone(image, all); err != nil {
		return false, err
	}
	for _, m := range all {
		switch {
		case m.ID != image.ID:
		case m.Name != image.Name:
			return false, fmt.Errorf("%w: the image is mapped here as %s, its name of before; stop what uses that", backend.ErrInUse, m.Name)
		case m.Mode == backend.ReadOnly:
			return false, fmt.Errorf("%w: it is mounted read-only on this node (%s); stop the containers that use it", backend.ErrInUse, l.node.Name)
		case !held.Authorizes(m):
			return false, l.forceUnmap(ctx, m)
		default:
			return true, nil
		}
	}
	// A kernel may be at it still, for a request that has ended: what it makes
	// would be a stranger to us.
	return false, l.mapper.Unmap(ctx, image.ID)
}
