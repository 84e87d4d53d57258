// Package integration tests the driver on real parts: a Ceph cluster, image
// servers, loop devices, filesystems. Two drivers with a node name and a client
// each are two nodes.
package integration
