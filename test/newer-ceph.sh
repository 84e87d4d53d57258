#!/usr/bin/env bash
# Runs the tests of package rbd with the Ceph of Debian trixie, 18.2, and its librbd: a cluster of its own, in a tree that
# is unpacked for it. By hand, as it fetches some 500 MB.
#
# Usage: test/newer-ceph.sh DIR [GO TEST FLAGS...]    (root; Debian's mirror must be within reach)
#
# DIR becomes the tree, and stays for the next time. Without flags it is what librbd leaves that is killed between two of
# its steps, and the contracts.
set -euo pipefail

(($# >= 1)) || { echo "usage: $0 DIR [GO TEST FLAGS...]" >&2; exit 2; }
dir=$(realpath -m "$1")
shift
(($#)) || set -- -run 'Whole|Damaged|Killed|Purge|Mark|NotToBeKept|ARemovalAfter|NotMadeToItsEnd|ParentIsGone|TestContracts' \
	-skip 'TestContracts/Snapshots/what_is_removed' # its manager has no module for tasks there
source=$(realpath "$(dirname "$0")/..")
if [[ ! -e $dir/usr/bin/ceph-osd || ! -e $dir/usr/bin/gcc ]]; then
	# The mirror is the one that this machine has its own packages from.
	# shellcheck disable=SC2016 # it is for apt
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m 1 '/debian/\?$')
	debootstrap --variant=minbase trixie "$dir" "$mirror"
	chroot "$dir" apt-get -q -y install --no-install-recommends ceph-mon ceph-osd ceph-mgr ceph-mgr-modules-core ceph-common librbd-dev librados-dev \
		gcc libc6-dev iproute2 procps cryptsetup-bin ca-certificates
fi
mkdir -p "$dir"/{work,usr/local/go,go}
# In mount and process namespaces of its own: all that it mounts and starts ends with it.
# shellcheck disable=SC2016 # it is for the inner shell
exec unshare --mount --pid --fork --kill-child bash -euo pipefail -c '
	dir=$1 source=$2 go=$3 modules=$4
	shift 4
	mount --bind "$source" "$dir/work"
	mount --bind "$go" "$dir/usr/local/go"
	mount --bind "$modules" "$dir/go"
	mount -t proc proc "$dir/proc"
	mount --rbind /dev "$dir/dev"
	mount -t tmpfs tmpfs "$dir/tmp"
	exec chroot "$dir" env PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root GOMODCACHE=/go GOPROXY=off \
		bash -c "cd /work && exec go test -count 1 -tags reef ./rbd \"\$@\"" bash "$@"
' bash "$dir" "$source" "$(go env GOROOT)" "$(go env GOMODCACHE)" "$@"
