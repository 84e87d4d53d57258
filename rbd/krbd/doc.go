// Package krbd maps images with the kernel's own client, by writing to
// /sys/bus/rbd as the rbd tool does: no process is started, and nothing waits
// for udev. Devices are found again in sysfs, which tells all that matters of
// each: image id, pool, cluster, snapshot, and the address of its client. So a
// plugin that was killed, disabled or upgraded finds what containers still use.
//
// Every image is mapped with noshare, so that it has a client, and an address
// to fence, of its own, and without exclusive, which would refuse snapshots,
// resize and metadata while it is mounted. The key goes through the kernel's
// keyring: given in the line it would show in sysfs.
//
// A write to sysfs returns when the kernel is done, which may be a minute after
// the request has ended, and nothing ends it before. One call at a time is made
// for each image; see [Mapper.alone]. What a killed plugin had under way, the
// kernel ends by itself: it waits for Ceph killably (Linux 6.1,
// wait_for_completion_killable in rbd.c and osd_client.c).
//
// Errors are a number, sometimes the same for many causes. The words are in the
// kernel's log, from which they are taken; see explain.go.
//
// Its tests against a real kernel are in test/krbd. Start reading at [Mapper.Map].
package krbd
