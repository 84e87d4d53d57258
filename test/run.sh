#!/usr/bin/env bash
# Runs Go tests with a throw-away Ceph cluster, and stops it. Without arguments: everything, as make test does, in this
# order: what needs neither Ceph nor root, what needs a cluster, and last the managed plugin in a real engine.
#
# Usage: TAGS=pacific test/run.sh [arguments of go test]
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $(id -u) = 0 ]] || { echo "$0: run it as root: the tests mount, and start a cluster and an engine" >&2; exit 1; }
test/deps.sh
work=$(mktemp -d /tmp/rbd.XXXXXX)
export TEST_CLUSTER=$work/c
engine=$work/e plugin_build=

cleanup() {
	local rc=$?
	trap '' INT TERM
	[[ -z $plugin_build ]] || kill "$plugin_build" 2>/dev/null || true
	[[ ! -d $engine ]] || test/engine.sh stop "$engine" || rc=1
	[[ ! -d $TEST_CLUSTER ]] || test/cluster.sh stop "$TEST_CLUSTER" || rc=1
	rm -rf "$work"
	exit "$rc"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

test/cluster.sh start "$TEST_CLUSTER"
if (($#)); then
	go test -tags "$TAGS" "$@"
	exit
fi

export TEST_ENGINE=$engine TEST_PLUGIN=$work/plugin
test/engine.sh start "$TEST_ENGINE"
echo "==> building the managed plugin in the background (log: $work/plugin.log)"
DOCKER_HOST=unix://$TEST_ENGINE/docker.sock cmd/plugin.sh "$TEST_PLUGIN" >"$work/plugin.log" 2>&1 &
plugin_build=$!

echo "==> policy, protocol and settings, with the race detector"
go test -race ./driver/... ./plugin/... ./test/workload/...
echo "==> librbd, the mappers and the filesystems, on a real cluster"
go test -p 1 -tags "$TAGS" -timeout 15m ./cmd/... ./rbd/... ./test/integration/...
echo "==> waiting for the managed plugin"
wait "$plugin_build" || { cat "$work/plugin.log" >&2; exit 1; }
plugin_build=
tail -n 1 "$work/plugin.log"
echo "==> a real engine running the managed plugin"
go test -tags "$TAGS" -timeout 15m ./test/e2e/...
