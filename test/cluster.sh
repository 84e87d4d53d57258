#!/usr/bin/env bash
# A throw-away Ceph cluster: one monitor, one manager, one OSD (or more), and the pool "rbd". Everything is in DIR; several can run at once.
#
# Usage: test/cluster.sh start DIR [--bluestore]   (default: memstore, which forgets everything when the OSD stops,
#                                                   and on which no erasure-coded pool can hold images)
#        test/cluster.sh kill DIR [DAEMON...]      (SIGKILL, as a power cut; all of them, or mon.a, mgr.x, osd.0)
#        test/cluster.sh boot DIR [DAEMON...]      (starts them again; in the network that the cluster is in)
#        test/cluster.sh stop DIR                  (removes DIR)
#
# Afterwards:
#   ceph -c DIR/ceph.conf [-n client.docker|client.tests] ...   keyrings are found
#   DIR/etc-ceph                                                to be bind-mounted as /etc/ceph: ceph.conf and client.docker's keyring
# client.docker has the caps that the README documents, client.tests may use every pool.
# CLUSTER_ADDR sets the address to listen on (default 127.0.0.1, may be of IPv6), CLUSTER_MONS how many monitors there are (1),
# CLUSTER_OSDS how many OSDs (1), CLUSTER_BYTES how much memory each may take (4 GiB), CLUSTER_KEYS=aes that the keys are of the type that
# clients before 19.2.6 know, where the cluster makes others by itself.
set -euo pipefail

die() {
	echo "$0: $*" >&2
	exit 1
}

# pid DAEMON - its process id while it runs (a pid file may be stale, and its number used by another process, even by another daemon of
# this cluster)
pid() {
	local pid line
	pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
	{ line=$(tr '\0' ' ' <"/proc/$pid/cmdline"); } 2>/dev/null || return 1
	[[ $line == "ceph-${1%%.*} -c $dir/ceph.conf -i ${1#*.} " ]] && echo "$pid"
}

# run COMMAND... - quiet, into DIR/cluster.log
run() {
	echo "+ $*" >>"$dir/cluster.log"
	"$@" >>"$dir/cluster.log" 2>&1 </dev/null
}

# Daemons live in a session of their own, so that Ctrl-C in a test does not reach some of them.
# In / because trixie's OSD looks for its classes in a relative path.
daemon() {
	cd /
	run setsid "ceph-$1" -c "$dir/ceph.conf" -i "$2"
}

ceph() {
	run command ceph -c "$dir/ceph.conf" --connect-timeout 60 "$@"
}

# Ports on which nobody listens, two neighbours for each monitor, below the ephemeral range.
free_port() {
	local port busy
	busy=$(ss -Hltn | awk '{ sub(/.*:/, "", $4); print $4 }')
	for _ in {1..100}; do
		port=$((10000 + 2 * (RANDOM % 10000)))
		if ! grep -qxF -f <(seq "$port" $((port + 2 * mons - 1))) <<<"$busy"; then
			echo "$port"
			return
		fi
	done
	die "no free port found"
}

config() {
	local addr=${CLUSTER_ADDR:-127.0.0.1} host ipv6=false port id
	host=$addr
	[[ $addr != *:* ]] || host="[$addr]" ipv6=true
	port=$(free_port)
	fsid=$(cat /proc/sys/kernel/random/uuid)
	mon_hosts=()
	for id in "${mon_ids[@]}"; do
		mon_hosts+=("[v2:$host:$port,v1:$host:$((port + 1))]")
		port=$((port + 2))
	done

	mkdir "$dir/etc-ceph"
	cat >"$dir/etc-ceph/ceph.conf" <<-END
		[global]
		fsid = $fsid
		mon_host = ${mon_hosts[*]}
		ms_bind_ipv6 = $ipv6
		ms_bind_ipv4 = $([[ $ipv6 = true ]] && echo false || echo true)
		auth_cluster_required = cephx
		auth_service_required = cephx
		auth_client_required = cephx
	END

	cat "$dir/etc-ceph/ceph.conf" - >"$dir/ceph.conf" <<-END
		public_addr = $addr
		run_dir = $dir
		log_file = $dir/\$name.log
		crash_dir = $dir/crash
		# one copy is enough, and says so without a health warning
		osd_pool_default_size = 1
		osd_pool_default_min_size = 1
		osd_pool_default_pg_num = 8
		osd_pool_default_pg_autoscale_mode = off
		osd_crush_chooseleaf_type = 0
		mon_allow_pool_size_one = true
		mon_allow_pool_delete = true
		mon_warn_on_pool_no_redundancy = false
		auth_allow_insecure_global_id_reclaim = false

		[client]
		keyring = $dir/ceph.\$name.keyring
		log_file =

		[mon]
		mon_data = $dir/\$name
		mon_data_avail_warn = 1
		mon_data_avail_crit = 1
		mon_cluster_log_file = $dir/cluster.\$id.log
		mon_memory_autotune = false
		rocksdb_cache_size = 16777216
		admin_socket = $dir/\$name.asok
		pid_file = $dir/\$name.pid

		[mgr]
		mgr_data = $dir/mgr.x
		mgr_initial_modules =

		[osd]
		osd_data = $dir/\$name
		admin_socket = $dir/\$name.asok
		pid_file = $dir/\$name.pid
		osd_objectstore = $store
		memstore_device_bytes = ${CLUSTER_BYTES:-4294967296}
		bluestore_block_size = 10737418240
		bluestore_fsck_on_mkfs = false
		bluestore_cache_autotune = false
		bluestore_cache_size = 67108864
		osd_op_num_shards = 2
		osd_op_num_threads_per_shard = 1
		osd_min_pg_log_entries = 100
		osd_max_pg_log_entries = 200

		[mgr.x]
		admin_socket = $dir/\$name.asok
		pid_file = $dir/\$name.pid
	END
}

# key ENTITY CAPS... - makes its keyring; mkfs of the monitor imports them all, so that no "ceph auth" is needed
key() {
	local name=$1 keyring=$dir/ceph.$1.keyring caps=()
	shift
	while (($#)); do
		caps+=(--cap "$1" "$2")
		shift 2
	done
	case $name in
	mon.) keyring=$dir/keyring ;;
	mgr.x | osd.?) keyring=$dir/$name/keyring ;;
	esac
	run ceph-authtool -C "$keyring" -n "$name" --gen-key ${CLUSTER_KEYS:+--key-type "$CLUSTER_KEYS"} "${caps[@]}"
	[[ $name == mon. ]] || run ceph-authtool "$dir/keyring" --import-keyring "$keyring"
}

create() {
	local uuid id jobs=()
	mkdir "$dir/mgr.x" "${osd_ids[@]/#/$dir/osd.}" "$dir/crash"
	config
	key mon. mon 'allow *'
	key client.admin mon 'allow *' mgr 'allow *' osd 'allow *' mds 'allow *'
	key mgr.x mon 'allow profile mgr' osd 'allow *' mds 'allow *'
	for id in "${osd_ids[@]}"; do
		key "osd.$id" mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *'
	done
	local docker_caps='profile rbd, allow command "mgr dump", allow command "config-key get" with key prefix "docker_volume/"'
	key client.docker mon "$docker_caps" osd 'profile rbd pool=rbd' mgr 'profile rbd pool=rbd'
	key client.tests mon "$docker_caps" osd 'profile rbd' mgr 'profile rbd'
	cp "$dir/ceph.client.docker.keyring" "$dir/etc-ceph/"

	run monmaptool --create --fsid "$fsid" ${CLUSTER_KEYS:+"--auth-allowed-ciphers=aes256k,$CLUSTER_KEYS"} "$dir/monmap"
	for id in "${!mon_ids[@]}"; do
		run monmaptool --addv "${mon_ids[id]}" "${mon_hosts[id]}" "$dir/monmap"
	done
	for id in "${mon_ids[@]}"; do
		mkdir "$dir/mon.$id"
		run ceph-mon -c "$dir/ceph.conf" -i "$id" --mkfs --monmap "$dir/monmap" --keyring "$dir/keyring"
		daemon mon "$id"
	done
	daemon mgr x &
	local mgr=$!
	for id in "${osd_ids[@]}"; do
		uuid=$(cat /proc/sys/kernel/random/uuid)
		ceph osd new "$uuid" "$id"
		{ run ceph-osd -c "$dir/ceph.conf" -i "$id" --mkfs --osd-uuid "$uuid" && daemon osd "$id"; } &
		jobs+=($!)
	done
	for id in "${jobs[@]}"; do
		wait "$id"
	done
	ceph osd pool create rbd
	run timeout 120 rbd -c "$dir/ceph.conf" pool init rbd # writes an object: waits until the OSD serves
	wait "$mgr"
	for _ in {1..600}; do # several commands need the manager
		if ceph mgr stat && tail -n 5 "$dir/cluster.log" | grep -q '"available": true'; then
			return
		fi
		sleep 0.2
	done
	echo "the manager did not become available" >>"$dir/cluster.log"
	return 1
}

start() {
	[[ $(type -P ceph-mon) && $(type -P ceph-osd) && $(type -P ceph-mgr) ]] || die "Ceph is not installed: run test/deps.sh"
	((${#dir} <= 80)) || die "$dir is too long for a Unix socket's path: take a directory with a short name"
	mkdir -p "$dir"
	rmdir "$dir" 2>/dev/null || die "$dir is not empty: stop the cluster in it, or take another directory"
	mkdir -m 755 "$dir"

	echo "==> starting a throw-away Ceph cluster in $dir"
	trap 'failed $?' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	create
	trap - EXIT
}

# shellcheck disable=SC2317,SC2329 # called by the trap
failed() {
	trap '' INT TERM
	if (($1 < 128)); then
		{ tail -n 15 "$dir/cluster.log" && grep -h ' -1 ' "$dir"/*.[ax0-9].log | tail -n 5; } >&2 2>/dev/null || true
		echo "$0: the cluster did not start: the last lines of its logs are above" >&2
	fi
	stop
	exit "$1"
}

# daemons - all of the cluster; the OSDs first: they take leave of the monitor, and wait for it if that is gone
daemons() { (cd "$dir" && printf '%s\n' osd.? mgr.x mon.?); }

crash() {
	local daemon p i
	for daemon in "$@"; do
		if p=$(pid "$daemon"); then kill -KILL "$p"; fi
	done
	for daemon in "$@"; do
		for ((i = 0; i < 600; i++)); do
			pid "$daemon" >/dev/null || continue 2
			sleep 0.1
		done
		die "$daemon of $dir does not end, even on SIGKILL"
	done
}

boot() {
	local d
	for d in $(printf '%s\n' "$@" | tac); do # an OSD ends if no monitor gives it its configuration
		! pid "$d" >/dev/null || die "$d of $dir runs already"
		daemon "${d%%.*}" "${d#*.}"
	done
}

stop() {
	local daemon p i
	for daemon in $(daemons); do
		if p=$(pid "$daemon"); then kill "$p" 2>/dev/null || true; fi
		for i in {1..600}; do
			p=$(pid "$daemon") || break
			((i != 300)) || kill -KILL "$p" 2>/dev/null || true
			sleep 0.1
		done
		! pid "$daemon" >/dev/null || die "$daemon of $dir does not end, even on SIGKILL"
	done
	rm -rf "$dir"
}

usage() {
	sed -n '/^# Usage/,/^#$/s/^# \?//p' "$0" >&2
	exit 2
}

(($# >= 2)) || usage
command=$1
dir=$(realpath -m "$2")
shift 2
mons=${CLUSTER_MONS:-1} mon_ids=(a b c d e)
mon_ids=("${mon_ids[@]:0:mons}")
osds=${CLUSTER_OSDS:-1} osd_ids=(0 1 2 3 4)
osd_ids=("${osd_ids[@]:0:osds}")
store=memstore
[[ $command == start || ! -e $dir || -e $dir/ceph.conf ]] || die "$dir holds no cluster: nothing was done to it"

case "$command $*" in
"start ") start ;;
"start --bluestore") store=bluestore start ;;
"kill "* | "boot "*)
	(($#)) || { mapfile -t daemons < <(daemons) && set -- "${daemons[@]}"; }
	if [[ $command == kill ]]; then crash "$@"; else boot "$@"; fi
	;;
"stop ") stop ;;
*) usage ;;
esac
