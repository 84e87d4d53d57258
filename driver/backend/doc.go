// Package backend is the contract between the plugin's policy (package driver) and its two
// sides: Ceph ([Images], [Image], [Records], [Fences], [Secrets]; package rbd), and the kernel
// of the node ([Mapper]; rbd/krbd and rbd/fuse; and [Filesystem]; driver/fsys).
//
// Where to start: [Images] in images.go, then [Handle] in image.go. What an implementation
// promises is in the comments of the methods; backendtest has each promise as a test, which
// the real ones run as well as the doubles of package memory.
//
// Beside the interfaces there are their types, the errors that both sides speak in
// (errors.go), and what each side needs to wait and to fail by the same rules: [Within],
// [Sleep], [Survive]. It imports nothing else of this module.
package backend
