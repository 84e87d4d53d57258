#!/usr/bin/env bash
# Makes a snapshot of each volume that this node has, nightly-YYYY-MM-DD, and then removes those of its nightly ones that
# are older than KEEP days. Run it each night on every node: so every volume in use gets one, from the node that can freeze
# its filesystem. A volume that no node has does not change; it is left alone, and so are its old snapshots.
#
# Usage: snapshot.sh [-v]     -v tells what is done; else there is no output unless something fails, as cron likes it
#
#   KEEP     14     days
#   PLUGIN   rbd    its name on this node
#
#   # /etc/cron.d/rbd-snapshot; or a systemd timer: snapshots.yml
#   7 3 * * * root KEEP=14 /usr/local/sbin/rbd-snapshot
#
# What fails is one line on stderr, all the rest is done, and the exit code is 1. Run twice a day it makes one snapshot.
# Needs root, docker, curl and jq (apt-get install curl jq).
set -euo pipefail
export LC_ALL=C

plugin=${PLUGIN:-rbd}
keep=${KEEP:-14}
rc=0

failed() {
	echo "${0##*/}: $*" >&2
	rc=1
}

die() {
	failed "$@"
	exit 1
}

say() { [[ -z $verbose ]] || echo "$*"; }

# ask REQUEST BODY - puts the plugin's answer into $answer; fails, and says why, if there is none or it is an error
ask() {
	local err
	if ! answer=$(curl -sS --max-time 150 --unix-socket "$socket" -d "$2" "http://rbd/$1" 2>&1); then
		failed "$1 $2: $answer"
		answer='{}'
		return 1
	fi
	# An answer that is no object is not the plugin's, or of one that does not know the request.
	err=$(jq -r '.Err // empty' <<<"$answer" 2>/dev/null) || err="$1: $answer" answer='{}'
	[[ -z $err ]] || {
		failed "$err"
		return 1
	}
}

# snapshots VOLUME - makes today's, and removes the old ones; if today's cannot be made the old ones stay
snapshots() {
	local volume=$1 snap all
	ask Snapshot.List "{\"volume\": \"$volume\"}" || return 0
	mapfile -t all < <(jq -r '.snapshots[].snapshot' <<<"$answer")
	if [[ " ${all[*]} " != *" nightly-$today "* ]]; then
		ask Snapshot.Create "{\"volume\": \"$volume\", \"snapshot\": \"nightly-$today\"}" || return 0
		say "$volume: made nightly-$today$(jq -r 'if .frozen then "" else ", not frozen: what was synced is in it" end' <<<"$answer")"
	fi
	for snap in "${all[@]}"; do
		if [[ $snap =~ ^nightly-[0-9]{4}-[0-9]{2}-[0-9]{2}$ && $snap < nightly-$oldest ]]; then
			ask Snapshot.Remove "{\"volume\": \"$volume\", \"snapshot\": \"$snap\"}" || continue
			say "$volume: removed $snap"
		fi
	done
}

verbose=
[[ ${1-} != -v ]] || {
	verbose=yes
	shift
}
(($# == 0)) || die "usage: ${0##*/} [-v]"
[[ $keep =~ ^[0-9]+$ ]] || die "KEEP=$keep: give a number of days"
[[ $(type -P docker) && $(type -P curl) && $(type -P jq) ]] || die "it needs docker, curl and jq: apt-get install curl jq"

today=$(date +%F)
oldest=$(date -d "12:00 $keep days ago" +%F) # noon: no change of the clocks makes it another day
id=$(docker plugin inspect -f '{{.ID}}' "$plugin" 2>&1) || die "plugin $plugin: ${id##*$'\n'}" # the last line, the first one is empty
socket=/run/docker/plugins/$id/rbd.sock
node=$(docker plugin inspect -f '{{range .Settings.Env}}{{println .}}{{end}}' "$plugin" | sed -n 's/^NODE_NAME=//p')

ask Guard.List '{}' || true # with an error, it has what could be learned
mapfile -t volumes < <(jq -r --arg node "${node:-$(uname -n)}" \
	'.guards[]? | select(.node == $node and .state == "mapped") | .volume' <<<"$answer")
for volume in "${volumes[@]}"; do
	snapshots "$volume"
done
exit "$rc"
