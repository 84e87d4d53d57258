#!/usr/bin/env bash
# Takes away what a swarm's test that was killed has left: its cluster, and the network and mount namespaces of its nodes, which have died
# with it.
#
# Usage: test/leftovers.sh DIR    (TMPDIR of the test)
set -euo pipefail

(($# == 1)) || { sed -n 's/^# Usage/usage/p' "$0" >&2; exit 2; }
rc=0
for bed in "$1"/sw*; do
	[[ -d $bed ]] || continue
	[[ ! -d $bed/c ]] || "$(dirname "$0")/cluster.sh" stop "$bed/c" || rc=1
	while read -r ns; do ip netns del "$ns" 2>/dev/null || true; done < <(cat "$bed/netns" 2>/dev/null)
	for ns in "$bed"/*.mnt; do umount -l "$ns" 2>/dev/null || true; done
done
exit $rc
