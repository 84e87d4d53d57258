// Package driver decides. It is the policy of the plugin: which node may have
// a volume, in which order things happen, what is undone when a step fails, and
// what a crash may leave behind. It starts no process and knows neither cgo nor
// system calls: Ceph and the kernel are behind the interfaces of package backend.
//
// Where to start: [Driver.Mount] in mount.go, and stage below it, which is the
// whole way from an image to a mounted filesystem on one screen. Then package guard.
//
// # What is believed
//
// Ceph (images, their metadata, the records) and the kernel (mappings, mounts).
// In memory there are only locks and reference counts; a restart without them
// is harmless, because the kernel does not let go of what a container holds. Nor are
// the counts the last word: what no container has for long is let go (unheld.go),
// and what a client had no patience to wait for is kept for it a little (kept.go). Names
// may change hands under a mount, so that ids are compared (identity.go).
// What this node has seen of volumes is cached on disk (cache.go), for the time when Ceph is away.
//
// # The guard
//
// A record per image says which node has it, and with which Ceph client addresses: package
// guard. Nothing is read through a mapping before the guard is "mapped", and what was read
// earlier is read again after the guard is ours.
//
// # The pending record
//
// Create writes a record of what is pending, and then makes the image; the first Mount
// makes the filesystem. An image is formatted only if there is a pending record for its
// name, and only if it is empty or the pending record names it as begun. So a crash in
// Create leaves no volume or a pending one; a crash in the first Mount leaves one
// that the next Mount begins again; and data that came from elsewhere is never
// overwritten.
//
// A copy has a pending record, too: it is a clone, with its original's content and metadata,
// and what was asked for of it the first mount does: its size, an id of its own for
// its filesystem, metadata of its own. It is meant for the clone of one snapshot, by
// that one's id, and for no other image of the name.
//
// design.md had the mark of a pending volume in the image's metadata. Three things speak for
// a record: it can be there before the image, so that no crash separates them;
// setting metadata cannot be made conditional, and a write that comes late, of a
// node that was paused, must not turn a formatted volume into a pending one; and
// opening a new image to write its metadata took twice as long as making it.
//
// # Read-only volumes
//
// They have no guard. Their first mount is one like others and writes what there is to
// be written, a journal's replay say; then it notes in the image's metadata that the
// image of this id is sealed, and from then on it is mapped and mounted read-only,
// anywhere. The control client watches it for as long, and the node is noted among its
// readers (readers.go), so that whoever wants to remove it, or to write to it, sees that
// it is in use, and by whom, even while that one's plugin is away. See readonly.go.
//
// # When Ceph is away
//
// An outage is about the connection, not about a volume: [backend.Images].Ping, which is about no
// image, begins and ends it (outage.go), and meanwhile the cache answers. What fails of
// one volume while Ceph answers is told as that volume's error, and is nothing to the
// others. "Not found" is said by the open of an image alone (ErrNoVolume): dockerd
// forgets a volume that it hears that of. A panic is an error of what met it ([backend.Survive]).
//
// # Work that takes long
//
// A request that ends is undone. But a check, mkfs or a roll-back that was cut short would
// begin anew each time, so it goes on, under the guard and the volume's turn (work.go);
// the next request for the volume waits for its end. Nothing else outlives its request.
//
// # Pools
//
// A [Driver] has one pool and namespace. [Pools] is all of them, and what the plugin
// asks: it finds where a volume is, and knows nothing else.
package driver
