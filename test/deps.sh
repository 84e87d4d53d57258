#!/usr/bin/env bash
# Installs the Debian packages (bookworm or newer) that building and testing need, those that are missing only.
# Starts no service. Go itself is not among them: see go.mod for the version.
#
# Usage: test/deps.sh
set -euo pipefail

case $(dpkg --print-architecture) in
arm64) cross=gcc-x86-64-linux-gnu ;;
*) cross=gcc-aarch64-linux-gnu ;;
esac
packages=(
	gcc libc6-dev make git curl ca-certificates shellcheck # build
	librbd-dev librados-dev
	ceph-mon ceph-mgr ceph-osd ceph-common # test/cluster.sh
	rbd-fuse                               # what make bench is held against
	docker.io busybox-static               # test/engine.sh
	jq                                     # examples/snapshot.sh
	systemd                                # systemd/: its units are verified
	pax-utils                              # cmd/rootfs.sh
	"$cross"                               # cmd/plugin.sh, for the other architecture
	spin                                   # driver/guard/guard.pml
	qemu-system-x86 kmod docker-registry   # test/krbd.sh
	e2fsprogs xfsprogs btrfs-progs cryptsetup-bin fdisk util-linux iproute2
)

# The packages of "$@" that are not installed, one per line.
missing() {
	local p have
	have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true)
	for p; do
		[[ $'\n'$have$'\n' == *$'\n'"$p installed"$'\n'* ]] || echo "$p"
	done
}

# Another engine, docker-ce say, serves as well, and docker.io would replace it.
[[ -z $(type -P dockerd) ]] || packages=("${packages[@]/docker.io/busybox-static}")
mapfile -t wanted < <(missing "${packages[@]}")
# Newer releases ship the client apart from docker.io.
cli=$(type -P docker || true)
if ((${#wanted[@]} == 0)) && [[ $cli ]]; then
	exit 0
fi

if ((EUID != 0)); then
	echo "$0: must be root to install: ${wanted[*]-} ${cli:-docker-cli}" >&2
	exit 1
fi

tmp=$(mktemp -d)
policy=/usr/sbin/policy-rc.d
made_policy=
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup() {
	[[ -z $made_policy ]] || rm -f "$policy"
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# apt ARGS... - quiet, unless it fails
apt() {
	if ! DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" >"$tmp/log" 2>&1 </dev/null; then
		tail -n 30 "$tmp/log" >&2
		echo "$0: apt-get $1 failed (its last lines are above): check the package sources, then run this again" >&2
		exit 1
	fi
}

# No service may start: the tests run their own engine and cluster.
if [[ ! -e $policy ]]; then
	made_policy=yes
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

apt update
if [[ -z $cli ]] && apt-cache show docker-cli >/dev/null 2>&1; then
	wanted+=(docker-cli)
fi
echo "==> installing ${wanted[*]}"
apt install --no-install-recommends "${wanted[@]}"
