// Package e2e holds stories about the managed plugin as people meet it: the
// docker command line, a real engine that runs the plugin's container, a real
// Ceph cluster, images mapped in userspace.
//
// The cluster, the engine and the plugin's directory are those that test/run.sh
// has made (TEST_CLUSTER, TEST_ENGINE, TEST_PLUGIN); what is not given the tests
// make for themselves, and take away at the end. Needs root.
//
//   - volumes_test.go: what docker volume says, options, filesystems, bad input
//   - adopt_test.go: volumes that other plugins have made
//   - containers_test.go: what containers see
//   - examples_test.go: the files of examples/, in a swarm of this one node
//   - faults_test.go, restart_test.go: engine and plugin end and crash
//   - outage_test.go: Ceph is away, in every way
//   - figures_test.go: sizes and times, measured and not judged
//
// Every command has a deadline. After each story its volumes must be gone from
// Ceph and from the kernel; after the last one nothing of ours may be left.
package e2e
