// Package memory has doubles of Ceph and of a node's kernel, for tests of
// policy: many nodes, crashes at every step, fences, in milliseconds. They pass
// the same suites (package backendtest) as the real implementations.
//
// A [Cluster] is the Ceph of all nodes; a [Host] is one node's kernel: it
// survives its plugin, and [Host.Reboot] is a power cut.
package memory
