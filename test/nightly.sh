#!/usr/bin/env bash
# What make test does in little, at length. Each slice ends within an hour, and can be repeated by its seed.
#
# Usage: TAGS=pacific test/nightly.sh [SLICE...]    (root; without a slice: all, one after the other)
#
#   faults   random faults on a swarm of three nodes, and an upgrade of the engine under a service    FAULTS (200), SEED
#   steps    a fault at every single step of a volume's life and of librbd's, the plugin started in every kind of outage, and the
#            mix with each of its mends taken out
#   model    larger models of the guard
#   fuzz     the fuzz tests, each for FUZZTIME (8m)
#   guests   the kernel's client with the kernel's own time limits, the engine with and without live-restore, and errors on a newer kernel
set -euo pipefail
cd "$(dirname "$0")/.."

slices=(faults steps model fuzz guests)
(($#)) || set -- "${slices[@]}"
for slice; do
	[[ " ${slices[*]} " == *" $slice "* ]] || { echo "$0: there is no slice $slice: it is one of ${slices[*]}" >&2; exit 2; }
done
[[ $(id -u) = 0 ]] || { echo "$0: run it as root: the tests mount, and start clusters, engines and guests" >&2; exit 1; }
test/deps.sh
work=$(mktemp -d /tmp/rbd.XXXXXX)
trap 'test/leftovers.sh "$work" && rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
export MODEL=long TEST_PLUGIN=${TEST_PLUGIN:-$work/plugin} TEST_SABOTAGED_PLUGIN=${TEST_SABOTAGED_PLUGIN:-$work/sabotaged}

plugins() {
	[[ -e $TEST_PLUGIN/config.json ]] || cmd/plugin.sh "$TEST_PLUGIN"
	[[ -e $TEST_SABOTAGED_PLUGIN/config.json ]] || BUILD_TAGS=sabotage cmd/plugin.sh "$TEST_SABOTAGED_PLUGIN"
}

for slice; do
	echo "==> slice $slice"
	case $slice in
	faults)
		plugins
		TMPDIR=$work go test -timeout 2h -v ./test/swarm/ -seed "${SEED:-0}" -faults "${FAULTS:-200}" -run '^Test(RandomFaults|UpgradeOfTheEngine)$'
		;;
	steps)
		plugins
		test/run.sh -count 1 -timeout 2h -v -run '^Test(AFaultAtAnyStep|KilledAtAnyMoment.*|MixFindsEachMendTakenOut)$' ./test/integration
		test/run.sh -count 1 -timeout 2h -v -run '^TestStartInAnOutage$' ./test/e2e
		;;
	model) go test -count 1 -timeout 2h -v ./test/model ;;
	fuzz) FUZZTIME=${FUZZTIME:-8m} test/fuzz.sh ;;
	guests)
		plugins
		test/krbd.sh -long
		KERNEL_SUITE=trixie test/krbd.sh -test.run '^TestErrorsStopAFilesystem$'
		;;
	esac
done
