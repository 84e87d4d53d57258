#!/usr/bin/env bash
# Runs the tests of the kernel's client: a throw-away Ceph cluster, and guests with Debian's stock kernel as the nodes.
#
# Usage: TAGS=pacific test/krbd.sh [flags of a test program: -test.run Regexp, ...]
#        TAGS=pacific test/krbd.sh build DIR    only what needs no cluster: the guests and what runs in them
#
# GUEST_ARCH       arm64, say: the first node, which has the engine, is of this architecture; the second is of this machine's. Without
#                  it both are. KERNEL_SUITE and KERNEL_FLAVOUR, see test/kernel.sh, are then the first node's
# TEST_GUESTS      such a directory; without it they are built
# TEST_PLUGIN      directory of the built managed plugin (cmd/plugin.sh makes one); without it one is built
# KEEP=yes         leaves the directory with consoles and logs
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $(id -u) = 0 ]] || { echo "$0: run it as root: it makes a network namespace" >&2; exit 1; }
test/deps.sh

# foreign DIR - the same for a node of another architecture: programs of Debian and the managed plugin, whose program runs outside of it too
foreign() {
	mkdir -p "$1"
	KERNEL_ARCH=$GUEST_ARCH test/kernel.sh "$1/kernel"
	cmd/packages.sh "${SUITE:-forky}" "$GUEST_ARCH" "$1/root" \
		bash dash coreutils util-linux mount mawk sed grep findutils tar gzip hostname procps iproute2 kmod passwd libc-bin curl \
		librbd1 docker.io docker-cli tini e2fsprogs xfsprogs btrfs-progs cryptsetup-bin
	ARCH=$GUEST_ARCH cmd/plugin.sh "$1/plugin"
	ln -sf plugin/rootfs/usr/bin/docker-volume-rbd "$1/docker-volume-rbd"
	CGO_ENABLED=0 GOARCH=$GUEST_ARCH go build -o "$1/agent" ./test/guest/agent
	CGO_ENABLED=0 GOARCH=$GUEST_ARCH go build -o "$1/writer" ./test/workload/writer
}

build() {
	if [[ ${GUEST_ARCH-} ]]; then
		foreign "$1/$GUEST_ARCH"
		unset KERNEL_SUITE KERNEL_FLAVOUR
	fi
	test/kernel.sh "$1/kernel"
	go build -tags "$TAGS" -o "$1/docker-volume-rbd" ./cmd/docker-volume-rbd
	go build -tags "$TAGS,sabotage" -o "$1/sabotaged" ./cmd/docker-volume-rbd
	go build -tags "$TAGS" -o "$1/mapper" ./test/krbd/mapper
	CGO_ENABLED=0 go build -o "$1/agent" ./test/guest/agent
	CGO_ENABLED=0 go build -o "$1/writer" ./test/workload/writer
	go test -c -tags "$TAGS" -o "$1/inside.test" ./test/krbd/inside
	go test -c -tags "$TAGS" -o "$1/krbd.test" ./test/krbd
}
if [[ ${1-} = build ]]; then
	mkdir -p "$2"
	build "$2"
	exit
fi

work=$(mktemp -d /tmp/krbd.XXXXXX)
netns=$(basename "$work")

cleanup() {
	local rc=$? pid
	trap '' INT TERM
	for pid in "$work"/*.pid; do # a guest that a killed test has left
		[[ -e $pid ]] && grep -qsF -- "$work/" "/proc/$(cat "$pid")/cmdline" && kill -KILL "$(cat "$pid")"
	done
	[[ ! -d $work/next/e ]] || test/engine.sh stop "$work/next/e" || rc=1
	[[ ! -d $work/c ]] || test/cluster.sh stop "$work/c" || rc=1
	[[ ! -d $work/c6 ]] || test/cluster.sh stop "$work/c6" || rc=1
	ip netns del "$netns" 2>/dev/null || true
	[[ ${KEEP-} ]] || rm -rf --one-file-system "$work"
	exit "$rc"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [[ ${GUEST_ARCH-} ]]; then
	TEST_PLUGIN=$work/$GUEST_ARCH/plugin
elif [[ -z ${TEST_PLUGIN-} ]]; then
	TEST_PLUGIN=$work/plugin
	cmd/plugin.sh "$TEST_PLUGIN"
fi

if [[ ${TEST_GUESTS-} ]]; then
	cp -a "$TEST_GUESTS"/. "$work"
else
	echo "==> guests with Debian's kernel, and what runs in them"
	build "$work"
fi

ip netns add "$netns"
ip -n "$netns" link set lo up
ip -n "$netns" link add guests type bridge
ip -n "$netns" addr add 10.11.14.1/24 dev guests
ip -n "$netns" addr add fd00:11:14::1/64 dev guests nodad
ip -n "$netns" link set guests up
in_netns=(nsenter "--net=/run/netns/$netns" --)
CLUSTER_ADDR=10.11.14.1 "${in_netns[@]}" test/cluster.sh start "$work/c"

export TEST_CLUSTER=$work/c TEST_KRBD=$work TEST_GUEST_ARCH=${GUEST_ARCH-}
TEST_PLUGIN=$(realpath "$TEST_PLUGIN")
export TEST_PLUGIN
(cd test/krbd && "${in_netns[@]}" "$work/krbd.test" -test.v -test.timeout 35m "$@")
