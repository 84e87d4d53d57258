package rbd_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend/backendtest"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

// Who looks at an image while another makes it, renames it or takes it away sees it, or
// none, or that somebody is at it: never that it is damaged.
func TestAnImageIsLookedAtWhileItChanges(t *testing.T) {
	for name, row := range map[string]struct {
		change func(o *objects)
		looks  []string
	}{
		"made and removed": {func(o *objects) {
			if err := o.create("a"); err != nil && !errors.Is(err, backend.ErrExists) {
				o.t.Error(err)
			}
			h, err := o.pool.Open(o.t.Context(), "a", backend.ReadWrite)
			if err != nil {
				o.t.Fatal(err)
			}
			if err := h.Remove(o.t.Context(), 0); err != nil {
				o.t.Error(err)
			}
		}, []string{"exists", "id", "open", "create"}},
		"renamed, and in the trash": {func(o *objects) {
			if err := o.create("a"); err != nil && !errors.Is(err, backend.ErrExists) {
				o.t.Error(err)
			}
			o.rbd("rename", o.spec("a"), o.spec("b"))
			o.rbd("rename", o.spec("b"), o.spec("a"))
			id := o.id("a")
			o.rbd("trash", "mv", o.spec("a"))
			o.rbd("trash", "restore", "-p", o.cfg.Pool, "--namespace", o.cfg.Namespace, id)
		}, []string{"exists", "id", "open"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObjects(t)
			other := connect(t, o.cfg)
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			for _, what := range row.looks {
				wg.Go(func() {
					for ctx.Err() == nil {
						if err := lookAt(t, other, what); err != nil && !errors.Is(err, backend.ErrNotFound) &&
							!errors.Is(err, backend.ErrExists) && !errors.Is(err, backend.ErrInUse) {
							t.Errorf("%s: %v", what, err)
							return
						}
					}
				})
			}
			for range 20 {
				row.change(o)
			}
			stop()
			wg.Wait()
		})
	}
}

func lookAt(t *testing.T, p *rbd.Pool, what string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	switch what {
	case "exists":
		_, err := p.Exists(ctx, "a")
		return err
	case "id":
		id, err := p.ID(ctx, "a")
		if id == "" && err == nil {
			err = errors.New("neither an id nor an error")
		}
		return err
	case "create":
		return p.Create(ctx, backend.ImageSpec{Name: "a", Size: 16 << 20, Features: backendtest.Features})
	}
	h, err := p.Open(ctx, "a", backend.ReadOnly)
	if err == nil {
		err = h.Close(ctx)
	}
	return err
}
