// Package rbd is the Ceph side of the plugin, through go-ceph: images and
// their metadata, the guard objects, and fencing. It knows what Ceph can do
// and promises; what is to be done is decided in package driver, whose
// interfaces Images, Records, Fences and Secrets the one type here, [Pool], implements.
//
// Where to start: [Pool.do] in calls.go is the way every call takes. librados
// and librbd know no contexts: a call that hangs keeps its thread. So each
// runs in a goroutine of its own, and whoever waits for it leaves when the
// context ends.
//
// A call that would have changed something and was left like that may still
// take effect, at any time. Its client is therefore retired: it serves no
// further call, and since the guard of the volume bears its address, the next
// who takes the guard, this node included, fences it before touching anything.
//
// # Objects in the pool
//
//   - the image itself, made by librbd.
//   - docker_volume.* in the image's metadata (rbd image-meta).
//   - docker_volume.clock, on which an OSD writes its time: when it is up for what is in
//     the trash, Ceph's clock says.
//   - docker_volume.<record>: the guard of an image, and what is pending of a volume,
//     JSON. Every change is one write operation that asserts the version of
//     the object that was read: an atomic compare-and-swap.
//
// # Half made
//
// librbd makes an image of several objects, one after the other, and takes it away so:
// killed in between it leaves some of them. What they are is in traces.go, and what is
// done about them. An image whose header is there is whole, and never deleted because of
// what is missing of it. See cls.go for how they are read.
//
// # Who is alive
//
// design.md let the control client watch the guard object while it maps. It
// watches the image's header instead, by having the image open read-write:
// librados has no C call to list the watchers of an object, and go-ceph holds
// a process-wide lock while it establishes a watch, so that one stuck object
// would stop all volumes. librbd lists the header's watchers with their
// addresses, and "alive" is the same question in every state of the guard.
package rbd
