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

// Used sums up the objects; see driver.Handle.
func (h *handle) Used(ctx context.Context) (used uint64, known bool, err error) {
	type sum struct {
		used  uint64
		known bool
	}
	is, err := answer(ctx, h, "measure image", func() (s sum, err error) {
		if s.known, err = h.accounted(); err == nil && s.known {
			s.used, err = h.written(0, h.image.Size)
		}
		return s, err
	})
	return is.used, is.known, err
}

// Empty looks at all of an image, or at its ends; see driver.Handle.
func (h *handle) Empty(ctx context.Context) (empty, sure bool, err error) {
	type look struct{ empty, sure bool }
	is, err := answer(ctx, h, "look whether the image is empty", func() (l look, err error) {
		info, err := h.img.Stat()
		if err != nil {
			return l, err
		}
		if l.sure, err = h.accounted(); err != nil {
			return l, err
		}
		end := ends * info.Obj_size
		l.sure = l.sure || h.image.Size <= 2*end
		if l.sure {
			end = h.image.Size
		}
		used, err := h.written(0, end)
		if err == nil && used == 0 && !l.sure {
			begin := (h.image.Size - end) / info.Obj_size * info.Obj_size
			used, err = h.written(begin, h.image.Size-begin)
		}
		l.empty = used == 0
		return l, err
	})
	return is.empty, is.sure, err
}

// answer is what a call on the image returns; a call that is left alone may still write to
// what it returns to, so that is its own.
func answer[T any](ctx context.Context, h *handle, what string, fn func() (T, error)) (T, error) {
	answered := make(chan T, 1)
	err := h.call(ctx, what, reads, func() error {
		is, err := fn()
		answered <- is
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-answered, nil
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
