#!/usr/bin/env bash
# Runs Go tests with a throw-away Ceph cluster, and stops it. Without arguments: everything, as make test does: what needs
# neither Ceph nor root and what needs a cluster, with the managed plugin in a real engine beside it; then a swarm of three;
# then the kernel's client in guests.
#
# Usage: TAGS=pacific test/run.sh [arguments of go test]
#
# PART           only one part of it: ceph, engine, swarm or model; make test-unit and make test-krbd are the others
# FAULTS, SEED   how many random faults the swarm has (4), and which (0 = other ones each time)
#
# What takes longer than a day's run may is in test/nightly.sh and test/matrix.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $(id -u) = 0 ]] || { echo "$0: run it as root: the tests mount, and start a cluster and an engine" >&2; exit 1; }
test/deps.sh
work=$(mktemp -d /tmp/rbd.XXXXXX)
export TEST_CLUSTER=$work/c
engine=$work/e
declare -A beside # processes, by name

cleanup() {
	local rc=$? pid dir
	trap '' INT TERM
	for pid in "${beside[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
	test/leftovers.sh "$work" || rc=1
	[[ ! -d $engine ]] || test/engine.sh stop "$engine" || rc=1
	for dir in "$work/c" "$work/c2"; do [[ ! -d $dir ]] || test/cluster.sh stop "$dir" || rc=1; done
	rm -rf --one-file-system "$work"
	exit "$rc"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# begin NAME COMMAND... - in the background, in a process group of its own; done_with NAME waits, and shows the log of what failed
begin() {
	local name=$1
	shift
	set -m
	"$@" >"$work/$name.log" 2>&1 &
	beside[$name]=$!
	set +m
}
done_with() {
	wait "${beside[$1]}" || { cat "$work/$1.log" >&2; exit 1; }
	unset "beside[$1]"
}

# told FILE - of what a long test says into FILE, what is worth reading
told() { tee "$1" | grep -E --line-buffered '^(---|    ---|ok|FAIL|panic|==>)|figure:|seed|without the'; }

# engine_tests - builds the managed plugin and tests it; for most of the time that waits, for Docker or for Ceph
engine_tests() {
	set -e
	cmd/plugin.sh "$TEST_PLUGIN"
	test/cluster.sh start "$work/c2"
	TEST_CLUSTER=$work/c2 TEST_ENGINE=$engine go test -count 1 -tags "$TAGS" -timeout 25m -parallel 4 ./test/e2e/...
	go test -count 1 -timeout 30m -v ./test/rootfs/
}

engine_and_sabotage() {
	engine_tests
	BUILD_TAGS=sabotage cmd/plugin.sh "$TEST_SABOTAGED_PLUGIN"
}

ceph_tests() {
	test/cluster.sh start "$TEST_CLUSTER"
	go test -count 1 -p 1 -tags "$TAGS" -timeout 15m ./cmd/... ./rbd/... ./test/integration/...
}

model_tests() { go test -timeout 15m ./test/model/; }

swarm_tests() {
	TMPDIR=$work go test -timeout $((20 + ${FAULTS:-4} / 3))m ./test/swarm/ -seed "${SEED:-0}" -faults "${FAULTS:-4}" -v -skip TestUpgradeOfTheEngine |
		told "$work/swarm.log" || { cat "$work/swarm.log" >&2; exit 1; }
}

if (($#)); then
	test/cluster.sh start "$TEST_CLUSTER"
	go test -tags "$TAGS" "$@"
	exit
fi

export TEST_PLUGIN=$work/plugin TEST_SABOTAGED_PLUGIN=$work/sabotaged
case ${PART-} in
'') ;;
ceph) ceph_tests; exit ;;
model) model_tests; exit ;;
engine)
	test/engine.sh start "$engine"
	engine_tests
	exit
	;;
swarm)
	cmd/plugin.sh "$TEST_PLUGIN"
	BUILD_TAGS=sabotage cmd/plugin.sh "$TEST_SABOTAGED_PLUGIN"
	swarm_tests
	exit
	;;
*) echo "$0: there is no part $PART: it is one of ceph, engine, swarm, model" >&2 && exit 2 ;;
esac
test/engine.sh start "$engine"
echo "==> a real engine running the managed plugin, in the background (log: $work/engine.log)"
begin engine engine_and_sabotage
echo "==> policy, protocol and settings, with the race detector"
make -s test-unit
echo "==> the model of the guard, with spin, in the background"
begin model model_tests
echo "==> librbd, the mappers and the filesystems, on a real cluster"
ceph_tests
echo "==> waiting for the model, and for the engine"
done_with model
cat "$work/model.log"
done_with engine
told /dev/null <"$work/engine.log"
test/engine.sh stop "$engine"
echo "==> what is shipped, on a cluster of today with its keys, in the background"
begin smoke test/suite.sh forky -- go test -count 1 -v ./test/smoke
export TEST_GUESTS=$work/guests
begin guests nice test/krbd.sh build "$TEST_GUESTS"
echo "==> a swarm of three nodes, and what can happen to them"
swarm_tests
done_with guests
done_with smoke
told /dev/null <"$work/smoke.log"
echo "==> the kernel's client, in guests that have it"
# Its figures are for make test-krbd and the nights; so is what Docker's own tests above have seen already, on the other mapper.
skip='TestFigures|TestTheManagedPlugin/(disable_and_enable|without_live-restore)|TestAStaleMappingWritesAgainWhenItsFenceEnds/with_the_fence_cut'
# On two pairs of guests at the same time: for most of its time each waits, for Docker or for a timeout of Ceph.
some='^Test(TheManagedPlugin|TheNetworkGoes.*|Errors.*|AnEncrypted.*|CephIsAway)$'
begin more test/krbd.sh -test.run "$some" -test.skip "$skip"
test/krbd.sh -test.skip "$some|$skip" | told "$work/krbd.log" || { cat "$work/krbd.log" >&2; exit 1; }
done_with more
told /dev/null <"$work/more.log"
