#!/usr/bin/env bash
# Copies the programs named, and the libraries they need, into /rootfs. For the Dockerfile.
#
# Usage: cmd/rootfs.sh PROGRAM...
set -euo pipefail

root=/rootfs

# The tree itself: Debian's links into /usr, the directories that are mounted on, the few files that are read.
if [[ ! -d $root ]]; then
	for dir in bin sbin lib lib64; do
		[[ -L /$dir ]] || continue
		mkdir -p "$root/usr/$dir"
		ln -s "usr/$dir" "$root/$dir"
	done
	mkdir -p "$root"/{dev,etc/ceph,host/lib,proc,run,sys,tmp,var/lib/docker-volume-rbd}
	chmod 1777 "$root/tmp"
	ln -s /host/lib/modules "$root/lib/modules" # by way of its parent: a host whose kernel has no modules has no such directory
	echo 'root:x:0:0:root:/root:/usr/sbin/nologin' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	echo 'hosts: files dns' >"$root/etc/nsswitch.conf" # monitors may be given by name
	cp --parents /etc/mke2fs.conf /usr/share/xfsprogs/mkfs/*.conf "$root"
fi

for program; do
	file=$(type -P "$program")
	real=$(readlink -f "$file")
	cp --parents "$real" "$root"
	if [[ $real != "$file" ]]; then
		ln -sf "$real" "$root$file" # one of its several names
	fi
	ldd "$real" | grep -o '/[^ ]*' | while read -r lib; do
		mkdir -p "$root${lib%/*}"
		[[ -e $root$lib ]] || cp -L "$lib" "$root$lib"
	done
done
ldconfig -r "$root"
