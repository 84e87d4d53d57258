#!/usr/bin/env bash
# Shows the plugin at work: a throw-away Ceph cluster, two nodes, a volume that moves when the first of them dies.
#
# Usage: test/demo.sh          (root and Go; about three minutes, half of it the build of the plugin)
#        test/demo.sh clean    (takes away all that it made; also after a demo that failed half-way)
#
# Node 1 is the Docker engine of this machine if one answers, else a throw-away one; node 2 is always a throw-away one.
# On an engine that is not ours everything is called rbd-demo: the plugin, the image, the containers, the volume.
# DEMO_DIR sets the directory of all state (default /tmp/docker-volume-rbd-demo).
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$(realpath -m "${DEMO_DIR:-/tmp/docker-volume-rbd-demo}")
plugin=rbd-demo
image=rbd-demo-busybox
app=rbd-demo-app
volume=rbd-demo-data
ticker=

die() {
	echo "$0: $*" >&2
	exit 1
}

# step TITLE LINE... - what comes and why
step() {
	steps=$((${steps:-0} + 1))
	printf '\n== %d. %s   [%d:%02d]\n' "$steps" "$1" $((SECONDS / 60)) $((SECONDS % 60))
	printf '   %s\n' "${@:2}"
}

# show COMMAND... - as one would type it; $N1, $N2 and $C are explained where they come up
show() {
	local word line=
	for word; do
		[[ $word =~ ^[a-zA-Z0-9_./:=,@%+{}-]+$|^\$[A-Z][0-9]?(/[a-z.]*)?$ ]] || word="'$word'"
		line+=" $word"
	done
	printf '  $%s\n' "$line"
}

indent() { sed -u 's/^/    /'; }

# COMMANDS on a node: shown, then run
node1() {
	show docker -H "\$N1" "$@"
	docker -H "$N1" "$@" 2>&1 | indent
}
node2() {
	show docker -H "\$N2" "$@"
	docker -H "$N2" "$@" 2>&1 | indent
}
# ceph's tools know the cluster by its configuration file
tool() {
	show "$1" -c "\$C" "${@:2}"
	"$1" -c "$C" "${@:2}" 2>&1 | indent
}

# slow COMMAND... - tells the time while it runs
slow() {
	local rc=0 self=$$
	(
		started=$SECONDS
		while sleep 1 && kill -0 "$self" 2>/dev/null; do
			took=$((SECONDS - started))
			if [[ -t 2 ]]; then
				printf '\r    ... %d s \r' "$took"
			elif ((took == 2 || took % 10 == 0)); then
				printf '    ... %d s\n' "$took"
			fi
		done
	) >&2 &
	ticker=$!
	"$@" || rc=$?
	stop_ticker
	return "$rc"
}

stop_ticker() {
	[[ $ticker ]] || return 0
	kill "$ticker" 2>/dev/null || true
	wait "$ticker" 2>/dev/null || true
	ticker=
}

# shellcheck disable=SC2317,SC2329 # called by the trap
ended() {
	local rc=$?
	stop_ticker
	((rc == 0)) || printf '\nThe demo has not come to its end. To take away what it made: %s clean\n' "$0" >&2
	exit "$rc"
}

# engine - prints the address of this machine's own engine if there is one that can run the plugin
engine() {
	local host security
	host=${DOCKER_HOST:-$(docker context inspect -f '{{.Endpoints.docker.Host}}' 2>/dev/null)} || return 1
	[[ $host == unix://* ]] || return 1 # the paths given to it are those of this machine
	security=$(timeout 10 docker -H "$host" info -f '{{.ServerVersion}} {{.SecurityOptions}}' 2>/dev/null) || return 1
	[[ $security == [0-9]* && $security != *rootless* ]] || return 1 # rootless: may not mount
	echo "$host"
}

# install NODE NAME - the plugin into one engine, with the settings of the demo
install() {
	slow "$1" plugin create "$plugin" "$dir/plugin"
	"$1" plugin set "$plugin" "ceph.source=$dir/c/etc-ceph" "NODE_NAME=$1"
	# 0: Docker's own limits hold, two minutes for a mount. The default is 30 s for everything.
	slow "$1" plugin enable --timeout 0 "$plugin"
}

# processes - of the plugin on node 1, its image servers included
processes() {
	local id
	id=$(docker -H "$N1" plugin inspect -f '{{.ID}}' "$plugin")
	grep -ls -- "$id" /proc/[0-9]*/cgroup | cut -d/ -f3
}

demo() {
	((EUID == 0)) || die "run it as root: it starts a cluster and an engine, and plugins mount"
	[[ $(type -P go) ]] || die "Go is not installed: see go.mod for the version"
	((${#dir} <= 60)) || die "$dir is too long for a Unix socket's path: take a shorter DEMO_DIR"
	[[ ! -e $dir ]] || die "$dir is there already, from an earlier demo? First: $0 clean"
	trap ended EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM

	step "What it needs" "Debian's packages of Ceph and Docker, those that are missing. No service is started."
	show test/deps.sh
	slow test/deps.sh

	N1=$(engine) || N1=unix://$dir/node1/docker.sock
	[[ -z ${DOCKER_HOST-} || $N1 == "$DOCKER_HOST" ]] ||
		die "DOCKER_HOST is $DOCKER_HOST: no engine of this machine (unix://...) answers there that may mount; unset it to get one"
	N2=unix://$dir/node2/docker.sock
	C=$dir/c/ceph.conf
	! docker -H "$N1" plugin inspect "$plugin" >/dev/null 2>&1 ||
		die "the engine $N1 has a plugin $plugin already, of a demo in another directory? If it is of no use: docker plugin rm -f $plugin"
	mkdir -p "$dir"
	printf '%s\n' "$N1" >"$dir/demo"

	step "A Ceph cluster" "One monitor, one manager, one OSD that keeps all in memory. The plugin's user has the caps of the README."
	show test/cluster.sh start "$dir/c"
	slow test/cluster.sh start "$dir/c"
	show C="$C"
	tool ceph health

	step "Two nodes" "A node is a Docker engine with the plugin. Both are on this machine; they share nothing but the cluster."
	if [[ $N1 == *"$dir/"* ]]; then
		show test/engine.sh start "$dir/node1"
		slow test/engine.sh start "$dir/node1"
	else
		echo "   Node 1 is the engine that runs here. The demo touches nothing of yours on it."
	fi
	show test/engine.sh start "$dir/node2"
	slow test/engine.sh start "$dir/node2"
	show N1="$N1"
	show N2="$N2"
	# An image to run, made of busybox-static: nothing comes from a registry.
	test/engine.sh image "$dir/node2"
	docker -H "$N2" tag busybox:test "$image"
	docker -H "$N2" save "$image" | docker -H "$N1" load >/dev/null

	step "The plugin" "Built from this source, then created in both engines. Where the kernel has no rbd it maps in userspace."
	show cmd/plugin.sh "$dir/plugin"
	slow cmd/plugin.sh "$dir/plugin"
	install node1
	install node2

	step "A volume" "It is an image in Ceph, made in a moment. The filesystem follows with the first mount."
	node1 volume create -d "$plugin" -o size=1G "$volume"
	tool rbd ls
	echo "   Node 2 sees it too:"
	node2 volume ls

	step "Write in one container ..." "The filesystem is made now. Only an empty image of a volume that the plugin has created is ever formatted."
	node1 run --rm --network none -v "$volume:/data" "$image" sh -c 'echo "written on node 1" > /data/note; df -h /data'

	step "... and read in another" "In between the volume was unmounted, unmapped and free for any node."
	node1 run --rm --network none -v "$volume:/data" "$image" cat /data/note

	step "What Docker knows of it" "\"node\" appears while a node has the volume."
	node1 volume inspect "$volume"

	step "One node at a time" "A container on node 1 has the volume. Node 2 may neither mount nor remove it, and is told who has it."
	node1 run -d --name "$app" --network none -v "$volume:/data" "$image" \
		sh -c 'while sleep 1; do date | dd of=/data/alive conv=fsync; done'
	if slow node2 volume rm "$volume"; then
		die "node 2 removed a volume that node 1 uses"
	fi

	step "Node 1 dies" "SIGKILL to all processes of its plugin, the Ceph client among them: to Ceph that is a power cut." \
		"Ceph takes a client for dead after 30 s of silence. Then node 2 fences it and takes the volume over."
	local pids
	mapfile -t pids < <(processes)
	((${#pids[@]})) || die "no process of the plugin on node 1 found"
	show kill -KILL "${pids[@]}"
	kill -KILL "${pids[@]}"
	# shellcheck disable=SC2016 # for the shell in the container
	slow node2 run --rm --network none --mount "type=volume,source=$volume,target=/data,volume-driver=$plugin" "$image" \
		sh -c 'cat /data/note; echo "last sign of node 1: $(cat /data/alive)"; echo "now: $(date)"'
	echo "   The fence: for years no OSD will accept a write of that client, should it come back."
	tool ceph osd blocklist ls
	echo "   The container that still runs on node 1 has lost its disk:"
	node1 exec "$app" sh -c 'echo "too late" | dd of=/data/note conv=fsync' || true

	step "Over to you" "All of it goes on running. Type the three lines first, they are used above and below."
	cat <<-END
		  $ N1=$N1
		  $ N2=$N2
		  $ C=$C
		   Node 1 starts again, and its container with it. The volume is free, so it is a matter of a second:
		  $ docker -H \$N1 restart -t 1 $app; docker -H \$N1 exec $app cat /data/note
		   Who has it, seen from Ceph:
		  $ docker -H \$N2 volume inspect $volume
		  $ rados -c \$C -p rbd ls | grep docker_volume
		   To take everything away:
		  $ ${DEMO_DIR:+DEMO_DIR=$DEMO_DIR }make demo-clean
	END
	trap - EXIT
}

clean() {
	((EUID == 0)) || die "run it as root"
	if [[ ! -e $dir ]]; then
		echo "There is no demo in $dir: nothing to clean."
		return
	fi
	[[ -e $dir/demo ]] || die "$dir was not made by the demo: it is left alone"
	N1=$(<"$dir/demo")
	echo "==> stopping node 2"
	[[ ! -e $dir/node2 ]] || slow test/engine.sh stop "$dir/node2"
	echo "==> stopping node 1"
	if [[ $N1 != *"$dir/"* ]]; then
		docker -H "$N1" version >/dev/null 2>&1 ||
			die "the engine $N1 does not answer: start it and clean again, the demo's plugin is still in it"
		slow leave
	elif [[ -e $dir/node1 ]]; then
		slow test/engine.sh stop "$dir/node1"
	fi
	echo "==> stopping the cluster"
	[[ ! -e $dir/c ]] || slow test/cluster.sh stop "$dir/c"
	rm -rf --one-file-system "$dir"
}

# leave - takes all that is called rbd-demo out of an engine that is not ours
leave() {
	local engine=(docker -H "$N1")
	"${engine[@]}" rm -f "$app" >/dev/null 2>&1 || true
	if "${engine[@]}" plugin inspect "$plugin" >/dev/null 2>&1; then
		"${engine[@]}" volume rm -f "$volume" >/dev/null 2>&1 || true
		"${engine[@]}" plugin rm -f "$plugin" >/dev/null
	fi
	# Again: without the plugin nothing can hang any more.
	! "${engine[@]}" inspect "$app" >/dev/null 2>&1 || "${engine[@]}" rm -f "$app" >/dev/null
	! "${engine[@]}" image inspect "$image" >/dev/null 2>&1 || "${engine[@]}" image rm "$image" >/dev/null
}

case $* in
"") demo ;;
clean) clean ;;
*)
	sed -n '/^# Usage/,/^#$/s/^# \?//p' "$0" >&2
	exit 2
	;;
esac
