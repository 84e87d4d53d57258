#!/usr/bin/env bash
# What is shipped, with the releases that its users have: one cell after the other of a slice, each with the same short test. What came of
# a cell is a line of docs/tested.md, with the date.
#
# Usage: test/matrix.sh [SLICE...]    (root; without a slice: all)
#
# CELL=name    only that cell of the slices
# LIST=1       only names the slices and their cells
# TEST_PLUGIN  directory of the built managed plugin (cmd/plugin.sh makes one); without it one is built
set -euo pipefail
cd "$(dirname "$0")/.."

table=docs/tested.md
engine=(docker.io tini busybox-static hostname mount curl)
slices=(ceph engines podman kernels arm64)

# cells SLICE - the names of its cells, and how each is run
cells() {
	case $1 in
	ceph)
		echo "16.2|smoke bookworm program"
		echo "18.2|smoke trixie program"
		echo "20.2, keys aes256k|smoke forky program"
		echo "20.2, keys aes|CLUSTER_KEYS=aes smoke forky program"
		;;
	engines)
		echo "docker 20.10|smoke bookworm docker ${engine[*]}"
		echo "docker 26.1|smoke trixie docker docker-cli ${engine[*]}"
		echo "docker 28.5|smoke forky docker docker-cli ${engine[*]}"
		;;
	podman)
		echo "podman 4.3|smoke bookworm podman podman runc busybox-static"
		echo "podman 5.4|smoke trixie podman podman runc busybox-static"
		echo "podman 5.8|smoke forky podman podman runc busybox-static"
		;;
	kernels)
		echo "linux 6.1|guests bookworm"
		echo "linux 6.12|guests trixie"
		echo "linux 7.3|guests trixie-backports"
		;;
	arm64)
		echo "the program, emulated by qemu-user|emulated forky"
		echo "linux 6.12, beside a node of amd64|beside trixie arm64"
		echo "linux 6.12 with pages of 16 KiB, beside a node of amd64|beside trixie arm64-16k"
		;;
	*) echo "$0: there is no slice $1: it is one of ${slices[*]}" >&2 && exit 2 ;;
	esac
}

# smoke SUITE BY [PACKAGE...] - what users do with a volume, with Ceph and the rest of a suite
# shellcheck disable=SC2317,SC2329 # eval calls it
smoke() {
	local suite=$1 by=$2
	shift 2
	test/suite.sh "$suite" "$@" -- go test -count 1 -v -run '^TestSmoke$' ./test/smoke -by "$by"
}

# emulated SUITE - the same with the root filesystem of arm64, each program of it run by qemu
# shellcheck disable=SC2317,SC2329 # eval calls it
emulated() {
	[[ $(type -P qemu-aarch64-static) ]] || { echo "apt-get install qemu-user-static" && return 1; }
	ARCH=arm64 cmd/plugin.sh "$work/arm64" &&
		test/binfmt.sh test/suite.sh "$1" -- env TEST_PLUGIN="$work/arm64" go test -count 1 -v -run '^TestSmoke$' ./test/smoke -emulated
}

# guests SUITE - the same in guests with the kernel of a suite, on both mappers
# shellcheck disable=SC2317,SC2329 # eval calls it
guests() {
	local some='Contract|Encrypted|AnEncryptedVolumeOnBothMappers|GrowthWhileItIsMounted|ASnapshotOnTwoKernels|ANodeLosesItsPower|ANodeIsPaused|ErrorsStopAFilesystem|TheManagedPlugin'
	KERNEL_SUITE=$1 test/krbd.sh -test.run "^Test($some)\$" -test.skip '^TestTheManagedPlugin$/^(crash|disable|upgrade|the_engine|without)'
}

# beside SUITE FLAVOUR - a node of arm64 with a kernel of a suite and one of amd64: volumes move between them, by power cuts too, on both mappers;
# and the managed plugin in an engine of arm64
# shellcheck disable=SC2317,SC2329 # eval calls it
beside() {
	[[ $(type -P qemu-system-aarch64) ]] || { echo "apt-get install qemu-system-arm" && return 1; }
	GUEST_ARCH=arm64 KERNEL_SUITE=$1 KERNEL_FLAVOUR=$2 test/krbd.sh -test.run '^Test(APlannedMove|AnEncryptedVolumeOnBothMappers|GrowthWhileItIsMounted|ASnapshotOnTwoKernels|ANodeLosesItsPower|TheManagedPlugin)$' \
		-test.skip '^TestTheManagedPlugin$/^(disable|upgrade|the_engine|without)'
}

# tell SLICE CELL RESULT SECONDS DETAILS - writes the cell's line of the table anew
tell() {
	local line today
	today=$(date +%F)
	line="| $1 | $2 | $3 | $4 s | $5 | $today |"
	awk -F ' *[|] *' -v slice="$1" -v cell="$2" -v line="$line" '
		$2 == slice && $3 == cell { print line; told = 1; next }
		{ print }
		END { if (!told) print line }' "$table" >"$table.new"
	mv "$table.new" "$table"
	echo "==> $line"
}

(($#)) || set -- "${slices[@]}"
for slice; do cells "$slice" >/dev/null; done
if [[ ${LIST-} ]]; then
	for slice; do
		echo "$slice"
		cells "$slice" | sed 's/^/  /; s/[|].*//'
	done
	exit
fi

[[ $(id -u) = 0 ]] || { echo "$0: run it as root: the tests mount, and start clusters and engines" >&2; exit 1; }
test/deps.sh
work=$(mktemp -d /tmp/rbd.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
if [[ -z ${TEST_PLUGIN-} ]]; then
	TEST_PLUGIN=$work/plugin
	cmd/plugin.sh "$TEST_PLUGIN"
fi
TEST_PLUGIN=$(realpath "$TEST_PLUGIN")
export TEST_PLUGIN
failed=0
for slice; do
	while IFS='|' read -r cell how <&3; do
		[[ ${CELL:-$cell} == "$cell" ]] || continue
		began=$SECONDS result=passed
		if ! eval "$how" >"$work/log" 2>&1; then
			result=FAILED failed=1
			cat "$work/log" >&2
		fi
		details=$(sed -n 's/.*==> cell: //p' "$work/log" | tail -n 1)
		tell "$slice" "$cell" "$result" $((SECONDS - began)) "${details:--}"
	done 3< <(cells "$slice")
done
exit $failed
