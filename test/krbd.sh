#!/usr/bin/env bash
# Runs the tests of the kernel's client: a throw-away Ceph cluster, and guests with Debian's stock kernel as the nodes.
#
# Usage: TAGS=pacific test/krbd.sh [flags of a test program: -test.run Regexp, ...]
#
# TEST_PLUGIN      directory of the built managed plugin (cmd/plugin.sh makes one); without it one is built
# KEEP=yes         leaves the directory with consoles and logs
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $(id -u) = 0 ]] || { echo "$0: run it as root: it makes a network namespace" >&2; exit 1; }
test/deps.sh
work=$(mktemp -d /tmp/krbd.XXXXXX)
netns=$(basename "$work")
engine=

cleanup() {
	local rc=$? pid
	trap '' INT TERM
	for pid in "$work"/*.pid; do # a guest that a killed test has left
		[[ -e $pid ]] && grep -qsF -- "$work/" "/proc/$(cat "$pid")/cmdline" && kill -KILL "$(cat "$pid")"
	done
	[[ -z $engine ]] || test/engine.sh stop "$engine" || rc=1
	[[ ! -d $work/c ]] || test/cluster.sh stop "$work/c" || rc=1
	[[ ! -d $work/c6 ]] || test/cluster.sh stop "$work/c6" || rc=1
	ip netns del "$netns" 2>/dev/null || true
	[[ ${KEEP-} ]] || rm -rf --one-file-system "$work"
	exit "$rc"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [[ -z ${TEST_PLUGIN-} ]]; then
	engine=$work/e
	test/engine.sh start "$engine"
	TEST_PLUGIN=$work/plugin
	DOCKER_HOST=unix://$engine/docker.sock cmd/plugin.sh "$TEST_PLUGIN"
	test/engine.sh stop "$engine"
	engine=
fi

echo "==> guests with Debian's kernel, and what runs in them"
test/kernel.sh "$work/kernel"
go build -tags "$TAGS" -o "$work/docker-volume-rbd" ./cmd/docker-volume-rbd
go build -tags "$TAGS,sabotage" -o "$work/sabotaged" ./cmd/docker-volume-rbd
go build -tags "$TAGS" -o "$work/mapper" ./test/krbd/mapper
CGO_ENABLED=0 go build -o "$work/agent" ./test/guest/agent
CGO_ENABLED=0 go build -o "$work/writer" ./test/workload/writer
go test -c -tags "$TAGS" -o "$work/inside.test" ./test/krbd/inside
go test -c -tags "$TAGS" -o "$work/krbd.test" ./test/krbd

ip netns add "$netns"
ip -n "$netns" link set lo up
ip -n "$netns" link add guests type bridge
ip -n "$netns" addr add 10.11.14.1/24 dev guests
ip -n "$netns" addr add fd00:11:14::1/64 dev guests nodad
ip -n "$netns" link set guests up
in_netns=(nsenter "--net=/run/netns/$netns" --)
CLUSTER_ADDR=10.11.14.1 "${in_netns[@]}" test/cluster.sh start "$work/c"

export TEST_CLUSTER=$work/c TEST_KRBD=$work
TEST_PLUGIN=$(realpath "$TEST_PLUGIN")
export TEST_PLUGIN
(cd test/krbd && "${in_netns[@]}" "$work/krbd.test" -test.v -test.timeout 25m "$@")
