// Package krbd maps images with the kernel's own client, by writing to
// /sys/bus/rbd as the rbd tool does: no process is started, and nothing waits
// for udev. Devices are found again in sysfs, which tells all that matters of
// each: image id, pool, cluster, and the address of its client.
//
// Every image is mapped with noshare, so that it has a client, and an address
// to fence, of its own, and without exclusive, which would refuse snapshots,
// resize and metadata while it is mounted. The key goes through the kernel's
// keyring: given in the string it would show in sysfs.
//
// Start reading at [Mapper.Map].
package krbd
