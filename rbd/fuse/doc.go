// Package fuse maps images without a kernel client: a child process serves the
// image through librbd as one file of a FUSE filesystem, and a loop device on
// that file is the block device.
//
//	mount --- /dev/loopN --- <dir>/<id>/image-<nonce> --- FUSE --- child --- librbd --- Ceph
//
// It is for kernels without rbd, for trying the plugin out, and for tests: the
// child is a process of the plugin's container, so the data path ends with it.
// What a crash leaves is found again in the kernel:
//
//   - mountinfo: the source of the FUSE mount names image, pool and the child's
//     Ceph address; that is all that [Mapper.Mappings] needs.
//   - a lock on <dir>/<id>.lock: held by the child for as long as it lives, so
//     that nobody has to ask a FUSE filesystem, which may hang, if it works.
//   - the loop device has autoclear: it goes with its last user, so that no
//     crash can leave a stale one. The mapper keeps it open from Map to Unmap,
//     a mount does so afterwards.
//
// Start reading at [Mapper.Map]; the child's half is [Serve].
package fuse
