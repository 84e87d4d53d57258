#!/usr/bin/env bash
# Has the kernel run programs of arm64 by qemu, while a command runs.
#
# Usage: test/binfmt.sh COMMAND...    (root; needs qemu-user-static)
set -euo pipefail

(($#)) || { sed -n 's/^# Usage/usage/p' "$0" >&2; exit 2; }
formats=/proc/sys/fs/binfmt_misc
[[ -e $formats/register ]] || mount -t binfmt_misc binfmt_misc "$formats"
if [[ ! -e $formats/qemu-aarch64 ]]; then
	trap 'echo -1 >"$formats/qemu-aarch64"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	# The header of a 64-bit program of that machine, executable or position-independent. F: the emulator is opened now, so that it
	# is found from any root.
	printf '%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$(type -P qemu-aarch64-static)"':F' >"$formats/register"
fi
"$@"
