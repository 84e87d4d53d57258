#!/usr/bin/env bash
# Unpacks the Docker engine of Debian trixie, which is newer than bookworm's, with all that it needs, without installing it.
#
# Usage: test/newer.sh DIR    (Debian's mirror must be within reach)
#
# DIR is then a link to a tree with a usr that serves as /usr where the engine is to run. See cmd/packages.sh for where it is cached.
set -euo pipefail

(($# == 1)) || {
	echo "usage: $0 DIR" >&2
	exit 2
}
exec "$(dirname "$0")/../cmd/packages.sh" trixie "$(dpkg --print-architecture)" "$1" docker.io tini bash dash coreutils hostname mount curl
