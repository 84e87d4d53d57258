// Package guest boots virtual machines with Debian's stock kernel, of which
// each has a real rbd module. They are emulated (qemu without KVM), so that
// they run wherever the tests do: everything in them is some ten times slower.
//
// A guest's root is that of the host, read-only, with its own writing in its
// memory; so it has all programs of the host, at the same paths, and forgets
// what it wrote when it is killed. It has two networks: one for an agent that
// runs commands in it, which nothing disturbs, and one with Ceph, which can be
// cut. The calling process must be in the network namespace of the bridge, see
// [Bridge]: test/krbd.sh makes both.
//
// Start reading at [Guest.Boot].
package guest
