#!/usr/bin/env bash
# A throw-away Docker engine with its own containerd, without a bridge or iptables. Everything is in DIR; several can run at once.
#
# Usage: test/engine.sh start DIR [DOCKERD-FLAG...]   (also after "kill")
#        test/engine.sh restart DIR [DOCKERD-FLAG...] (orderly, keeps the data, and the flags if none are given)
#        test/engine.sh kill DIR                      (SIGKILL to dockerd alone: containers and plugins stay)
#        test/engine.sh image DIR                     (imports busybox:test, made of busybox-static)
#        test/engine.sh stop DIR                      (leaves no process and no mount, removes DIR)
#
# Then: DOCKER_HOST=unix://DIR/docker.sock docker run --network=host busybox:test ...
set -euo pipefail

die() {
	echo "$0: $*" >&2
	exit 1
}

# pid NAME FILE - the process id in it, while that is this engine's NAME (the file may be stale, and its number used by another process,
# even by another one of this engine)
pid() {
	local pid exe
	pid=$(cat "$2" 2>/dev/null) || return 1
	{ IFS= read -r -d '' exe <"/proc/$pid/cmdline"; } 2>/dev/null || return 1
	[[ ${exe##*/} == "$1" ]] && grep -qsF -- "$dir/" "/proc/$pid/cmdline" && echo "$pid"
}

dockerd_pid() { pid dockerd "$dir/dockerd.pid"; }
containerd_pid() { pid containerd "$dir/exec/containerd/containerd.pid"; }

# within SECONDS COMMAND... - waits until it succeeds
within() {
	local tries=$(($1 * 10))
	shift
	while ! "$@" >/dev/null 2>&1; do
		((tries--)) || return 1
		sleep 0.1
	done
}

gone() { ! "$1"; }

answers() { timeout 20 docker -H "unix://$dir/docker.sock" version; }

start() {
	[[ $(type -P dockerd) && $(type -P docker) ]] || die "no Docker engine is installed: run test/deps.sh"
	((${#dir} <= 70)) || die "$dir is too long for a Unix socket's path: take a directory with a short name"
	! dockerd_pid >/dev/null || die "an engine runs in $dir already"
	rm -f "$dir/dockerd.pid"
	# dockerd waits in vain for a dead containerd whose pid lives on, be it as a zombie.
	containerd_pid >/dev/null || rm -f "$dir/exec/containerd/containerd.pid"

	local flags pid
	mapfile -d '' flags <"$dir/flags"
	# A session of its own: Ctrl-C in a test must not reach it.
	setsid dockerd --data-root "$dir/data" --exec-root "$dir/exec" -H "unix://$dir/docker.sock" -p "$dir/dockerd.pid" \
		--bridge=none --iptables=false "${flags[@]}" >>"$dir/dockerd.log" 2>&1 </dev/null &
	pid=$!
	for _ in {1..1200}; do # as long as it lives; a busy machine takes its time
		if answers >/dev/null 2>&1; then return; fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 20 "$dir/dockerd.log" >&2
	die "the engine did not start: the end of $dir/dockerd.log is above (\"stop\" cleans up)"
}

# ends SECONDS NAME - SIGTERM to NAME_pid, SIGKILL if it does not end in time
ends() {
	local p
	if p=$("$2_pid"); then kill "$p" 2>/dev/null || true; fi
	within "$1" gone "$2_pid" && return
	if p=$("$2_pid"); then kill -KILL "$p" 2>/dev/null || true; fi
	within 30 gone "$2_pid" || die "$2 of $dir does not end, even on SIGKILL"
}

# The containers' and plugins' ids, from whatever has survived of them.
ids() {
	find "$dir/data/containers" "$dir/data/plugins" "$dir/exec/containerd/daemon" -regextype posix-extended \
		-maxdepth 3 -type d -regex '.*/[0-9a-f]{64}' -printf '%f\n' 2>/dev/null | sort -u || true
}

# The processes that an engine has left behind: shims, whose command line has DIR, and what runs in the containers' cgroups.
leftovers() {
	local proc ids args cgroup
	ids=$(ids | paste -sd '|')
	for proc in /proc/[0-9]*; do
		{ mapfile -d '' args <"$proc/cmdline" && cgroup=$(<"$proc/cgroup"); } 2>/dev/null || continue
		((${#args[@]})) || continue # a zombie
		if [[ "${args[*]}" == *"$dir/exec/"* || ($ids && $cgroup =~ $ids) ]]; then
			echo "${proc#/proc/}"
		fi
	done
}

no_leftovers() { [[ -z $(leftovers) ]]; }

unmount_all() {
	local m
	# Mount points as the kernel escapes them, the innermost first.
	while read -r m; do
		umount -l -- "$(printf '%b' "$m")" 2>/dev/null || true
	done < <(awk -v dir="$dir/" 'index($5 "/", dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
}

stop() {
	if [[ -e $dir/flags ]]; then
		# Containers first: the plugins then unmount their volumes, and nobody waits for programs that ignore SIGTERM.
		if answers >/dev/null 2>&1; then
			timeout 60 docker -H "unix://$dir/docker.sock" ps -aq |
				timeout 60 xargs -r docker -H "unix://$dir/docker.sock" rm -f >/dev/null 2>&1 || true
		fi
		ends 30 dockerd
		ends 10 containerd
		local p id
		for _ in {1..100}; do
			for p in $(leftovers); do kill -KILL "$p" 2>/dev/null || true; done
			if no_leftovers; then break; fi
			sleep 0.2
		done
		no_leftovers || die "processes of $dir do not end, even on SIGKILL: $(leftovers | tr '\n' ' ')"
		unmount_all
		for id in $(ids); do # empty by now
			find /sys/fs/cgroup -depth -type d -name "*$id*" -exec rmdir {} + 2>/dev/null || true
		done
	elif [[ -e $dir ]]; then
		die "$dir holds no engine: nothing stopped, nothing removed"
	fi
	rm -rf --one-file-system "$dir"
}

image() {
	local applet
	[[ $(type -P busybox) ]] || die "busybox-static is not installed: run test/deps.sh"
	root=$(mktemp -d)
	trap 'rm -rf "$root"' EXIT
	mkdir -p "$root"/{bin,dev,etc,proc,root,sys,tmp}
	chmod 1777 "$root/tmp"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	cp "$(type -P busybox)" "$root/bin/busybox"
	for applet in $("$root/bin/busybox" --list); do
		[[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
	done
	tar -C "$root" --numeric-owner -c . |
		docker -H "unix://$dir/docker.sock" import -c 'ENV PATH=/bin' -c 'CMD ["sh"]' - busybox:test >/dev/null
}

usage() {
	sed -n '/^# Usage/,/^#$/s/^# \?//p' "$0" >&2
	exit 2
}

(($# >= 2)) || usage
command=$1
dir=$(realpath -m "$2")
shift 2
[[ $command == start || $command == restart ]] || (($# == 0)) || usage
case $command in
start | stop) ;;
*) [[ -e $dir/flags ]] || die "$dir holds no engine: start one first" ;;
esac

case $command in
start)
	mkdir -p "$dir"
	if (($#)) || [[ ! -e $dir/flags ]]; then
		: >"$dir/flags"
		(($# == 0)) || printf '%s\0' "$@" >"$dir/flags"
	fi
	echo "==> starting a throw-away Docker engine in $dir"
	start
	;;
restart)
	ends 60 dockerd
	(($# == 0)) || printf '%s\0' "$@" >"$dir/flags"
	start
	;;
kill)
	p=$(dockerd_pid) || die "no engine runs in $dir"
	kill -KILL "$p"
	within 60 gone dockerd_pid || die "dockerd of $dir does not end on SIGKILL"
	;;
image) image ;;
stop) stop ;;
*) usage ;;
esac
