#!/usr/bin/env bash
# Builds the managed plugin: DIR/config.json and DIR/rootfs, for "docker plugin create NAME DIR".
#
# Usage: cmd/plugin.sh DIR    (root, Go, and a Docker engine: DOCKER_HOST is honoured)
#
# BASE      the image to build on; by default the Dockerfile's, or where that cannot be had one that cmd/base.sh makes
# BUILD_TAGS  build tags; "reef", for trixie's Ceph, must be among them
# VERSION   what the plugin calls itself; by default what git describes
set -euo pipefail

image=docker-volume-rbd:build
own_base=docker-volume-rbd-base:trixie

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# == 1)) || die "usage: $0 DIR"
((EUID == 0)) || die "must be root: the files of the root filesystem belong to root"
docker version >/dev/null 2>&1 || die "no Docker engine answers: start one, or set DOCKER_HOST (test/engine.sh starts a throw-away one)"
dir=$(realpath -m "$1")
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
container=
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
	[[ -z $container ]] || docker rm "$container" >/dev/null
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# have IMAGE - whether the engine has it
have() { docker image inspect "$1" >/dev/null 2>&1; }

# base - prints the image to build on, after getting it
base() {
	local upstream
	upstream=$(sed -n 's/^ARG BASE=//p' Dockerfile)
	if have "$upstream"; then
		echo "$upstream"
		return
	fi
	if ! have "$own_base"; then
		echo "==> pulling $upstream" >&2
		if timeout 60 docker pull -q "$upstream" >"$tmp/log" 2>&1; then
			echo "$upstream"
			return
		fi
		echo "==> $upstream cannot be pulled: making $own_base instead" >&2
		cmd/base.sh "$own_base" >&2
	fi
	echo "$own_base"
}

BASE=${BASE:-$(base)}
VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}

# The build context: what git knows and the build needs, and the modules, so that the build needs no module proxy. Of the
# tests only what a sabotaged build (tag sabotage) needs.
known=(git ls-files -z --cached --others --exclude-standard --)
{ "${known[@]}" . ':!docs' ':!examples' ':!test' ':!*.md' && "${known[@]}" test/faults; } |
	while IFS= read -r -d '' file; do
		if [[ -e $file ]]; then printf '%s\0' "$file"; fi # it may be deleted in the work tree
	done >"$tmp/files"
go mod vendor -o "$tmp/vendor" >"$tmp/log" 2>&1 || {
	tail -n 20 "$tmp/log" >&2
	die "go mod vendor failed, see above"
}

echo "==> building $VERSION on $BASE"
if ! tar -c --null -T "$tmp/files" -C "$tmp" vendor | docker build --network=host --build-arg BASE="$BASE" --build-arg VERSION="$VERSION" --build-arg TAGS="${BUILD_TAGS:-reef}" \
	-t "$image" - >"$tmp/log" 2>&1; then
	tail -n 40 "$tmp/log" >&2
	die "docker build failed, see above"
fi

rm -rf "$dir/rootfs"
mkdir -p "$dir/rootfs"
cp config.json "$dir/config.json"
# What root has not on this machine, a container for tests perhaps, no container of it can have.
bounds=$(sed -n 's/^CapBnd:\s*//p' /proc/self/status)
if (((0x$bounds >> 24 & 1) == 0)); then
	echo "==> this machine has no CAP_SYS_RESOURCE: left out of this plugin, which so cannot grow ext4"
	sed -i '/"CAP_SYS_RESOURCE",/d' "$dir/config.json"
fi
container=$(docker create "$image")
docker export "$container" | tar -C "$dir/rootfs" -x --exclude=.dockerenv --exclude='dev/*'
echo "==> $dir is ready: $(du -sm "$dir/rootfs" | cut -f1) MB"
