package krbd

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Beside is another mapper on a node where the kernel's client may be in use
// still, as the setting was changed while containers ran: what the kernel has
// mapped stays with it until the last unmount.
type Beside struct {
	backend.Mapper
	Kernel *Mapper
}

// of chooses who has a mapping, or would have it.
func (b Beside) of(ctx context.Context, key string) (backend.Mapper, error) {
	all, err := b.kernels(ctx)
	if slices.ContainsFunc(all, func(m backend.Mapping) bool { return m.Key() == key }) {
		return b.Kernel, nil
	}
	return b.Mapper, err
}

// kernels are the kernel's. The module may be unloaded when there are none.
func (b Beside) kernels(ctx context.Context) ([]backend.Mapping, error) {
	all, err := b.Kernel.Mappings(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// Map is that of the mapper which has the image already; see backend.Mapper.
func (b Beside) Map(ctx context.Context, image backend.Image, mode backend.OpenMode) (backend.Mapping, error) {
	m, err := b.of(ctx, image.Key())
	if err != nil {
		return backend.Mapping{}, err
	}
	return m.Map(ctx, image, mode)
}

// Unmap takes a device away; see backend.Mapper.
func (b Beside) Unmap(ctx context.Context, key string) error {
	m, err := b.of(ctx, key)
	if err != nil {
		return err
	}
	return m.Unmap(ctx, key)
}

// ForceUnmap takes a device away by force; see backend.Mapper.
func (b Beside) ForceUnmap(ctx context.Context, key string) error {
	m, err := b.of(ctx, key)
	if err != nil {
		return err
	}
	return m.ForceUnmap(ctx, key)
}

// Mappings lists those of both; see backend.Mapper.
func (b Beside) Mappings(ctx context.Context) ([]backend.Mapping, error) {
	kernels, err := b.kernels(ctx)
	if err != nil {
		return nil, err
	}
	others, err := b.Mapper.Mappings(ctx)
	return slices.Concat(kernels, others), err
}

// Size is that of the mapper which has the device; see backend.Mapper.
func (b Beside) Size(ctx context.Context, found backend.Mapping) (uint64, error) {
	m, err := b.of(ctx, found.Key())
	if err != nil {
		return 0, err
	}
	return m.Size(ctx, found)
}
