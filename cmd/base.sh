#!/usr/bin/env bash
# Makes the image NAME that the Dockerfile can build on where golang:1.26-trixie is out of reach: Debian trixie, straight from
# Debian's mirror, with this machine's Go.
#
# Usage: cmd/base.sh NAME    (root; needs debootstrap, see test/deps.sh, and a Docker engine)
#
# The Debian tree is cached in ${XDG_CACHE_HOME:-~/.cache}/docker-volume-rbd; delete it there to have it made anew.
set -euo pipefail

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# == 1)) || die "usage: $0 NAME"
((EUID == 0)) || die "debootstrap needs root"
[[ $(type -P debootstrap) ]] || die "debootstrap is not installed: run test/deps.sh"
goroot=$(go env GOROOT) || die "Go is not installed: see go.mod for the version"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/docker-volume-rbd
tarball=$cache/trixie-$(dpkg --print-architecture).tar.gz
tmp=$(mktemp -d)
trap 'rm -rf --one-file-system "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$tmp/root

if [[ ! -e $tarball ]]; then
	echo "==> fetching Debian trixie (once, about a minute)"
	if ! debootstrap --variant=minbase trixie "$root" >"$tmp/log" 2>&1; then
		tail -n 20 "$tmp/log" >&2
		die "debootstrap failed, see above: is Debian's mirror within reach?"
	fi
	rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*
	mkdir -p "$cache"
	# The name appears when the contents are complete. Device nodes are the engine's business.
	tar -C "$root" --numeric-owner --exclude='./dev/*' -c . | gzip -1 >"$tmp/tar.gz"
	mv "$tmp/tar.gz" "$tarball.$$"
	mv "$tarball.$$" "$tarball"
	rm -rf --one-file-system "$root"
fi

echo "==> importing the image $1"
mkdir -p "$root/usr/local/go/pkg"
tar -C "$root" -xzf "$tarball"
cp -a "$goroot"/{VERSION,bin,go.env,lib,src} "$root/usr/local/go/"
cp -a "$goroot"/pkg/{include,tool} "$root/usr/local/go/pkg/"
tar -C "$root" --numeric-owner -c . | docker import \
	-c 'ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
	-c 'ENV GOTOOLCHAIN=local' \
	-c 'CMD ["bash"]' \
	- "$1" >/dev/null
