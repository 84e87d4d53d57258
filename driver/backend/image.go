package backend

import (
	"context"
	"time"
)

// Handle is an open image.
type Handle interface {
	// Image is the image as it was when it was opened, or EnableExclusiveLock left it.
	Image() Image
	// ClientAddr is the address ("ip:0/nonce") of the control client that opened it.
	ClientAddr() string
	// Whole tells whether the making of the image came to its end. An image whose
	// making was cut short lacks what the kernel needs to map it, or is a clone
	// that its parent does not know, and is lost with the parent's snapshot.
	Whole(ctx context.Context) (bool, error)
	// Watchers are the addresses of all who have the image open read-write or
	// mapped; asked afresh at each call. Ceph drops a watcher 30 s after its
	// last sign of life, and at once when it is fenced.
	Watchers(ctx context.Context) ([]string, error)
	// Managers are the addresses of Ceph's manager, which may be among the watchers
	// while it flattens the image: it takes Ceph's exclusive lock for that, and gives
	// it to whoever wants to write. None if this client may not ask.
	Managers(ctx context.Context) ([]string, error)
	// DiskUsage is the space the image takes in the pool, in bytes, in whole objects; not
	// known if Ceph keeps no valid account of it (feature fast-diff), and each object
	// would have to be asked for.
	DiskUsage(ctx context.Context) (used uint64, known bool, err error)
	// Empty tells whether nothing was ever written to the image. Not sure: its beginning
	// and its end were looked at, where whatever a disk holds has something, and each
	// object between them would have to be asked for.
	Empty(ctx context.Context) (empty, sure bool, err error)
	// Meta is the volume's own metadata, asked afresh at each call: what was
	// read before the guard was ours may be out of date.
	Meta(ctx context.Context) (map[string]string, error)
	// SetMeta sets the given keys of the metadata and leaves the others. All are set or
	// none, but of an image with a journal (feature journaling), which has each written by itself.
	SetMeta(ctx context.Context, meta map[string]string) error
	// BreakLock takes Ceph's exclusive lock of the image from its owner, if that
	// has been fenced. The next writer does it else, by fencing it once more,
	// which takes the monitors another second.
	BreakLock(ctx context.Context) error
	// EnableExclusiveLock gives the image the feature exclusive-lock, which images of
	// other makers may lack.
	EnableExclusiveLock(ctx context.Context) error
	// Resize makes the image larger; ErrInvalid if it would be smaller.
	Resize(ctx context.Context, size uint64) error
	// Encrypt writes the header of an encrypted image. What was on the image is lost.
	Encrypt(ctx context.Context, e Encryption) error
	// Layout is how the image lies on the cluster.
	Layout(ctx context.Context) (Layout, error)
	// Snapshots lists the snapshots, the oldest first.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// CreateSnapshot makes a snapshot. ErrExists if there is one of this name.
	CreateSnapshot(ctx context.Context, name string) error
	// RemoveSnapshot removes a snapshot; ErrNotFound if there is none. Clones of it stay.
	RemoveSnapshot(ctx context.Context, name string) error
	// Rollback gives the image the content of a snapshot, and takes as long as it
	// is large. Whether anybody uses the image is for the caller to know.
	Rollback(ctx context.Context, name string) error
	// Clones names the images, "pool/namespace/name", that are clones of this one.
	Clones(ctx context.Context) ([]string, error)
	// Depth counts the ancestors of a clone.
	Depth(ctx context.Context) (int, error)
	// Flatten has the manager copy to a clone, in the background, what it still
	// shares with its parent.
	Flatten(ctx context.Context) error
	// Remove makes the name free again at once, closes the handle, and keeps the
	// image in Ceph's trash for this long; 0 = its data is deleted at once, or
	// when no clone needs it any more. It is done by the handle's own client, so
	// that a fence of that client is a fence of the removal, however late.
	// ErrNotFound if the image is no longer there under its name, ErrBusy if it
	// has snapshots. Whether anybody uses the image is for the caller to know.
	Remove(ctx context.Context, keep time.Duration) error
	// Close takes the watcher back. It may be called twice.
	Close(ctx context.Context) error
}
