// Package swarm is a swarm of three nodes on one machine, each with an engine and
// the managed plugin, and a Ceph cluster that all of them use. A node is a set of
// namespaces (net, mount, pid, uts): it can lose its networks, stand still, lose
// power and boot again. Services write to volumes (package workload) while that
// happens, and a checker tells what was lost.
//
// bed.go starts all that; node.go has the faults, one verb each; service.go the
// services. The tests are the stories of what a swarm does, chaos_test.go random
// ones from a seed.
package swarm
