package driver

import (
	"context"
	"time"
)

// Images is one pool (and namespace) of a Ceph cluster. Every method returns
// ErrUnavailable, and within its context's deadline, when Ceph does not answer.
type Images interface {
	// Ping asks Ceph something that is about no image. An error means that Ceph is
	// away: no monitor or OSD answers, the key is refused, the pool is gone.
	Ping(ctx context.Context) error
	// Create makes an image. ErrExists if the name is taken; the image there is
	// not touched. ErrInvalid if it can never be made as it is asked for. A clone
	// bears the metadata of its parent.
	Create(ctx context.Context, spec ImageSpec) error
	// Exists tells whether the name is taken; much faster than to open in vain.
	Exists(ctx context.Context, name string) (bool, error)
	// ID is the id of the image that has the name now; ErrNotFound if there is none.
	// It takes one question, and is no look at the image.
	ID(ctx context.Context, name string) (string, error)
	// HasID tells whether there is an image of this id, be it in the trash.
	HasID(ctx context.Context, id string) (bool, error)
	// Open opens an image; ErrNoVolume if there is none, ErrUnusable if there is one
	// that cannot be opened as it is. Opened read-write the image has this node's
	// control client among its watchers until Close.
	Open(ctx context.Context, name string, mode OpenMode) (Handle, error)
	// OpenApart opens an image read-write with a client of its own, which ends with
	// Close: for what is to go on whatever becomes of the control client.
	OpenApart(ctx context.Context, name string) (Handle, error)
	// Names lists the images that can be volumes, sorted.
	Names(ctx context.Context) ([]string, error)
	// Purge has those images in the trash deleted whose time there is up, and
	// returns their former names. One that clones still need stays, and the
	// manager is told to make them independent of it. What somebody put there
	// without a time is not touched.
	Purge(ctx context.Context) ([]string, error)
}

// OpenMode tells a look from an intent to change.
type OpenMode bool

// The two ways to open an image.
const (
	ReadOnly  OpenMode = false
	ReadWrite OpenMode = true
)

// Handle is an open image.
type Handle interface {
	// Image is the image as it was when it was opened, or EnableLock left it.
	Image() Image
	// Client is the address ("ip:0/nonce") of the control client that opened it.
	Client() string
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
	// Used is the space the image takes in the pool, in bytes, in whole objects; not
	// known if Ceph keeps no valid account of it (feature fast-diff), and each object
	// would have to be asked for.
	Used(ctx context.Context) (used uint64, known bool, err error)
	// Empty tells whether nothing was ever written to the image. Not sure: its beginning
	// and its end were looked at, where whatever a disk holds has something, and each
	// object between them would have to be asked for.
	Empty(ctx context.Context) (empty, sure bool, err error)
	// Meta is the volume's own metadata, asked afresh at each call: what was
	// read before the guard was ours may be out of date.
	Meta(ctx context.Context) (map[string]string, error)
	// SetMeta sets the given keys of the metadata and leaves the others.
	SetMeta(ctx context.Context, meta map[string]string) error
	// Unlock takes Ceph's exclusive lock of the image from its owner, if that
	// has been fenced. The next writer does it else, by fencing it once more,
	// which takes the monitors another second.
	Unlock(ctx context.Context) error
	// EnableLock gives the image the feature exclusive-lock, which images of
	// other makers may lack.
	EnableLock(ctx context.Context) error
	// Resize makes the image larger; ErrInvalid if it would be smaller.
	Resize(ctx context.Context, size uint64) error
	// Encrypt writes the header of an encrypted image. What was on the image is lost.
	Encrypt(ctx context.Context, e Encryption) error
	// Layout is how the image lies on the cluster.
	Layout(ctx context.Context) (Layout, error)
	// Snapshots lists the snapshots, the oldest first.
	Snapshots(ctx context.Context) ([]Snapshot, error)
	// Snap makes a snapshot. ErrExists if there is one of this name.
	Snap(ctx context.Context, name string) error
	// Unsnap removes a snapshot; ErrNotFound if there is none. Clones of it stay.
	Unsnap(ctx context.Context, name string) error
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

// Records keeps small JSON records beside the images. Every change is one
// atomic compare-and-swap, wherever it comes from and however late it arrives.
type Records interface {
	// Load reads a record and returns its version; ErrNotFound if there is none.
	Load(ctx context.Context, key string, into any) (Version, error)
	// Swap replaces the record of the given version; version 0 means that there
	// must be none. ErrLost if somebody was faster.
	Swap(ctx context.Context, key string, old Version, value any) (Version, error)
	// Delete takes the record of the given version away; ErrLost as for Swap.
	Delete(ctx context.Context, key string, old Version) error
	// Keys lists the records whose key begins like this. It goes through all
	// objects of the pool, thousands a second: nothing to wait for.
	Keys(ctx context.Context, prefix string) ([]string, error)
}

// Version is the version of a record; 0 = there is none. A record that is
// deleted and made again does not get an old version again.
type Version uint64

// Fences bars clients from the cluster.
type Fences interface {
	// Fence bars the clients of these addresses for years and returns when no
	// OSD that the new map reaches will accept a write of theirs. Fencing twice
	// is no error.
	Fence(ctx context.Context, addrs ...string) error
	// Fenced tells which of the addresses are barred now.
	Fenced(ctx context.Context, addrs ...string) (map[string]bool, error)
}

// Mapping is an image that is a block device of this node.
type Mapping struct {
	Name   string // of the image
	ID     string // of the image
	Snap   string // as Image.Snap
	Device string // for example /dev/rbd0; "" when only a part is left of it
	Addr   string // of the mapping's own Ceph client: what a fence would bar
	Alive  bool   // false = its I/O can only fail; Drop it

	Mode OpenMode // a read-only one is no watcher, and needs no guard
}

// Key is that of the image which is mapped.
func (m Mapping) Key() string { return key(m.ID, m.Snap) }

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
	// Drop takes the mapping away whoever holds it. Unwritten data is lost;
	// after it nothing can be written through it.
	Drop(ctx context.Context, key string) error
	// Mappings lists what is mapped here from this pool.
	Mappings(ctx context.Context) ([]Mapping, error)
	// Size gives the device of a mapping the size that its image has by now, if
	// that is larger, and returns it, in bytes. It asks nobody but the client of
	// the mapping, and does not wait for Ceph.
	Size(ctx context.Context, m Mapping) (uint64, error)
	// Maps tells whether images with these features can be mapped on this node;
	// ErrInvalid, with the cure, if not.
	Maps(features []string) error
}

// Filesystem makes and mounts filesystems on block devices of this node.
type Filesystem interface {
	// Probe names the filesystem on the device. ErrContent, with what there
	// is, if it is none that can be mounted (nothing, a partition table, LUKS)
	// or if the device cannot be read.
	Probe(ctx context.Context, device string) (fstype string, err error)
	// Format makes a filesystem, destroying what was there. fresh promises
	// that nothing was ever written to the device.
	Format(ctx context.Context, device, fstype string, options []string, fresh bool) error
	// Check repairs what can be repaired without a decision; nil if there is
	// nothing to do or the device is mounted already.
	Check(ctx context.Context, device, fstype string) error
	// Mount mounts the device; mounted there already is no error. ErrHidden if
	// the mount does not reach the host, where Docker would look for it.
	Mount(ctx context.Context, m Mount) error
	// Fills tells whether a filesystem, which is not mounted, takes all of its device.
	Fills(ctx context.Context, device, fstype string) (bool, error)
	// Grow makes a mounted filesystem as large as its device.
	Grow(ctx context.Context, m Mount) error
	// Renew gives the filesystem on a device that is not mounted an id of its own,
	// where the kernel would not mount two of one id. Options are those of a mount.
	Renew(ctx context.Context, m Mount) error
	// Freeze writes out all that is under way and holds all writers up until Thaw.
	Freeze(ctx context.Context, path string) error
	// Thaw ends a Freeze; nil if there was none.
	Thaw(ctx context.Context, path string) error
	// Inside is the path of a directory right under a mount; ErrContent if there is
	// none, or if it leads elsewhere.
	Inside(ctx context.Context, path, directory string) (string, error)
	// Space is the size of a mounted filesystem and what is used of it, in bytes.
	Space(ctx context.Context, path string) (size, used uint64, err error)
	// Prepare gives the root of a fresh filesystem its owner and mode, takes
	// lost+found away, and returns when all is on disk.
	Prepare(ctx context.Context, path string, owner Owner) error
	// Unmount unmounts; nil if nothing is mounted there, ErrBusy if in use.
	Unmount(ctx context.Context, path string) error
	// Detach unmounts at once, whoever uses it (umount -l).
	Detach(ctx context.Context, path string) error
	// Mounted lists the mounts right under the directory, by path; Options are
	// those of the mount, without those of the filesystem.
	Mounted(ctx context.Context, dir string) (map[string]Mount, error)
	// Held tells for each of the devices whether somebody on this node has it mounted
	// elsewhere than right under the directory, as a container does. Copies of what is
	// mounted there, in namespaces that have the host's tree, go with it and do not
	// count. It only looks.
	Held(ctx context.Context, dir string, devices []string) (map[string]bool, error)
	// Sound looks, without touching the device, whether a mount can still be
	// written to. ErrContent if errors have made the filesystem read-only or shut
	// it down: no unmount of one of its mounts, but that of all, mends it.
	Sound(ctx context.Context, m Mount) error
	// Reaches tries whether mounts under the directory reach the host;
	// ErrHidden if not.
	Reaches(ctx context.Context, dir string) error
}

// Secrets keeps passphrases.
type Secrets interface {
	// Secret reads the passphrase of this name, "file:NAME", a file of this
	// node, or "ceph:NAME", of the cluster's config-key store. ErrInvalid if there
	// is none, with where it was looked for.
	Secret(ctx context.Context, name string) ([]byte, error)
}

// Mount is one mount: mount -t FSType -o Options Device Path.
type Mount struct {
	Device, Path, FSType, Options string
}

// Owner is what the root of a new filesystem gets; nil = what mkfs made.
type Owner struct {
	UID, GID *uint32
	Mode     *uint32 // permission bits with setuid, setgid and sticky, as chmod takes them
}
