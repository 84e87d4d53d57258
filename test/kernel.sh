#!/usr/bin/env bash
# Fetches Debian's stock kernel for this machine's architecture, without installing it, and makes what boots it as a guest.
#
# Usage: test/kernel.sh DIR    (root; needs busybox-static and kmod, see test/deps.sh)
#
# KERNEL_SUITE     of which Debian; without it this machine's own. trixie has 6.12.
#
# DIR is then a link to vmlinuz, initrd and modules/lib/modules/VERSION, which are cached in
# ${XDG_CACHE_HOME:-~/.cache}/docker-volume-rbd; delete them there to have them made anew.
#
# The guest's root is the host's, by 9p and read-only, with what the guest writes in its memory (overlay). After that the
# program is run that the kernel's command line names behind "--".
set -euo pipefail

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# == 1)) || die "usage: $0 DIR"
for tool in busybox depmod; do
	[[ $(type -P $tool) ]] || die "$tool is not installed: run test/deps.sh"
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What the guest needs before it has the host's files.
early=(virtio_pci 9p 9pnet_virtio overlay)

# apt is the packages of this machine, or those of another suite, from the mirror that this machine has its own from.
apt=(-q)
if [[ ${KERNEL_SUITE-} ]]; then
	# shellcheck disable=SC2016 # it is for apt
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 '/debian/\?$')
	mkdir -p "$tmp/lists" "$tmp/cache"
	echo "deb ${mirror%/} $KERNEL_SUITE main" >"$tmp/sources.list"
	: >"$tmp/status"
	apt+=(-o "Dir::Etc::SourceList=$tmp/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$tmp/lists"
		-o "Dir::State::Status=$tmp/status" -o "Dir::Cache=$tmp/cache" -o APT::Sandbox::User=root)
	apt-get "${apt[@]}" update >"$tmp/log" 2>&1 || {
		tail -n 20 "$tmp/log" >&2
		die "apt-get update for $KERNEL_SUITE failed, see above"
	}
fi

meta=linux-image-$(dpkg --print-architecture)
package=$(apt-cache "${apt[@]}" depends "$meta" | awk '$1 == "Depends:" { print $2; exit }')
[[ $package ]] || die "Debian has no package $meta, or apt knows none: run apt-get update"
release=${package#linux-image-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/docker-volume-rbd/$package

if [[ ! -e $cache/modules ]]; then
	echo "==> fetching $package (once)"
	(cd "$tmp" && apt-get "${apt[@]}" download "$package") >"$tmp/log" 2>&1 || {
		tail -n 20 "$tmp/log" >&2
		die "apt-get download $package failed, see above"
	}
	dpkg-deb -x "$tmp/$package"_*.deb "$tmp/unpacked"
	[[ -e $tmp/unpacked/lib ]] || ln -s usr/lib "$tmp/unpacked/lib" # from trixie on, and depmod looks there
	depmod -b "$tmp/unpacked" "$release"
	rm -rf "$cache"
	mkdir -p "$cache"
	mv "$tmp/unpacked/boot/vmlinuz-$release" "$cache/vmlinuz"
	mv "$tmp/unpacked" "$cache/modules" # last: it tells that all is there
fi

initrd() {
	local root=$tmp/initrd module
	mkdir -p "$root"/{bin,dev,proc,sys,host,rw,root}
	cp "$(type -P busybox)" "$root/bin/busybox"
	for module in "${early[@]}"; do
		modprobe -d "$cache/modules" -S "$release" --show-depends "$module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$tmp/early"
	while read -r module; do
		cp "$module" "$root/"
		module=$(basename "$module")
		if [[ $module == *.xz ]]; then # from trixie on; the guest's insmod cannot
			busybox unxz "$root/$module"
			module=${module%.xz}
		fi
		echo "$module"
	done <"$tmp/early" >"$root/early"
	cat >"$root/init" <<-'END'
		#!/bin/busybox sh
		export PATH=/bin
		/bin/busybox --install -s /bin
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		mount -t devtmpfs devtmpfs /dev
		while read -r module; do insmod "/$module"; done </early
		mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host &&
		mount -t tmpfs -o mode=755 tmpfs /rw && mkdir /rw/upper /rw/work &&
		mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /root || poweroff -f
		for fs in proc sys dev; do mount --move /$fs /root/$fs; done
		exec switch_root /root "$@"
	END
	chmod 755 "$root/init"
	(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$1"
}
initrd "$cache/initrd.$$"
mv "$cache/initrd.$$" "$cache/initrd"
rm -f "$1"
ln -s "$cache" "$1"
