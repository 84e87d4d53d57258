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

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// prefix marks what is ours: keys of the images' metadata, and objects.
const prefix = "docker_volume."

var _ backend.Images = (*Pool)(nil)

// Ping looks for the list of images, which a pool without images has not; see backend.Images.
func (p *Pool) Ping(ctx context.Context) error {
	err := p.do(ctx, "ask ceph", reads, func(_ *client, ioctx *rados.IOContext) error {
		_, err := ioctx.Stat("rbd_directory")
		return err
	})
	if errors.Is(err, backend.ErrNotFound) {
		return nil
	}
	return err
}

// Create makes an image; see backend.Images.
func (p *Pool) Create(ctx context.Context, spec backend.ImageSpec) error {
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
		if spec.Parent != nil {
			create = func() error { return p.clone(c, ioctx, spec, opts) }
		}
		err = create()
		if errno(err) != syscall.EEXIST {
			return err
		}
		// The name may be all that there is: librbd takes it first.
		if again := p.takeOver(c, ioctx, spec); again != nil {
			return again
		}
		return create()
	})
}

// takeOver makes a name free that is taken and has no image; EEXIST if it has one. One
// that is just being made is given the time to be whole.
func (p *Pool) takeOver(c *client, ioctx *rados.IOContext, spec backend.ImageSpec) error {
	var err error
	for range 10 {
		err = p.openable(c, ioctx, spec.Name)
		if !errors.Is(err, backend.ErrNoVolume) {
			return cmp.Or(err, rbd.ErrExist)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if spec.DataPool == "" {
		return p.free(ioctx, spec.Name)
	}
	data, err := p.dataPool(c, spec.DataPool)
	if err != nil {
		return err
	}
	defer data.Destroy()
	return p.free(ioctx, spec.Name, data)
}

// mayUse makes sure of a pool for data: librbd makes an image there without asking, and
// then nobody could write to it (16.2).
func (p *Pool) mayUse(c *client, dataPool string) error {
	if dataPool == "" {
		return nil
	}
	ioctx, err := p.dataPool(c, dataPool)
	if errno(err) == syscall.ENOENT {
		return fmt.Errorf("%w option data-pool=%q: there is no such pool", backend.ErrInvalid, dataPool)
	}
	if err != nil {
		return err
	}
	defer ioctx.Destroy()
	if _, err := ioctx.Stat(prefix + "none"); errno(err) == syscall.EPERM || errno(err) == syscall.EACCES {
		return fmt.Errorf("%w option data-pool=%q: the user %s may not use that pool; the README tells the cap", backend.ErrInvalid, dataPool, p.cfg.User)
	}
	return nil
}

func (p *Pool) dataPool(c *client, name string) (*rados.IOContext, error) {
	ioctx, err := c.conn.OpenIOContext(name)
	if err == nil {
		ioctx.SetNamespace(p.cfg.Namespace)
	}
	return ioctx, err
}

func imageOptions(spec backend.ImageSpec) (*rbd.ImageOptions, error) {
	opts := rbd.NewRbdImageOptions()
	features := rbd.FeatureSetFromNames(spec.Features)
	numbers := map[rbd.ImageOption]uint64{rbd.ImageOptionFeatures: uint64(features)}
	if spec.ObjectSize != 0 {
		numbers[rbd.ImageOptionOrder] = uint64(bits.TrailingZeros64(spec.ObjectSize))
	}
	if spec.StripeCount != 0 {
		numbers[rbd.ImageOptionStripeUnit], numbers[rbd.ImageOptionStripeCount] = spec.StripeUnit, spec.StripeCount
	}
	if spec.Parent != nil {
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
func (p *Pool) clone(c *client, ioctx *rados.IOContext, spec backend.ImageSpec, opts *rbd.ImageOptions) error {
	parent, err := p.Beside(spec.Parent.PoolSpec).ioctx(c)
	if err != nil {
		return err
	}
	defer parent.Destroy()
	img, err := rbd.OpenImageByIdReadOnly(parent, spec.Parent.ID, rbd.NoSnapshot)
	if errno(err) == syscall.ENOENT {
		if there, lookErr := exists(parent, headerObject(spec.Parent.ID)); lookErr != nil || there {
			return cmp.Or(lookErr, fmt.Errorf("%w: image %s/%s, which is to be cloned, is there, but librbd does not find all of it; try rbd info %[2]s/%[3]s",
				backend.ErrUnusable, spec.Parent.PoolSpec, spec.Parent.Image))
		}
		return fmt.Errorf("%w: image %s/%s, which is to be cloned, is gone", backend.ErrInvalid, spec.Parent.PoolSpec, spec.Parent.Image)
	}
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }()
	if id, err := img.GetSnapID(spec.Parent.Snap); err != nil || id != spec.Parent.SnapID {
		return fmt.Errorf("%w: snapshot %s of %s/%s, which is to be cloned, is gone", backend.ErrInvalid, spec.Parent.Snap, spec.Parent.PoolSpec, spec.Parent.Image)
	}
	return rbd.CloneImage(parent, spec.Parent.Image, spec.Parent.Snap, ioctx, spec.Name, opts)
}

// openable tells whether librbd opens an image, or has one opened that is whole;
// ErrNoVolume if there is none.
func (p *Pool) openable(c *client, ioctx *rados.IOContext, name string) error {
	return p.found(c, ioctx, name, func() error {
		img, err := rbd.OpenImageReadOnly(ioctx, name, rbd.NoSnapshot)
		if err == nil {
			err = img.Close()
		}
		return err
	})
}

// unopened tells what it means that librbd does not open an image: that Ceph does not
// answer, or that the image cannot be opened as it is. It may be the parent, in a pool
// that this key may not read, that fails.
func (p *Pool) unopened(ioctx *rados.IOContext, name string, err error) error {
	switch errno(err) {
	case 0, syscall.ETIMEDOUT, syscall.ESHUTDOWN, syscall.ENOTCONN, syscall.EINTR:
		return err
	}
	if _, absent := ioctx.Stat(idObject(name)); absent != nil {
		return err
	}
	// Its errno must not be taken for that of a volume that could be opened.
	return fmt.Errorf("%w: librbd does not open it: %s; try rbd info %s/%s as this user", backend.ErrUnusable, err.Error(), p.poolSpec(), name)
}

// Exists looks for the image, and not for its name alone, which a killed create may have
// left; see backend.Images.
func (p *Pool) Exists(ctx context.Context, name string) (exists bool, err error) {
	err = p.do(ctx, "look for image", reads, func(c *client, ioctx *rados.IOContext) error {
		id, err := heldID(ioctx, name)
		if err == nil && id == "" {
			id, err = askText(ioctx, directory, "dir_get_id", name)
		}
		if err != nil || id == "" {
			return cmp.Or(err, rbd.ErrNotFound)
		}
		return p.openable(c, ioctx, name)
	})
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// ID reads the object that librbd keeps under an image's name, or puts it back; see
// backend.Images.
func (p *Pool) ID(ctx context.Context, name string) (id string, err error) {
	err = p.do(ctx, "id of image", reads, func(c *client, ioctx *rados.IOContext) (err error) {
		if id, err = heldID(ioctx, name); err != nil || id != "" {
			return err
		}
		if err = p.mend(c, ioctx, name); err == nil {
			id, err = heldID(ioctx, name)
		}
		if err == nil && id == "" {
			err = errChanging
		}
		return err
	})
	if err != nil {
		return "", err // a call left alone may still write to id
	}
	return id, nil
}

// HasID looks for the object that each image has under its id, to its last day
// in the trash; see backend.Images.
func (p *Pool) HasID(ctx context.Context, id string) (bool, error) {
	err := p.do(ctx, "look for image id "+id, reads, func(_ *client, ioctx *rados.IOContext) error {
		_, err := ioctx.Stat(headerObject(id))
		return err
	})
	if errors.Is(err, backend.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Names lists the images of the pool; see backend.Images.
func (p *Pool) Names(ctx context.Context) (names []string, err error) {
	err = p.do(ctx, "list images", reads, func(_ *client, ioctx *rados.IOContext) error {
		all, err := rbd.GetImageNames(ioctx)
		names = slices.DeleteFunc(all, func(n string) bool { return !backend.ValidName(n) })
		slices.Sort(names)
		return err
	})
	if err != nil {
		return nil, err // a call left alone may still write to names
	}
	return names, nil
}
