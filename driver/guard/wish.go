package guard

import (
	"context"
	"errors"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// wish is the record of a node that waits for a volume: its holder then lets go of what
// no container has earlier.
type wish struct {
	Node  string    `json:"node"`
	Since time.Time `json:"since"`
}

func wishKey(imageID string) string { return "wish." + imageID }

// Wanted tells whether another node waits for an image.
func (g *Guards) Wanted(ctx context.Context, imageID string) (bool, error) {
	var w wish
	_, err := g.Records.Load(ctx, wishKey(imageID), &w)
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	// A request waits for two minutes. What is older is of a node that died meanwhile.
	return err == nil && w.Node != g.Node.Name && g.Now().Sub(w.Since) < 10*time.Minute, err
}

// want says that this node waits for an image, until done is called. Another that
// waits has said it already, or else it is no more than a later end of the wait.
func (g *Guards) want(ctx context.Context, imageID string) (done func()) {
	version, err := g.Records.CompareAndSwap(ctx, wishKey(imageID), 0, wish{Node: g.Node.Name, Since: g.Now()})
	if err != nil {
		return func() {}
	}
	return func() {
		ctx, cancel := backend.CleanupContext(ctx)
		defer cancel()
		if err := g.Records.Delete(ctx, wishKey(imageID), version); err != nil && !errors.Is(err, backend.ErrConflict) {
			g.Log.Debugf("take back the wish for image id %s: %v", imageID, err)
		}
	}
}
