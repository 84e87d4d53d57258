package rbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

// prefix marks what is ours: keys of the images' metadata, and objects.
const prefix = "docker_volume."

var _ driver.Images = (*Pool)(nil)

// Ping looks for the list of images, which a pool without images has not; see driver.Images.
func (p *Pool) Ping(ctx context.Context) error {
	err := p.do(ctx, "ask ceph", reads, func(_ *client, ioctx *rados.IOContext) error {
		_, err := ioctx.Stat("rbd_directory")
		return err
	})
	if errors.Is(err, driver.ErrNotFound) {
		return nil
	}
	return err
}

// Create makes an image; see driver.Images.
func (p *Pool) Create(ctx context.Context, spec driver.ImageSpec) error {
	return p.do(ctx, "create image", changes, func(c *client, ioctx *rados.IOContext) error {
		opts, err := imageOptions(spec)
		if err != nil {
			return err
		}
		defer opts.Destroy()
		if err := p.mayUse(c, spec.DataPool); err != nil {
			return err
		}
		create := func() error { return rbd.CreateImage(ioctx, spec.Name, spec.Size, opts) }
		if spec.From != nil {
			create = func() error { return p.clone(c, ioctx, spec, opts) }
		}
		err = create()
		if errno(err) == syscall.EEXIST && halfMade(ioctx, spec.Name) {
			p.cfg.Log.Warnf("removing what a killed create has left of image %s", spec.Name)
			if err = rbd.RemoveImage(ioctx, spec.Name); err == nil {
				err = create()
			}
		}
		return err
	})
}

// mayUse makes sure of a pool for data: librbd makes an image there without asking, and
// then nobody could write to it (16.2).
func (p *Pool) mayUse(c *client, dataPool string) error {
	if dataPool == "" {
		return nil
	}
	ioctx, err := c.conn.OpenIOContext(dataPool)
	if errno(err) == syscall.ENOENT {
		return fmt.Errorf("%w option data-pool=%q: there is no such pool", driver.ErrInvalid, dataPool)
	}
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	ioctx.SetNamespace(p.cfg.Namespace)
	if _, err := ioctx.Stat(prefix + "none"); errno(err) == syscall.EPERM || errno(err) == syscall.EACCES {
		return fmt.Errorf("%w option data-pool=%q: the user %s may not use that pool; the README tells the cap", driver.ErrInvalid, dataPool, p.cfg.User)
	}
	return nil
}

func imageOptions(spec driver.ImageSpec) (*rbd.ImageOptions, error) {
	opts := rbd.NewRbdImageOptions()
	features := rbd.FeatureSetFromNames(spec.Features)
	numbers := map[rbd.ImageOption]uint64{rbd.ImageOptionFeatures: uint64(features)}
	if spec.ObjectSize != 0 {
		numbers[rbd.ImageOptionOrder] = uint64(bits.TrailingZeros64(spec.ObjectSize))
	}
	if spec.StripeCount != 0 {
		numbers[rbd.ImageOptionStripeUnit], numbers[rbd.ImageOptionStripeCount] = spec.StripeUnit, spec.StripeCount
	}
	if spec.From != nil {
		// Of format 2 the parent's snapshot needs no protection and can be removed at
		// once: Ceph keeps it out of sight as long as there are clones.
		numbers[rbd.ImageOptionCloneFormat] = 2
	}
	var err error
	for option, value := range numbers {
		err = cmp.Or(err, opts.SetUint64(option, value))
	}
	if spec.DataPool != "" {
		err = cmp.Or(err, opts.SetString(rbd.ImageOptionDataPool, spec.DataPool))
	}
	if err != nil {
		opts.Destroy()
	}
	return opts, err
}

// clone makes an image of a snapshot, which may be in another pool.
func (p *Pool) clone(c *client, ioctx *rados.IOContext, spec driver.ImageSpec, opts *rbd.ImageOptions) error {
	parent, err := p.Beside(spec.From.Place).ioctx(c)
	if err != nil {
		return err
	}
	defer parent.Destroy()
	img, err := rbd.OpenImageByIdReadOnly(parent, spec.From.ID, rbd.NoSnapshot)
	if errno(err) == syscall.ENOENT {
		return fmt.Errorf("%w: image %s/%s, which is to be cloned, is gone", driver.ErrInvalid, spec.From.Place, spec.From.Image)
	}
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }()
	if id, err := img.GetSnapID(spec.From.Snap); err != nil || id != spec.From.SnapID {
		return fmt.Errorf("%w: snapshot %s of %s/%s, which is to be cloned, is gone", driver.ErrInvalid, spec.From.Snap, spec.From.Place, spec.From.Image)
	}
	return rbd.CloneImage(parent, spec.From.Image, spec.From.Snap, ioctx, spec.Name, opts)
}

func setMeta(img *rbd.Image, meta map[string]string) error {
	for key, value := range meta {
		if err := img.SetMetadata(prefix+key, value); err != nil {
			return err
		}
	}
	return nil
}

// halfMade tells that a name is taken and has no image: librbd takes the name
// first, and was killed before it had made the rest. One that is just being made
// is given the time to be whole.
func halfMade(ioctx *rados.IOContext, name string) bool {
	for range 10 {
		img, err := rbd.OpenImageReadOnly(ioctx, name, rbd.NoSnapshot)
		if err == nil {
			_ = img.Close()
		}
		if !errors.Is(err, rbd.ErrNotFound) {
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
	return orphan(ioctx, name) == nil
}

// orphan is an error for an image that is there though librbd does not find it: of a
// clone whose parent is gone, with its pool, it says the same as of no image at all
// (librbd, RefreshParentRequest). What it holds is nobody's to delete.
func orphan(ioctx *rados.IOContext, name string) error {
	// The object under the name holds the id behind its length (librbd, cls_rbd: set_id).
	id := make([]byte, 64)
	n, err := ioctx.Read("rbd_id."+name, id, 0)
	if errno(err) == syscall.ENOENT || err == nil && n < 5 {
		return nil
	}
	if err == nil {
		_, err = ioctx.Stat("rbd_header." + string(id[4:n]))
	}
	if errno(err) == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: image %s is there, but librbd does not find all of it; is its data pool gone, or is it a clone whose parent, or the parent's pool, is gone?",
		driver.ErrUnusable, name)
}

// unopened tells what it means that librbd does not open an image: that there is none,
// that Ceph does not answer, or that there is one which cannot be opened as it is. Of
// the latter it may be the parent, in a pool that this key may not read, that fails.
func (p *Pool) unopened(c *client, ioctx *rados.IOContext, name string, err error) error {
	switch errno(err) {
	case syscall.ENOENT:
		if err := cmp.Or(p.remains(c, ioctx), orphan(ioctx, name)); err != nil {
			return err
		}
		return driver.ErrNoVolume
	case 0, syscall.ETIMEDOUT, syscall.ESHUTDOWN, syscall.ENOTCONN, syscall.EINTR:
		return err
	}
	if _, absent := ioctx.Stat("rbd_id." + name); absent != nil {
		return err
	}
	// Its errno must not be taken for that of a volume that could be opened.
	return fmt.Errorf("%w: librbd does not open it: %s; try rbd info %s/%s as this user", driver.ErrUnusable, err.Error(), p.place(), name)
}

// Exists looks for the object that librbd keeps under an image's name, and only
// if it is there for the image, which a killed create may not have made; see
// driver.Images.
func (p *Pool) Exists(ctx context.Context, name string) (exists bool, err error) {
	err = p.do(ctx, "look for image", reads, func(c *client, ioctx *rados.IOContext) error {
		if _, err := ioctx.Stat("rbd_id." + name); err != nil {
			return err
		}
		img, err := rbd.OpenImageReadOnly(ioctx, name, rbd.NoSnapshot)
		if err != nil {
			return p.unopened(c, ioctx, name, err)
		}
		return img.Close()
	})
	if errors.Is(err, driver.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// HasID looks for the object that each image has under its id, to its last day
// in the trash; see driver.Images.
func (p *Pool) HasID(ctx context.Context, id string) (bool, error) {
	err := p.do(ctx, "look for image id "+id, reads, func(_ *client, ioctx *rados.IOContext) error {
		_, err := ioctx.Stat("rbd_header." + id)
		return err
	})
	if errors.Is(err, driver.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Names lists the images of the pool; see driver.Images.
func (p *Pool) Names(ctx context.Context) (names []string, err error) {
	err = p.do(ctx, "list images", reads, func(_ *client, ioctx *rados.IOContext) error {
		all, err := rbd.GetImageNames(ioctx)
		names = slices.DeleteFunc(all, func(n string) bool { return !driver.ValidName(n) })
		slices.Sort(names)
		return err
	})
	if err != nil {
		return nil, err // a call left alone may still write to names
	}
	return names, nil
}
