package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver"
)

type handle struct {
	client *Client
	image  *image
	mode   driver.OpenMode
	closed bool
}

func (h *handle) Image() driver.Image { return h.image.Image }
func (h *handle) Client() string      { return h.client.addr }

func (h *handle) Watchers(ctx context.Context) ([]string, error) {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return slices.Sorted(maps.Keys(h.image.watchers)), nil
}

func (h *handle) Used(ctx context.Context) (uint64, error) {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	return uint64(len(h.image.data)), nil
}

func (h *handle) Meta(ctx context.Context) (map[string]string, error) {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return maps.Clone(h.image.meta), nil
}

func (h *handle) SetMeta(ctx context.Context, meta map[string]string) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	maps.Copy(h.image.meta, meta)
	return nil
}

func (h *handle) Unlock(ctx context.Context) error {
	leave, err := h.client.enter(ctx)
	if err == nil {
		leave()
	}
	return err
}

func (h *handle) EnableLock(ctx context.Context) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if !slices.Contains(h.image.Features, driver.FeatureLock) {
		h.image.Features = append(slices.Clone(h.image.Features), driver.FeatureLock)
	}
	return nil
}

func (h *handle) Remove(ctx context.Context) error {
	leave, err := h.client.enter(ctx)
	if err != nil {
		return err
	}
	images := h.client.cluster.images
	gone := images[h.image.Name] != h.image
	if !gone {
		delete(images, h.image.Name)
	}
	leave()
	if gone {
		return fmt.Errorf("remove image: %w", driver.ErrNotFound)
	}
	return h.Close(ctx)
}

func (h *handle) Close(context.Context) error {
	h.client.cluster.mu.Lock()
	defer h.client.cluster.mu.Unlock()
	if h.closed || h.mode == driver.ReadOnly {
		return nil
	}
	h.closed = true
	if h.image.watchers[h.client.addr]--; h.image.watchers[h.client.addr] <= 0 {
		delete(h.image.watchers, h.client.addr)
	}
	return nil
}
