//go:build sabotage

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
	"github.com/docker-volume-rbd/docker-volume-rbd/rbd"
)

// takeOut takes one mend out: the plugin does what it did before there was that. The
// random mix of test/integration must find it.
func takeOut(mend string, c *driver.Config, p *rbd.Pool, cfg rbd.Config) error {
	raw, err := openRaw(cfg)
	if err != nil {
		return err
	}
	images := map[string]backend.Images{
		"outage":   &touchy{Pool: p},
		"create":   eager{p, raw},
		"identity": nameless{p, c.Mapper},
		"copy":     changed{p, whole},
		"restored": greedy{p, raw},
		"complete": changed{p, incomplete},
	}[mend]
	if images == nil {
		return fmt.Errorf("SABOTAGE=%q: there is nothing of this name to take out", mend)
	}
	c.Images = images
	return nil
}

// openRaw opens the pool as the plugin's user, for as long as the process lives.
func openRaw(cfg rbd.Config) (*rados.IOContext, error) {
	conn, err := rbd.Connect(cfg, map[string]string{"admin_socket": ""})
	if err != nil {
		return nil, err
	}
	ioctx, err := conn.OpenIOContext(cfg.Pool)
	if err != nil {
		return nil, err
	}
	ioctx.SetNamespace(cfg.Namespace)
	return ioctx, nil
}

// touchy takes one image that cannot be opened for a Ceph that is away, until it can.
type touchy struct {
	*rbd.Pool
	bad atomic.Pointer[string]
}

func (t *touchy) Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error) {
	h, err := t.Pool.Open(ctx, name, mode)
	if errors.Is(err, backend.ErrUnusable) {
		t.bad.Store(&name)
		err = fmt.Errorf("%w: %s", backend.ErrUnavailable, err.Error())
	}
	return h, err
}

func (t *touchy) Ping(ctx context.Context) error {
	bad := t.bad.Load()
	if bad == nil {
		return t.Pool.Ping(ctx)
	}
	h, err := t.Open(ctx, *bad, backend.ReadOnly)
	if err == nil {
		err = h.Close(ctx)
	}
	return err
}

// eager takes a name without the object rbd_id.NAME for remains of a killed create.
type eager struct {
	*rbd.Pool
	raw *rados.IOContext
}

func (e eager) lost(name string) bool {
	_, err := e.raw.Stat("rbd_id." + name)
	return errors.Is(err, rados.ErrNotFound)
}

func (e eager) Exists(ctx context.Context, name string) (bool, error) {
	if e.lost(name) {
		return false, nil
	}
	return e.Pool.Exists(ctx, name)
}

func (e eager) Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error) {
	if e.lost(name) {
		return nil, backend.ErrNoVolume
	}
	return e.Pool.Open(ctx, name, mode)
}

func (e eager) Create(ctx context.Context, spec backend.ImageSpec) error {
	if e.lost(spec.Name) {
		_ = librbd.RemoveImage(e.raw, spec.Name)
	}
	return e.Pool.Create(ctx, spec)
}

// nameless takes what is mapped under a name for the image of that name.
type nameless struct {
	*rbd.Pool
	mapper backend.Mapper
}

func (n nameless) ID(ctx context.Context, name string) (string, error) {
	all, _ := n.mapper.Mappings(ctx)
	if at := slices.IndexFunc(all, func(m backend.Mapping) bool { return m.Name == name }); at >= 0 {
		return all[at].ID, nil
	}
	return n.Pool.ID(ctx, name)
}

// greedy deletes all in the trash that was ever removed by a plugin.
type greedy struct {
	*rbd.Pool
	raw *rados.IOContext
}

func (g greedy) Purge(ctx context.Context) ([]string, error) {
	names, err := g.Pool.Purge(ctx)
	trash, _ := librbd.GetTrashList(g.raw)
	for _, e := range trash {
		if !e.DefermentEndTime.After(e.DeletionTime) || time.Now().Before(e.DefermentEndTime) {
			continue
		}
		img, err := librbd.OpenImageByIdReadOnly(g.raw, e.Id, librbd.NoSnapshot)
		if err != nil {
			continue
		}
		_, unmarked := img.GetMetadata("docker_volume.removed")
		_ = img.Close()
		if unmarked == nil {
			_ = librbd.TrashRemove(g.raw, e.Id, true)
		}
	}
	return names, err
}

// changed has other handles.
type changed struct {
	*rbd.Pool
	handle func(backend.Handle) backend.Handle
}

func (c changed) Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error) {
	h, err := c.Pool.Open(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	return c.handle(h), nil
}

// credulous takes every image for whole.
type credulous struct{ backend.Handle }

func whole(h backend.Handle) backend.Handle { return credulous{h} }

func (credulous) Whole(context.Context) (bool, error) { return true, nil }

// forgotten has no note that it is complete, and so believes a promise that comes back
// after it was kept.
type forgotten struct{ backend.Handle }

func incomplete(h backend.Handle) backend.Handle { return forgotten{h} }

func (f forgotten) Meta(ctx context.Context) (map[string]string, error) {
	meta, err := f.Handle.Meta(ctx)
	delete(meta, "complete")
	return meta, err
}
