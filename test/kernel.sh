#!/usr/bin/env bash
# Fetches Debian's stock kernel for this machine's architecture, without installing it, and makes what boots it as a guest.
#
# Usage: test/kernel.sh DIR    (root; needs busybox-static and kmod, see test/deps.sh)
#
# KERNEL_SUITE     of which Debian; without it this machine's own. trixie has 6.12, trixie-backports 7.3.
# KERNEL_ARCH      amd64 or arm64; without it this machine's own
# KERNEL_FLAVOUR   which of Debian's kernels: arm64-16k has the pages of a Raspberry Pi 5; without it the architecture's common one
#
# DIR then has vmlinuz, initrd and modules, whose lib/modules/VERSION is what modprobe looks for. See cmd/packages.sh for where the
# packages are cached.
#
# The guest's root is the host's, by 9p and read-only, with what the guest writes in its memory (overlay); of a guest of another
# architecture it is covered by a tree of programs. After that the program is run that the kernel's command line names behind "--".
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

arch=${KERNEL_ARCH:-$(dpkg --print-architecture)}
suite=${KERNEL_SUITE:-$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)}
"$(dirname "$0")/../cmd/packages.sh" "$suite" "$arch" "$tmp/tree" "linux-image-${KERNEL_FLAVOUR:-$arch}" busybox-static
tree=$(realpath "$tmp/tree")
versions=("$tree"/usr/lib/modules/*)
release=${versions[0]##*/}
[[ -e $tree/usr/lib/modules/$release/modules.dep ]] || depmod -b "$tree" "$release"
vmlinuz=$tree/boot/vmlinuz-$release
[[ -e $vmlinuz ]] || vmlinuz=$tree/usr/lib/modules/$release/vmlinuz # from 7.3 on

initrd() {
	local root=$tmp/initrd module
	mkdir -p "$root"/{bin,dev,proc,sys,host,programs,rw,root}
	cp "$tree/usr/bin/busybox" "$root/bin/busybox"
	for module in "${early[@]}"; do
		modprobe -d "$tree" -S "$release" --show-depends "$module"
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
		shared="ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose" lower=/host
		if mount -t 9p -o "$shared" programs /programs 2>/dev/null; then lower=/programs:/host; fi
		mount -t 9p -o "$shared" host /host &&
		mount -t tmpfs -o mode=755 tmpfs /rw && mkdir /rw/upper /rw/work &&
		mount -t overlay -o "lowerdir=$lower,upperdir=/rw/upper,workdir=/rw/work" overlay /root || poweroff -f
		# What the host's admin has installed there is not of the architecture.
		[ "$lower" = /host ] || mount -t tmpfs -o mode=755 tmpfs /root/usr/local
		for fs in proc sys dev; do mount --move /$fs /root/$fs; done
		exec switch_root /root "$@"
	END
	chmod 755 "$root/init"
	(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$1"
}
mkdir -p "$1"
rm -f "$1"/{vmlinuz,initrd,modules}
initrd "$1/initrd"
cp "$vmlinuz" "$1/vmlinuz"
ln -s "$tree" "$1/modules"
