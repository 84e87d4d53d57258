package rbd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// handle is an open image; see backend.Handle.
type handle struct {
	pool   *Pool
	client *client
	ioctx  *rados.IOContext
	img    *rbd.Image
	image  backend.Image

	calls  sync.WaitGroup
	closed sync.Once
	apart  bool // the pool is this handle's alone
}

// Open opens an image; see backend.Images.
func (p *Pool) Open(ctx context.Context, name string, mode backend.OpenMode) (backend.Handle, error) {
	if err := begins(ctx, "open image"); err != nil {
		return nil, err
	}
	if err := p.images.take(ctx); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	c, err := p.get(ctx)
	if err != nil {
		p.images.free()
		return nil, fmt.Errorf("open image: %w", err)
	}
	h := &handle{pool: p, client: c}
	if err := p.calls.take(ctx); err != nil {
		h.free()
		return nil, fmt.Errorf("open image: %w", err)
	}
	opened := make(chan error, 1)
	err = p.run(ctx, c, "open image", reads, func() error {
		defer p.calls.free()
		err := backend.Survive(func() error { return h.open(name, mode) })
		opened <- err
		return err
	})
	if err != nil {
		go func() { // open may still succeed after the context has ended
			if <-opened == nil {
				_ = h.shut()
			} else {
				h.free()
			}
		}()
		return nil, err
	}
	return h, nil
}

// OpenApart opens an image on a connection of its own; see backend.Images.
func (p *Pool) OpenApart(ctx context.Context, name string) (backend.Handle, error) {
	own := New(p.cfg)
	opened, err := own.Open(ctx, name, backend.ReadWrite)
	if err != nil {
		own.Close()
		return nil, err
	}
	opened.(*handle).apart = true
	return opened, nil
}

func (h *handle) open(name string, mode backend.OpenMode) (err error) {
	if h.ioctx, err = h.pool.ioctx(h.client); err != nil {
		return err
	}
	open := rbd.OpenImageReadOnly
	if mode == backend.ReadWrite {
		open = rbd.OpenImage
	}
	return h.pool.found(h.client, h.ioctx, name, func() error {
		if h.img, err = open(h.ioctx, name, rbd.NoSnapshot); err == nil {
			if h.image, err = describe(h.img, name); err != nil {
				_ = h.img.Close()
			}
		}
		return err
	})
}

func describe(img *rbd.Image, name string) (image backend.Image, err error) {
	image.Name = name
	if image.ID, err = img.GetId(); errno(err) == syscall.EINVAL {
		return image, fmt.Errorf("%w: it is of format 1, from before 2013, and has no id; convert it while nobody uses it, "+
			"with rbd migration prepare, execute and commit", backend.ErrUnusable)
	} else if err != nil {
		return image, err
	}
	if image.Size, err = img.GetSize(); err != nil {
		return image, err
	}
	created, err := img.GetCreateTimestamp()
	if err != nil {
		return image, err
	}
	image.Created = time.Unix(created.Sec, created.Nsec).UTC()
	set, err := img.GetFeatures()
	if err != nil {
		return image, err
	}
	features := rbd.FeatureSet(set)
	image.Features = features.Names()
	image.Parent, err = parentOf(img)
	return image, err
}

// current makes librbd look at the header of an image, and at its parent, if they may have
// changed. It does so before it answers anything else, too, and if it finds the parent no
// more the answer is ENOENT, which must not be taken for that to the question.
func current(img *rbd.Image) error {
	_, err := img.GetSize()
	return err
}

// parentOf names the snapshot that an image is a clone of; nil if it is none.
func parentOf(img *rbd.Image) (*backend.Parent, error) {
	p, err := img.GetParent()
	if errno(err) == syscall.ENOENT {
		return nil, current(img)
	}
	if err != nil {
		return nil, err
	}
	return &backend.Parent{
		PoolSpec: backend.PoolSpec{Pool: p.Image.PoolName, Namespace: p.Image.PoolNamespace},
		Image:    p.Image.ImageName, ID: p.Image.ImageID, Snap: p.Snap.SnapName, SnapID: p.Snap.ID,
	}, nil
}

func (h *handle) Image() backend.Image { return h.image }
func (h *handle) ClientAddr() string   { return h.client.addr }

// call runs fn on the open image, which is not closed before fn has returned.
func (h *handle) call(ctx context.Context, what string, e effect, fn func() error) error {
	if err := begins(ctx, what); err != nil {
		return err
	}
	h.calls.Add(1)
	return h.pool.run(ctx, h.client, what, e, func() error {
		defer h.calls.Done()
		return fn()
	})
}

func (h *handle) Watchers(ctx context.Context) ([]string, error) {
	var addrs []string
	err := h.call(ctx, "list watchers", reads, func() error {
		watchers, err := h.img.ListWatchers()
		for _, w := range watchers {
			addrs = append(addrs, w.Addr)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return addrs, nil
}

// BreakLock breaks the lock itself: librbd's own way would fence the owner.
func (h *handle) BreakLock(ctx context.Context) error {
	return h.call(ctx, "unlock image", changes, func() error {
		owners, err := h.ioctx.ListLockers(h.header(), lockName)
		if err != nil || owners == nil || len(owners.Addrs) == 0 {
			return err
		}
		list, err := readBlocklist(h.client.conn)
		if err != nil {
			return err
		}
		for i, addr := range owners.Addrs {
			addr := strings.TrimPrefix(addr, "v1:") // lockers bear it, watchers and the blocklist do not
			if !slices.ContainsFunc(list, func(e entry) bool { return e.bars(addr) }) {
				if err := h.lockedByHand(owners, i); err != nil {
					return err
				}
				continue
			}
			if _, err := h.ioctx.BreakLock(h.header(), lockName, owners.Clients[i], owners.Cookies[i]); err != nil && errno(err) != syscall.ENOENT {
				return err
			}
		}
		return nil
	})
}

func (h *handle) EnableExclusiveLock(ctx context.Context) error {
	if slices.Contains(h.image.Features, backend.FeatureLock) {
		return nil
	}
	err := h.call(ctx, "enable exclusive-lock", changes, func() error {
		owners, err := h.ioctx.ListLockers(h.header(), lockName)
		if err != nil {
			return err
		}
		for i := range owners.Addrs {
			if err := h.lockedByHand(owners, i); err != nil {
				return err
			}
		}
		return h.img.UpdateFeatures(rbd.FeatureExclusiveLock, true)
	})
	if err == nil {
		h.image.Features = append(h.image.Features, backend.FeatureLock)
	}
	return err
}

// lockName is the lock on an image's header: the one of the feature exclusive-lock
// and that of rbd lock add, so that who writes waits for ever for one of the latter.
const lockName = "rbd_lock"

func (h *handle) header() string { return headerObject(h.image.ID) }

// lockedByHand is an error if a lock is not one that a client of Ceph takes, and
// breaks, by itself: their cookies are "auto" and a number. It may be all that keeps
// somebody from writing, and outlives its maker, who needs not watch the image.
func (h *handle) lockedByHand(owners *rados.LockInfo, i int) error {
	client, cookie := owners.Clients[i], owners.Cookies[i]
	if strings.HasPrefix(cookie, "auto ") {
		return nil
	}
	return fmt.Errorf("%w: the image was locked with rbd lock add, by %s as %q, as yp-engineering's plugin does; "+
		"if what did it does not run any more: rbd lock rm %s '%s' %s", backend.ErrInUse, owners.Addrs[i], cookie, h.spec(), cookie, client)
}

// Close waits for librbd to unregister the watcher, no longer than the context.
func (h *handle) Close(ctx context.Context) (err error) {
	h.closed.Do(func() {
		err = h.pool.run(ctx, h.client, "close image", reads, h.shut)
	})
	return err
}

func (h *handle) shut() error {
	h.calls.Wait()
	err := h.img.Close()
	h.free()
	return err
}

func (h *handle) free() {
	if h.ioctx != nil {
		h.ioctx.Destroy()
	}
	h.pool.put(h.client)
	h.pool.images.free()
	if h.apart {
		h.pool.Close()
	}
}
