package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

var _ backend.Records = (*Pool)(nil)

// maxRecord is many times the size of a record, and that of a list of some 400 nodes.
const maxRecord = 64 << 10

// Load reads a record; see backend.Records.
func (p *Pool) Load(ctx context.Context, key string, into any) (backend.Version, error) {
	var (
		data    []byte
		version uint64
	)
	err := p.do(ctx, "read "+prefix+key, reads, func(_ *client, ioctx *rados.IOContext) error {
		buf := make([]byte, maxRecord)
		n, err := ioctx.Read(prefix+key, buf, 0)
		if err != nil {
			return err
		}
		data = buf[:n]
		version, err = ioctx.GetLastVersion()
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return 0, fmt.Errorf("object %s%s cannot be understood and is not touched: %w; look at it with rados get, "+
			"and rados rm it only if no node uses the image", prefix, key, err)
	}
	return backend.Version(version), nil
}

// CompareAndSwap replaces a record; see backend.Records.
func (p *Pool) CompareAndSwap(ctx context.Context, key string, old backend.Version, value any) (backend.Version, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, err
	}
	return p.write(ctx, key, old, func(op *rados.WriteOp) { op.WriteFull(data) })
}

// Delete removes a record; see backend.Records.
func (p *Pool) Delete(ctx context.Context, key string, old backend.Version) error {
	if old == 0 {
		return fmt.Errorf("remove %s%s: %w", prefix, key, backend.ErrNotFound)
	}
	_, err := p.write(ctx, key, old, func(op *rados.WriteOp) { op.Remove() })
	return err
}

// List lists records; see backend.Records.
func (p *Pool) List(ctx context.Context, begin string) (keys []string, err error) {
	err = p.do(ctx, "list objects "+prefix+begin+"*", reads, func(_ *client, ioctx *rados.IOContext) error {
		all, err := ioctx.Iter()
		if err != nil {
			return err
		}
		defer all.Close()
		for ctx.Err() == nil && all.Next() {
			if key, ours := strings.CutPrefix(all.Value(), prefix); ours && strings.HasPrefix(key, begin) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		return all.Err()
	})
	if err != nil {
		return nil, err // a call left alone may still write to keys
	}
	return keys, nil
}

// write changes an object in one operation that fails unless the object has
// the version that was read. A stale version gets ERANGE, an object that has
// gone EOVERFLOW or ENOENT, one that has come EEXIST (seen with 16.2).
func (p *Pool) write(ctx context.Context, key string, old backend.Version, change func(*rados.WriteOp)) (backend.Version, error) {
	var version uint64
	err := p.do(ctx, "write "+prefix+key, changes, func(_ *client, ioctx *rados.IOContext) error {
		op := rados.CreateWriteOp()
		defer op.Release()
		if old == 0 {
			op.Create(rados.CreateExclusive)
		} else {
			op.AssertVersion(uint64(old))
			op.AssertExists()
		}
		change(op)
		err := op.Operate(ioctx, prefix+key, rados.OperationNoFlag)
		if err == nil {
			version, err = ioctx.GetLastVersion()
		}
		return err
	})
	switch number := errno(err); {
	case number == syscall.ERANGE, number == syscall.EOVERFLOW:
		return 0, fmt.Errorf("write %s%s: %w (%w)", prefix, key, backend.ErrConflict, number)
	case errors.Is(err, backend.ErrNotFound), errors.Is(err, backend.ErrExists):
		return 0, fmt.Errorf("%w (%w)", backend.ErrConflict, err)
	case err != nil:
		return 0, err
	}
	return backend.Version(version), nil
}
