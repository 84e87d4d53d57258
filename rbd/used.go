package rbd

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/ceph/go-ceph/rbd"
)

// ends is how many objects Empty looks at from each end of an image of which Ceph keeps
// no account: with objects of 4 MiB the first and the last GiB. Whatever a disk may hold,
// a filesystem, a partition table, LUKS, LVM, a swap area, has something there.
const ends = 256

// DiskUsage sums up the objects; see backend.Handle.
func (h *handle) DiskUsage(ctx context.Context) (used uint64, known bool, err error) {
	err = h.call(ctx, "measure image", reads, func() (err error) {
		if known, err = h.accounted(); err == nil && known {
			used, err = h.written(0, h.image.Size)
		}
		return err
	})
	if err != nil {
		return 0, false, err // a call left alone may still write to used
	}
	return used, known, nil
}

// Empty looks at all of an image, or at its ends; see backend.Handle.
func (h *handle) Empty(ctx context.Context) (empty, sure bool, err error) {
	err = h.call(ctx, "look whether the image is empty", reads, func() error {
		info, err := h.img.Stat()
		if err != nil {
			return err
		}
		if sure, err = h.accounted(); err != nil {
			return err
		}
		end := ends * info.Obj_size
		if sure = sure || h.image.Size <= 2*end; sure {
			end = h.image.Size
		}
		used, err := h.written(0, end)
		if err == nil && used == 0 && !sure {
			begin := (h.image.Size - end) / info.Obj_size * info.Obj_size
			used, err = h.written(begin, h.image.Size-begin)
		}
		empty = used == 0
		return err
	})
	if err != nil {
		return false, false, err
	}
	return empty, sure, nil
}

// written is how much of a part of the image there is in objects, in bytes.
func (h *handle) written(begin, length uint64) (used uint64, err error) {
	err = h.img.DiffIterate(rbd.DiffIterateConfig{
		Offset: begin, Length: length, WholeObject: rbd.EnableWholeObject, IncludeParent: rbd.IncludeParent,
		Callback: func(_, length uint64, exists int, _ any) int {
			if exists != 0 {
				used += length
			}
			return 0
		},
	})
	return used, err
}

// accounted tells whether Ceph keeps an account of the objects that there are. A map that
// was switched on later, or that a full cluster did not let be written, is marked as
// invalid, and then librbd asks for object after object (librbd/Types.h, RBD_FLAG_*).
func (h *handle) accounted() (bool, error) {
	const head, invalid = ^uint64(1), 1 | 2
	if !slices.Contains(h.image.Features, "fast-diff") {
		return false, nil
	}
	flags, err := ask(h.ioctx, h.header(), "get_flags", binary.LittleEndian.AppendUint64(nil, head))
	if err != nil {
		return false, err
	}
	valid := flags.number(8)&invalid == 0
	return valid && flags.err() == nil, nil
}
