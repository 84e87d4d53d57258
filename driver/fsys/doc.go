// Package fsys makes, checks and mounts filesystems: mkfs and blkid where the
// distribution's tools know better, mount(2), umount(2) and mountinfo where a
// system call does it. It implements backend.Filesystem.
//
// Facts it rests on, each with its place in the code: what exit codes of blkid
// and e2fsck mean, that mkfs may trust a device only if it was never written,
// and that a mount in a plugin's container is worth nothing if it does not
// propagate to the mount namespace that Docker starts containers from.
package fsys
