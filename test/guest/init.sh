#!/bin/bash
# The first program in a guest's root: makes of it what a booted machine is, and runs the agent.
#
# Usage: test/guest/init.sh NAME ADDRESS/BITS MODULES AGENT PORT
name=$1 address=$2 modules=$3 agent=$4 port=$5
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount --make-rshared /
ln -s /proc/self/fd /dev/fd
mkdir -p /lib/modules
mount --bind "$modules/lib/modules" /lib/modules
hostname "$name"
modprobe virtio_net
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
number=${address##*.}
ip addr add "$address" dev eth1 && ip addr add "fd00:11:14::${number%/*}/64" dev eth1 nodad && ip link set eth1 up
exec docker-init -- "$agent" "10.0.2.15:$port"
