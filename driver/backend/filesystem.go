package backend

import "context"

// Filesystem makes and mounts filesystems on block devices of this node.
type Filesystem interface {
	// Probe names the filesystem on the device. ErrUnexpectedContent, with what there
	// is, if it is none that can be mounted (nothing, a partition table, LUKS)
	// or if the device cannot be read.
	Probe(ctx context.Context, device string) (fstype string, err error)
	// Format makes a filesystem, destroying what was there. fresh promises
	// that nothing was ever written to the device.
	Format(ctx context.Context, device, fstype string, options []string, fresh bool) error
	// Check repairs what can be repaired without a decision; nil if there is
	// nothing to do or the device is mounted already.
	Check(ctx context.Context, device, fstype string) error
	// Mount mounts the device; mounted there already is no error. ErrNotPropagated if
	// the mount does not reach the host, where Docker would look for it.
	Mount(ctx context.Context, m Mount) error
	// NeedsResize tells whether a filesystem, which is not mounted, takes less than its device.
	NeedsResize(ctx context.Context, device, fstype string) (bool, error)
	// Resize makes a mounted filesystem as large as its device.
	Resize(ctx context.Context, m Mount) error
	// RegenerateUUID gives the filesystem on a device that is not mounted an id of its own,
	// where the kernel would not mount two of one id. Options are those of a mount.
	RegenerateUUID(ctx context.Context, m Mount) error
	// Freeze writes out all that is under way and holds all writers up until Thaw.
	Freeze(ctx context.Context, path string) error
	// Thaw ends a Freeze; nil if there was none.
	Thaw(ctx context.Context, path string) error
	// Subpath is the path of a directory right under a mount; ErrUnexpectedContent if there is
	// none, or if it leads elsewhere.
	Subpath(ctx context.Context, path, directory string) (string, error)
	// Usage is the size of a mounted filesystem and what is used of it, in bytes.
	Usage(ctx context.Context, path string) (size, used uint64, err error)
	// InitRoot gives the root of a fresh filesystem its owner and mode, takes
	// lost+found away, and returns when all is on disk.
	InitRoot(ctx context.Context, path string, owner Owner) error
	// Unmount unmounts; nil if nothing is mounted there, ErrBusy if in use.
	Unmount(ctx context.Context, path string) error
	// LazyUnmount unmounts at once, whoever uses it (umount -l).
	LazyUnmount(ctx context.Context, path string) error
	// Mounted lists the mounts right under the directory, by path; Options are
	// those of the mount, without those of the filesystem.
	Mounted(ctx context.Context, dir string) (map[string]Mount, error)
	// Held tells for each of the devices whether somebody on this node has it mounted
	// elsewhere than right under the directory, as a container does. Copies of what is
	// mounted there, in namespaces that have the host's tree, go with it and do not
	// count. It only looks.
	Held(ctx context.Context, dir string, devices []string) (map[string]bool, error)
	// CheckHealth looks, without touching the device, whether a mount can still be
	// written to. ErrUnexpectedContent if errors have made the filesystem read-only or shut
	// it down: no unmount of one of its mounts, but that of all, mends it.
	CheckHealth(ctx context.Context, m Mount) error
	// CheckPropagation tries whether mounts under the directory reach the host;
	// ErrNotPropagated if not.
	CheckPropagation(ctx context.Context, dir string) error
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
