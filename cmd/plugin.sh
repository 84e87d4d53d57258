#!/usr/bin/env bash
# Builds the managed plugin: DIR/config.json and DIR/rootfs, for "docker plugin create NAME DIR".
#
# Usage: cmd/plugin.sh DIR    (root, Go, and Debian's mirror within reach; where the machine is no Debian, a Docker engine)
#
# ARCH        amd64 or arm64; by default the machine's own. The other one needs a cross compiler: the script says which
# SUITE       the Debian release that the packages come from: forky, with Ceph 20.2, or trixie, with 18.2, which knows no keys of type aes256k
# BUILD_TAGS  further build tags
# VERSION     what the plugin calls itself; by default what git describes
# SOURCE_DATE_EPOCH  the time of all files; by default that of the last commit
# BASE        where the machine is no Debian: the image to build in; by default the Dockerfile's
set -euo pipefail
umask 022

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# == 1)) || die "usage: $0 DIR"
((EUID == 0)) || die "must be root: the files of the root filesystem belong to root"
own=$(go env GOHOSTARCH) || die "Go is not installed: see go.mod for the version"
dir=$(realpath -m "$1")
cd "$(dirname "$0")/.."
arch=${ARCH:-$own}
suite=${SUITE:-forky}
tags=${BUILD_TAGS-}
[[ $suite != trixie ]] || tags=reef${tags:+,$tags} # go-ceph is without what its librbd lacks
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date -r go.mod +%s)}
export SOURCE_DATE_EPOCH

case $arch in
amd64) triplet=x86_64-linux-gnu ;;
arm64) triplet=aarch64-linux-gnu ;;
*) die "ARCH=$arch: it is amd64 or arm64" ;;
esac
compiler=gcc cross=
if [[ $arch != "$own" ]]; then
	compiler=$triplet-gcc cross=gcc-${triplet//_/-}
fi

tmp=$(mktemp -d)
container=
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
	[[ -z $container ]] || docker rm "$container" >/dev/null
	rm -rf --one-file-system "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# notices DIR - the licences of what is linked into the program: our own, Go's, and each module's
notices() {
	local path dir
	mkdir -p "$1/go"
	cp LICENSE "$1/"
	cp "$(go env GOROOT)/LICENSE" "$1/go/"
	CGO_ENABLED=1 GOOS=linux GOARCH=$arch go list -deps -tags "$tags" -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./cmd/docker-volume-rbd |
		sort -u | while read -r path dir; do
		dir=${dir:-vendor/$path} # in a container
		mkdir -p "$1/$path"
		find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) -exec cp -t "$1/$path" {} +
		[[ $(find "$1/$path" -maxdepth 1 -type f) ]] || die "the module $path is without a licence"
	done
}

# build - on this machine, which is a Debian
build() {
	local tree sysroot missing=()
	[[ $(type -P "$compiler") ]] || missing+=("${cross:-gcc}")
	[[ $(type -P lddtree) ]] || missing+=(pax-utils)
	((${#missing[@]} == 0)) || die "packages are missing that the build needs: apt-get install --no-install-recommends ${missing[*]}"
	cmd/packages.sh "$suite" "$arch" "$tmp/tree" \
		base-files libc-bin libc6-dev librados-dev librbd-dev \
		btrfs-progs cryptsetup-bin e2fsprogs kmod liblzma5 libzstd1 mount util-linux xfsprogs
	tree=$(realpath "$tmp/tree")
	# Without -B and -L the compiler finds this machine's own libraries before those of the sysroot.
	sysroot="'--sysroot=$tree' '-B$tree/usr/lib/$triplet/' '-L$tree/usr/lib/$triplet' '-Wl,-rpath-link,$tree/usr/lib/$triplet/ceph'"
	echo "==> building $version for $arch"
	CGO_ENABLED=1 GOOS=linux GOARCH=$arch CC="$compiler $sysroot" CGO_CFLAGS=-O2 go build -trimpath -buildvcs=false -tags "$tags" \
		-ldflags "-s -w -buildid= -X main.version=$version" -o "$tmp/docker-volume-rbd" ./cmd/docker-volume-rbd
	notices "$tmp/notices"
	rm -rf --one-file-system "$dir/rootfs"
	mkdir -p "$dir"
	cmd/rootfs.sh "$tree" "$dir/rootfs" "$tmp/docker-volume-rbd" "$tmp/notices"
}

# build_in_container - the same script, in a container that is a Debian
build_in_container() {
	docker version >/dev/null 2>&1 ||
		die "this machine is no Debian, and no Docker engine answers to build in a container: start one, or set DOCKER_HOST"
	# The build context: what git knows and the build needs, and the modules, so that the build needs no module proxy. Of the
	# tests only what a sabotaged build (tag sabotage) needs.
	local image=docker-volume-rbd:build known=(git ls-files -z --cached --others --exclude-standard --)
	{ "${known[@]}" . ':!docs' ':!examples' ':!test' ':!*.md' && "${known[@]}" test/faults; } |
		while IFS= read -r -d '' file; do
			if [[ -e $file ]]; then printf '%s\0' "$file"; fi # it may be deleted in the work tree
		done >"$tmp/files"
	go mod vendor -o "$tmp/vendor" >"$tmp/log" 2>&1 || {
		tail -n 20 "$tmp/log" >&2
		die "go mod vendor failed, see above"
	}
	echo "==> building $version for $arch in a container"
	if ! tar -c --null -T "$tmp/files" -C "$tmp" vendor |
		docker build --network=host ${BASE:+--build-arg "BASE=$BASE"} --build-arg CROSS="$cross" --build-arg ARCH="$arch" --build-arg SUITE="$suite" \
			--build-arg BUILD_TAGS="${BUILD_TAGS-}" --build-arg VERSION="$version" --build-arg SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
			-t "$image" - >"$tmp/log" 2>&1; then
		tail -n 40 "$tmp/log" >&2
		die "docker build failed, see above"
	fi
	rm -rf --one-file-system "$dir/rootfs"
	mkdir -p "$dir"
	container=$(docker create "$image" none)
	docker cp "$container:/plugin.tar" - | tar -xO | tar -C "$dir" -x rootfs
}

if [[ $(type -P apt-get) && $(type -P dpkg-deb) && -s /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
	build
else
	build_in_container
fi
cp config.json "$dir/config.json"
# What root has not on this machine, a container for tests perhaps, no container of it can have.
bounds=$(sed -n 's/^CapBnd:\s*//p' /proc/self/status)
if [[ $arch == "$own" ]] && (((0x$bounds >> 24 & 1) == 0)); then
	echo "==> this machine has no CAP_SYS_RESOURCE: left out of this plugin, which so cannot grow ext4"
	sed -i '/"CAP_SYS_RESOURCE",/d' "$dir/config.json"
fi
echo "==> $dir is ready: $suite, $arch, $(du -sm "$dir/rootfs" | cut -f1) MB"
