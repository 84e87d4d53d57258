package backend

import "context"

// Mapping is an image that is a block device of this node.
type Mapping struct {
	Name   string // of the image
	ID     string // of the image
	Snap   string // as Image.Snap
	Device string // for example /dev/rbd0; "" when only a part is left of it
	Addr   string // of the mapping's own Ceph client: what a fence would bar
	Alive  bool   // false = its I/O can only fail; see Mapper.ForceUnmap

	Mode OpenMode // a read-only one is no watcher, and needs no guard
}

// Key is that of the image which is mapped.
func (m Mapping) Key() string { return imageKey(m.ID, m.Snap) }

// Mapper makes block devices of images. What is mapped it reads from the
// kernel each time, so that it survives a restart of the plugin.
type Mapper interface {
	// Map maps the image with a Ceph client of its own, which reads and writes
	// nothing before it has an OSD map no older than the fences of before.
	// Mapped already: the mapping there is. A snapshot is mapped read-only,
	// whatever the mode. After an error nothing is left behind; what a kernel
	// is still at when the context ends, Unmap waits for, or Mappings shows.
	Map(ctx context.Context, image Image, mode OpenMode) (Mapping, error)
	// Unmap flushes and takes the device away; nil if it is not mapped,
	// ErrBusy, with nothing changed, while a mount or a process holds it.
	Unmap(ctx context.Context, key string) error
	// ForceUnmap takes the mapping away whoever holds it. Unwritten data is lost;
	// after it nothing can be written through it.
	ForceUnmap(ctx context.Context, key string) error
	// Mappings lists what is mapped here from this pool.
	Mappings(ctx context.Context) ([]Mapping, error)
	// Size gives the device of a mapping the size that its image has by now, if
	// that is larger, and returns it, in bytes. It asks nobody but the client of
	// the mapping, and does not wait for Ceph.
	Size(ctx context.Context, m Mapping) (uint64, error)
	// Supports tells whether images with these features can be mapped on this node;
	// ErrInvalid, with the cure, if not.
	Supports(features []string) error
}
