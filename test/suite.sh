#!/usr/bin/env bash
# Runs a command with the programs of another Debian, in place of this machine's, and a network, a home and files that are this machine's:
# Ceph's cluster and its tools, and what else it is told to have. Nothing is installed.
#
# Usage: test/suite.sh SUITE [PACKAGE...] -- COMMAND...    (root; Debian's mirror must be within reach)
#
# The command has mount and process namespaces of its own: what it mounts and starts ends with it. See cmd/packages.sh for where the
# packages are cached.
set -euo pipefail

(($# >= 3)) || { sed -n '/^# Usage/,/^#$/s/^# \?//p' "$0" >&2; exit 2; }
suite=$1 packages=()
shift
while [[ $1 != -- ]]; do
	packages+=("$1")
	shift
	(($#)) || { echo "$0: no -- and no command" >&2; exit 2; }
done
shift
tmp=$(mktemp -d)
trap 'rm -rf --one-file-system "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$(dirname "$0")/../cmd/packages.sh" "$suite" "$(dpkg --print-architecture)" "$tmp/tree" \
	bash dash coreutils util-linux mount mawk sed grep findutils tar gzip hostname procps iproute2 kmod passwd libc-bin \
	ceph-mon ceph-mgr ceph-mgr-modules-core ceph-osd ceph-common "${packages[@]}"
tree=$(realpath "$tmp/tree")
# What is written to /usr and /etc stays in memory: Python's caches, and the links that packages make when they are installed.
# shellcheck disable=SC2016 # it is for the inner shell
unshare --mount --pid --fork --kill-child --mount-proc bash -euo pipefail -c '
	tree=$1 tmp=$2
	shift 2
	# Of what others have mounted of an image a copy is here now, and would keep them from unmapping it.
	awk "\$(NF-2) ~ /^fuse/ || \$(NF-1) ~ /^.dev.(loop|rbd|mapper)/ { print \$5 }" /proc/self/mountinfo | tac |
		while read -r m; do umount -l "$(printf %b "$m")" || true; done
	mount -t tmpfs tmpfs "$tmp"
	mkdir "$tmp"/{usr,upper,work,local,etc-upper,etc-work}
	mount --bind /usr/local "$tmp/local"
	mount -t overlay -o "lowerdir=$tree/usr,upperdir=$tmp/upper,workdir=$tmp/work" overlay "$tmp/usr"
	ln -sf mawk "$tmp/usr/bin/awk"
	mkdir -p "$tmp"/usr/{local,lib/modules}
	[[ ! -d /usr/lib/modules ]] || mount --bind /usr/lib/modules "$tmp/usr/lib/modules"
	mount --rbind "$tmp/usr" /usr
	mount --move "$tmp/local" /usr/local
	mount -t overlay -o "lowerdir=/etc:$tree/etc,upperdir=$tmp/etc-upper,workdir=$tmp/etc-work" overlay /etc
	mount -t tmpfs -o mode=755 tmpfs /run
	hash -r
	export IN_SUITE=$$
	"$@"
' bash "$tree" "$tmp" "$@"
