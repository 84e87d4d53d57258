package guard

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Sweep takes away the guards of images that are gone, and the notes of their readers: a
// removal died at its very end, or an image was deleted by hand. An id never comes again.
func (g *Guards) Sweep(ctx context.Context) error {
	keys, err := g.Records.List(ctx, "")
	for _, key := range keys {
		kind, id, _ := strings.Cut(key, ".")
		if !slices.Contains([]string{guardKey(""), readersKey(""), wishKey("")}, kind+".") {
			continue
		}
		there, lookErr := g.Images.HasID(ctx, id)
		// Who waits for an image waits for minutes; what it has left there is of a dead one.
		if lookErr == nil && (!there || kind+"." == wishKey("")) {
			lookErr = g.sweepRecord(ctx, key, id)
		}
		err = errors.Join(err, lookErr)
	}
	return err
}

// sweepRecord takes away a record of an image that is gone.
func (g *Guards) sweepRecord(ctx context.Context, key, id string) error {
	var is struct {
		Record
		readerList
	}
	version, err := g.Records.Load(ctx, key, &is)
	if errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = g.Records.Delete(ctx, key, version)
	}
	if errors.Is(err, backend.ErrConflict) || errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	if err == nil && key == guardKey(id) {
		g.Log.Infof("sweep: removed the guard of image id %s, which is gone; node %s had it (%s since %s)",
			id, is.Node, is.State, is.Since.Format(time.RFC3339))
	} else if err == nil && key == readersKey(id) {
		g.Log.Infof("sweep: removed the note of %d readers of image id %s, which is gone", len(is.Readers), id)
	}
	return err
}
