#!/usr/bin/env bash
# Runs Go tests with a throw-away Ceph cluster, and stops it. Without arguments: everything, as make test does, in this
# order: what needs neither Ceph nor root, what needs a cluster, the managed plugin in a real engine, a swarm of three, and
# the kernel's client in guests.
#
# Usage: TAGS=pacific test/run.sh [arguments of go test]
#
# FAULTS, SEED   how many random faults the swarm has (4), and which (0 = other ones each time)
# MODEL=long     spin goes through larger models of the guard too, faults come at every step of a volume's life, and the guests
#                wait for the kernel's own time limits, the plugin starts in every kind of outage, and the engine is upgraded
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $(id -u) = 0 ]] || { echo "$0: run it as root: the tests mount, and start a cluster and an engine" >&2; exit 1; }
test/deps.sh
work=$(mktemp -d /tmp/rbd.XXXXXX)
export TEST_CLUSTER=$work/c
engine=$work/e plugin_build='' model='' guests=''

cleanup() {
	local rc=$?
	trap '' INT TERM
	[[ -z $plugin_build ]] || kill "$plugin_build" 2>/dev/null || true
	[[ -z $guests ]] || kill "$guests" 2>/dev/null || true
	[[ -z $model ]] || kill "$model" 2>/dev/null || true
	local bed ns
	for bed in "$work"/sw*; do # left by a test that was killed; its nodes have died with it
		[[ -d $bed ]] || continue
		[[ ! -d $bed/c ]] || test/cluster.sh stop "$bed/c" || rc=1
		while read -r ns; do ip netns del "$ns" 2>/dev/null || true; done < <(cat "$bed/netns" 2>/dev/null)
		for ns in "$bed"/*.mnt; do umount -l "$ns" 2>/dev/null || true; done
	done
	[[ ! -d $engine ]] || test/engine.sh stop "$engine" || rc=1
	[[ ! -d $TEST_CLUSTER ]] || test/cluster.sh stop "$TEST_CLUSTER" || rc=1
	rm -rf --one-file-system "$work"
	exit "$rc"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# told FILE - of what a long test says into FILE, what is worth reading
told() { tee "$1" | grep -E --line-buffered '^(---|    ---|ok|FAIL|panic|==>)|figure:|seed|without the'; }

test/cluster.sh start "$TEST_CLUSTER"
if (($#)); then
	go test -tags "$TAGS" "$@"
	exit
fi

export TEST_ENGINE=$engine TEST_PLUGIN=$work/plugin
test/engine.sh start "$TEST_ENGINE"
echo "==> building the managed plugin in the background (log: $work/plugin.log)"
export TEST_SABOTAGED_PLUGIN=$work/sabotaged
{
	export DOCKER_HOST=unix://$TEST_ENGINE/docker.sock
	BUILD_TAGS=reef,sabotage cmd/plugin.sh "$TEST_SABOTAGED_PLUGIN" && cmd/plugin.sh "$TEST_PLUGIN"
} >"$work/plugin.log" 2>&1 &
plugin_build=$!

echo "==> policy, protocol and settings, with the race detector"
go test -race ./driver/... ./plugin/... ./test/workload/... ./test/faults/...
echo "==> the model of the guard, with spin, in the background"
go test -timeout 60m ./test/model/ >"$work/model.log" 2>&1 &
model=$!
echo "==> librbd, the mappers and the filesystems, on a real cluster"
go test -count 1 -p 1 -tags "$TAGS" -timeout "$([[ ${MODEL-} = long ]] && echo 60m || echo 15m)" ./cmd/... ./rbd/... ./test/integration/...
echo "==> waiting for the model, and for the managed plugin"
wait "$model" || { cat "$work/model.log" >&2; exit 1; }
model=
cat "$work/model.log"
wait "$plugin_build" || { cat "$work/plugin.log" >&2; exit 1; }
plugin_build=
tail -n 1 "$work/plugin.log"
echo "==> a real engine running the managed plugin"
go test -count 1 -tags "$TAGS" -timeout 25m -parallel 4 ./test/e2e/... # what waits for Docker waits side by side
test/engine.sh stop "$TEST_ENGINE"
export TEST_GUESTS=$work/guests
nice test/krbd.sh build "$TEST_GUESTS" >"$work/guests.log" 2>&1 &
guests=$!
echo "==> a swarm of three nodes, and what can happen to them"
TMPDIR=$work go test -timeout $((20 + ${FAULTS:-4} / 3))m ./test/swarm/ -seed "${SEED:-0}" -faults "${FAULTS:-4}" -v \
	-skip "$([[ ${MODEL-} = long ]] && echo '^$' || echo TestUpgradeOfTheEngine)" |
	told "$work/swarm.log" || { cat "$work/swarm.log" >&2; exit 1; }
wait "$guests" || { cat "$work/guests.log" >&2; exit 1; }
guests=
echo "==> the kernel's client, in guests that have it (its figures are for make test-krbd and the nights)"
test/krbd.sh "$([[ ${MODEL-} = long ]] && echo -long || echo -test.skip=TestFigures)" |
	told "$work/krbd.log" || { cat "$work/krbd.log" >&2; exit 1; }
