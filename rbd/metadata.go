package rbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// Meta reads the volume's metadata; see backend.Handle.
func (h *handle) Meta(ctx context.Context) (map[string]string, error) {
	meta := map[string]string{}
	err := h.call(ctx, "read metadata", reads, func() error {
		all, err := h.img.ListMetadata()
		if errno(err) == syscall.ERANGE {
			return fmt.Errorf("%w; all of an image's metadata may have 256 KiB: see rbd image-meta list %s, and take away what is not needed", err, h.spec())
		}
		for key, value := range all {
			if key, ours := strings.CutPrefix(key, prefix); ours {
				meta[key] = value
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return meta, nil
}

// SetMeta writes some of it; see backend.Handle.
func (h *handle) SetMeta(ctx context.Context, meta map[string]string) error {
	return h.call(ctx, "write metadata", changes, func() error { return h.setMeta(meta) })
}

// setMeta takes one operation for all of it. librbd has itself the exclusive lock given first,
// key by key, which metadata needs only where a journal records it for a mirror: 7 round trips
// each, and 16.2 was seen to wait for ever for an answer of the lock's owner.
func (h *handle) setMeta(meta map[string]string) error {
	if !slices.Contains(h.image.Features, rbd.FeatureNameJournaling) {
		return setMetadata(h.ioctx, h.image.ID, meta)
	}
	for key, value := range meta {
		if err := h.img.SetMetadata(prefix+key, value); err != nil {
			return err
		}
	}
	return nil
}

// metadata reads one key of an image's; "" if it has none.
func metadata(ioctx *rados.IOContext, id, key string) (string, error) {
	return askText(ioctx, headerObject(id), "metadata_get", prefix+key)
}

// setMetadata sets several keys at once, all or none. What librbd does beside it, that all
// who have the image open read it again, concerns its own keys, conf_*.
func setMetadata(ioctx *rados.IOContext, id string, meta map[string]string) error {
	pairs := binary.LittleEndian.AppendUint32(nil, uint32(len(meta)))
	for key, value := range meta {
		pairs = append(pairs, texts(prefix+key, value)...)
	}
	return tell(ioctx, headerObject(id), "metadata_set", pairs)
}
