// Package guard says which node may have an image, and holds it to that.
//
// A record per image, the guard, names the node and the Ceph clients that act under it.
// Every change is a compare-and-swap. The states, and what a node that wants the image does
// when its holder is no longer seen to be alive:
//
//	(none)     nobody has it                    swap in "mapping"
//	mapping    nothing was written under it     swap; its holder's next swap fails
//	           but an old image's feature, or
//	           that it is sealed no longer
//	mapped     its clients may write            fence them, then swap
//	removing   its client may delete the image  fence it, then swap
//
// Alive means: one of the addresses is among the watchers of the image. The control client
// has the image open from right after the first swap until the last, to "mapped"; the
// mapping's own client for as long as it is mapped. Only then, so that Ceph never has a
// watcher of ours that no guard names: everybody would have to wait for it.
//
// A guard of this node, which one is whose mapping the kernel here has, whatever name and
// address it bears, is taken without a look: its mapping is found and adopted, or it is gone,
// with a boot or with the plugin, and its client is fenced. So the boot id in the record is
// for people.
//
// Nothing is read through a mapping before the change to "mapped" has succeeded, and what was
// read earlier is read again after the guard is ours.
//
// Where to start: [Guards.Acquire] in acquire.go; what it returns, [Held], moves on and gives
// back. guard.pml is this protocol as a model, which spin checks (test/model).
//
// A sealed read-only volume has no guard; its readers are noted beside the image instead
// (readers.go). An operator sees both ([Guards.List]), and takes them from a dead node
// ([Guards.FenceNode]).
package guard
