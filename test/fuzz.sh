#!/usr/bin/env bash
# Runs every fuzz test of the repository, one at a time (go test fuzzes one per run). What they find is kept in the
# package's testdata/fuzz and fails the ordinary tests from then on.
#
# Usage: FUZZTIME=20s TAGS=pacific test/fuzz.sh
set -euo pipefail
cd "$(dirname "$0")/.."

time=${FUZZTIME:-20s}
found=$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort) || { echo "$0: no fuzz test found" >&2; exit 1; }
total=$(wc -l <<<"$found")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM

n=0
while IFS=: read -r file func; do
	n=$((n + 1))
	name=${func#func }
	package=$(dirname "$file")
	echo "==> fuzz $n/$total: $name in $package for $time"
	if ! go test -tags "${TAGS:-}" -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$package" >"$log" 2>&1 </dev/null; then
		cat "$log" >&2
		echo "$0: $name in $package failed; the input is in $package/testdata/fuzz/$name" >&2
		exit 1
	fi
done <<<"$found"
