#!/usr/bin/env bash
# Makes the root filesystem of the managed plugin: PROGRAM, the tools that it runs, and the libraries of both, from the tree that
# cmd/packages.sh has made. No program of the tree is run: the tree may be of another architecture.
#
# Usage: cmd/rootfs.sh TREE DIR PROGRAM NOTICES    (root; needs lddtree, of pax-utils)
#
# NOTICES is a directory with the licences of PROGRAM and of what is linked into it. SOURCE_DATE_EPOCH is the time of all files.
set -euo pipefail
shopt -s inherit_errexit
umask 022
export LC_ALL=C

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# == 4)) || die "usage: $0 TREE DIR PROGRAM NOTICES"
[[ ${SOURCE_DATE_EPOCH-} ]] || die "SOURCE_DATE_EPOCH is not set"
[[ $(type -P lddtree) ]] || die "lddtree is not installed: apt-get install pax-utils"
tree=$(realpath "$1") root=$(realpath -m "$2") plugin=$(realpath "$3") notices=$(realpath "$4")
cd "$tree"

programs=(
	mke2fs mkfs.ext4 e2fsck fsck.ext4 resize2fs
	mkfs.xfs xfs_growfs xfs_db
	mkfs.btrfs btrfs btrfstune
	blkid cryptsetup losetup modprobe
)
# modprobe opens these for modules that are compressed; it is not linked with them. Other libraries that programs may open serve
# what the plugin does not do: mke2fs -d, tokens and smart cards for passphrases, RDMA.
opened=(liblzma.so.5 libzstd.so.1)
# Files that the tools read; then what tells scanners which Debian this is, and the texts that the copyright files refer to.
data=(etc/mke2fs.conf usr/share/xfsprogs/mkfs/*.conf etc/debian_version usr/lib/os-release usr/share/common-licenses/*)

# merged PATH - prints it with Debian's links into /usr followed
merged() { sed -E 's#^/*(bin|sbin|lib|lib64)/#usr/\1/#' <<<"$1"; }

# real PATH - prints the file that it is a link to in the end; absolute links mean the tree
real() {
	local path link
	path=$(merged "$1")
	while link=$(readlink "$path"); do
		[[ $link == /* ]] || link=${path%/*}/$link
		link=$(realpath -ms "/$link")
		path=$(merged "${link#/}")
	done
	echo "$path"
}

# place FILE PATH - copies FILE to PATH in the root filesystem
place() {
	local mode=644
	[[ ! -x $1 ]] || mode=755
	install -D -m "$mode" "$1" "$root/$2"
}

# The tree itself: Debian's links into /usr, the directories that are mounted on, the few files that are read.
mkdir -p "$root"/{dev,etc/ceph,host/lib,proc,run,sys,tmp,usr/{bin,lib,sbin},var/lib/docker-volume-rbd,var/lib/dpkg/status.d}
chmod 1777 "$root/tmp"
ln -s usr/{bin,lib,sbin} "$root"
ln -s /host/lib/modules "$root/usr/lib/modules" # by way of its parent: a host whose kernel has no modules has no such directory
ln -s ../usr/lib/os-release "$root/etc/os-release"
echo 'root:x:0:0:root:/root:/usr/sbin/nologin' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf" # monitors may be given by name
for path in "${data[@]}"; do
	if [[ -L $path ]]; then
		mkdir -p "$root/${path%/*}"
		cp -P "$path" "$root/$path"
	else
		place "$path" "$path"
	fi
done

# The programs, under their several names, and then the libraries that they are linked with.
elves=("$plugin")
place "$plugin" usr/bin/docker-volume-rbd
for program in "${programs[@]}"; do
	for path in usr/{sbin,bin}/"$program"; do
		[[ ! -e $path && ! -L $path ]] || break
	done
	file=$(real "$path")
	[[ -x $file ]] || die "no package has $program"
	place "$file" "$file"
	[[ $file == "$path" ]] || ln -sf "$(realpath -ms --relative-to="/${path%/*}" "/$file")" "$root/$path"
	elves+=("$tree/$file")
done
for name in "${opened[@]}"; do
	path=$(echo usr/lib/*-linux-gnu/"$name")
	place "$(real "$path")" "$path"
	elves+=("$tree/$(real "$path")")
done
interpreter=$(readelf -lW "$plugin" | sed -n 's#.*interpreter: /\(.*\)]#\1#p')
[[ $interpreter ]] || die "$plugin is not linked with the C library"
place "$(real "$interpreter")" "$(merged "$interpreter")"
[[ $interpreter != lib64/* ]] || ln -s usr/lib64 "$root"
# lddtree is a Python program of Debian; another Python that comes first in PATH lacks its modules.
needed=$(for elf in "${elves[@]}"; do PATH=/usr/bin:/bin lddtree -l --no-auto-root -R "$tree" "$elf" | tail -n +2; done | sort -u)
for path in $needed; do
	[[ $path == "$tree"/* ]] || die "no package has the library $path"
	path=$(merged "${path#"$tree/"}")
	[[ ${path##*/} == "${interpreter##*/}" || -e $root/$path ]] || place "$(real "$path")" "$path"
done

(cd "$notices" && find . -type f -printf '%P\n') | while read -r path; do place "$notices/$path" "usr/share/doc/docker-volume-rbd/$path"; done

# Each file's package, in the form of distroless images, which scanners read: dpkg's stanza of it, the digests of its files, and its
# copyright, which is often the same for several.
declare -A copyrights=()
(cd "$root" && find . -type f -printf '/%P\n') |
	awk 'FNR == NR { have[$0]; next } $0 in have { n = split(FILENAME, part, "/"); print substr(part[n], 1, length(part[n]) - 5), $0 }' \
		- var/lib/dpkg/info/*.list | sort |
	while read -r package path; do
		status=var/lib/dpkg/status.d/$package
		if [[ ! -e $root/$status ]]; then
			place "$status" "$status"
			copyright=usr/share/doc/$package/copyright
			digest=$(md5sum <"$(real "$copyright")")
			if [[ ${copyrights[$digest]-} ]]; then
				mkdir "$root/${copyright%/*}"
				ln -s "../${copyrights[$digest]}/copyright" "$root/$copyright"
			else
				copyrights[$digest]=$package
				place "$(real "$copyright")" "$copyright"
			fi
		fi
		(cd "$root" && md5sum "${path#/}") >>"$root/$status.md5sums"
	done
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
