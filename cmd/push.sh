#!/usr/bin/env bash
# Pushes the managed plugin to a registry, under a tag for each architecture: Docker installs a plugin from a manifest of its own, and
# from no list of several.
#
# Usage: cmd/push.sh REGISTRY/NAME[:TAG] ARCH=DIR...    (DIR as cmd/plugin.sh makes it; a Docker engine, logged in to the registry)
#
# The tags are TAG-ARCH; without TAG it is VERSION, or what git describes.
set -euo pipefail

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# >= 2)) || die "usage: $0 REGISTRY/NAME[:TAG] ARCH=DIR..."
name=$1
shift
[[ $name == */* ]] || die "$name has no registry: give REGISTRY/NAME[:TAG], docker.io/USER/NAME for instance"
tag=${VERSION:-$(git -C "$(dirname "$0")" describe --tags --always --dirty)}
if [[ ${name##*/} == *:* ]]; then
	tag=${name##*:} name=${name%:*}
fi
insecure=()
[[ $name != 127.* && $name != localhost:* ]] || insecure=(--insecure) # as dockerd has it for these
ref=
trap '[[ -z $ref ]] || docker plugin rm "$ref" >/dev/null 2>&1 || true' EXIT
for dir; do
	ref=$name:$tag-${dir%%=*}
	dir=${dir#*=}
	[[ -s $dir/config.json ]] || die "$dir holds no plugin: cmd/plugin.sh makes one"
	if docker plugin inspect "$ref" >/dev/null 2>&1 && ! docker plugin rm "$ref" >/dev/null; then
		used=$ref ref=
		die "$used is installed here and enabled: that one is not replaced"
	fi
	docker plugin create "$ref" "$dir" >/dev/null
	docker plugin push "$ref" >/dev/null || die "push $ref: see above; docker login, if the registry says so"
	docker plugin rm "$ref" >/dev/null
	# docker plugin push does not tell it.
	digest=$(docker manifest inspect -v "${insecure[@]}" "$ref" | sed -n '0,/"digest"/s/.*"digest": "\(sha256:[0-9a-f]*\)".*/\1/p') ||
		digest="(docker manifest inspect does not tell its digest)"
	echo "$ref $digest"
	ref=
done
echo "==> on every node, whatever its architecture:"
echo "docker plugin install --grant-all-permissions --alias rbd $name:$tag-\$(docker version -f '{{.Server.Arch}}')"
