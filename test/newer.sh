#!/usr/bin/env bash
# Unpacks the Docker engine of Debian trixie, which is newer than bookworm's, with all that it needs, without installing it.
#
# Usage: test/newer.sh DIR    (root; Debian's mirror must be within reach)
#
# DIR is then a link to a tree with a usr that serves as /usr where the engine is to run. It is cached in
# ${XDG_CACHE_HOME:-~/.cache}/docker-volume-rbd; delete it there to have it made anew.
set -euo pipefail

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# == 1)) || die "usage: $0 DIR"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/docker-volume-rbd/docker-trixie-$(dpkg --print-architecture)
if [[ ! -e $cache ]]; then
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	# The mirror is the one that this machine has its own packages from.
	# shellcheck disable=SC2016 # it is for apt
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 '/debian/\?$')
	mkdir -p "$tmp"/{lists,cache,root}
	echo "deb ${mirror%/} trixie main" >"$tmp/sources.list"
	: >"$tmp/status" # nothing is installed there, so that all dependencies come along
	options=(-q -y -o "Dir::Etc::SourceList=$tmp/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$tmp/lists"
		-o "Dir::State::Status=$tmp/status" -o "Dir::Cache=$tmp/cache" -o APT::Sandbox::User=root)
	echo "==> fetching trixie's Docker (once)"
	{
		apt-get "${options[@]}" update &&
			apt-get "${options[@]}" install --download-only --no-install-recommends docker.io tini bash dash coreutils hostname mount curl
	} >"$tmp/log" 2>&1 || {
		tail -n 20 "$tmp/log" >&2
		die "apt-get could not fetch it, see above"
	}
	for package in "$tmp"/cache/archives/*.deb; do dpkg-deb -x "$package" "$tmp/root"; done
	mkdir -p "$(dirname "$cache")"
	mv "$tmp/root" "$cache.$$"
	mv "$cache.$$" "$cache"
fi
rm -f "$1"
ln -s "$cache" "$1"
