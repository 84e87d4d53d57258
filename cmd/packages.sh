#!/usr/bin/env bash
# Unpacks packages of Debian and all that they need, without installing them: of any suite, for any architecture.
#
# Usage: cmd/packages.sh SUITE ARCH DIR PACKAGE...    (a Debian machine; its mirror must be within reach)
#
# DIR is then a link to a tree with their files. As in dpkg's own directory, var/lib/dpkg/info/PACKAGE.list in it has the files of
# a package; status.d/PACKAGE has what it is. The trees are cached in ${XDG_CACHE_HOME:-~/.cache}/docker-volume-rbd/SUITE-ARCH.
# The mirror is asked again after 7 days, and a tree is made anew only if a package has changed. A tree that was not asked for in
# 7 days is removed.
set -euo pipefail
umask 022
export LC_ALL=C

die() {
	echo "$0: $*" >&2
	exit 1
}

(($# >= 4)) || die "usage: $0 SUITE ARCH DIR PACKAGE..."
suite=$1 arch=$2 dir=$3
shift 3
for tool in apt-get dpkg-deb; do
	[[ $(type -P $tool) ]] || die "this machine has no $tool: it is no Debian"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -s $keyring ]] || die "there is no $keyring: install debian-archive-keyring"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/docker-volume-rbd/$suite-$arch
mkdir -p "$cache"
exec {lock}>"$cache/lock"
flock "$lock"
rm -rf --one-file-system "$cache"/tmp.* # of a run that was killed
tmp=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf --one-file-system "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Packages of backports are taken only where they are asked for; elsewhere no release may be preferred, or it would be to its own
# security updates.
prefer=()
[[ $suite != *-backports ]] || prefer=(-o "APT::Default-Release=$suite")

# site NAME - prints the mirror of Debian's archive NAME that this machine's own packages come from; on cloud images it is a list
site() {
	# shellcheck disable=SC2016 # it is for apt
	apt-get indextargets --format '$(SITE)' 'Created-By: Packages' |
		awk -v end="/$1$" '{ name = $0; sub("(/|[.]list)$", "", name) } name ~ end && !n++'
}

# apt ARGUMENT... - apt-get with a state of its own, in which nothing is installed, so that all dependencies come along
apt() {
	apt-get -q -y -o "Dir::Etc::SourceList=$tmp/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o "Dir::State::Lists=$tmp/lists" -o "Dir::State::Status=$tmp/status" -o "Dir::Cache=$tmp/cache" \
		-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o APT::Sandbox::User=root "${prefer[@]}" "$@"
}

# sources ARCHIVE SUITE - the line of sources.list
sources() {
	local mirror
	mirror=$(site "$1")
	[[ -z $mirror ]] || echo "deb [arch=$arch target=Packages signed-by=$keyring] $mirror $2 main"
}

# update - fetches what the mirror has to offer; of backports, with the release that they are for
update() {
	local release=${suite%-backports}
	mkdir -p "$tmp"/{lists,cache/archives}
	: >"$tmp/status"
	sources debian "$release" >"$tmp/sources.list"
	[[ -s $tmp/sources.list ]] || die "apt knows no mirror of Debian: is one among its package sources? Then run apt-get update"
	[[ $release == "$suite" ]] || sources debian "$suite" >>"$tmp/sources.list"
	sources debian-security "$release-security" >>"$tmp/sources.list"
	apt update --error-on=any >"$tmp/log" 2>&1 && return
	grep -q "$release-security Release' does not have a Release file" "$tmp/log" || return 1
	echo "==> $suite has no security updates of its own" >&2
	sed -i "/$release-security/d" "$tmp/sources.list"
	apt update --error-on=any >"$tmp/log" 2>&1
}

# resolve PACKAGE... - prints the files of the packages and of what they need, with size and digest
resolve() {
	apt install --no-install-recommends --print-uris "$@" 2>"$tmp/log" |
		awk -v quote="'" 'index($0, quote) == 1 { print $2, $3, $4 }' | sort
}

# fetch PACKAGE... - makes the tree $tmp/root
fetch() {
	local root=$tmp/root deb package
	local dpkg=$root/var/lib/dpkg
	apt install --no-install-recommends --download-only "$@" >"$tmp/log" 2>&1 || {
		tail -n 20 "$tmp/log" >&2
		die "the packages cannot be fetched, see above"
	}
	mkdir -p "$dpkg"/{info,status.d} "$root"/usr/{bin,sbin,lib,lib64}
	ln -s usr/{bin,sbin,lib,lib64} "$root"
	for deb in "$tmp"/cache/archives/*.deb; do
		package=$(dpkg-deb -f "$deb" Package)
		dpkg-deb -f "$deb" | sed '1a Status: install ok installed' >"$dpkg/status.d/$package"
		dpkg-deb --fsys-tarfile "$deb" |
			tar -C "$root" -xv --keep-directory-symlink --numeric-owner --quoting-style=literal |
			sed -E 's#^\.##; s#/$##; s#^/(bin|sbin|lib|lib64)/#/usr/\1/#' >"$dpkg/info/$package.list"
	done
	find "$root" -type f -perm /6000 -exec chmod ug-s {} +
}

# What an earlier run with these packages was answered, and when.
asked=$cache/asked-$(printf '%s\n' "$@" | sort | sha256sum | cut -c1-12)
tree=
[[ ! -s $asked ]] || tree=$cache/$(<"$asked")
if [[ ! -d $tree || -z $(find "$asked" -mtime -7) ]]; then
	echo "==> asking for Debian's packages of $suite for $arch" >&2
	if update && resolve "$@" >"$tmp/files" && [[ -s $tmp/files ]]; then
		name=$(sha256sum <"$tmp/files" | cut -c1-12)
		if [[ ! -d $cache/$name ]]; then
			echo "==> fetching $(wc -l <"$tmp/files") of them, $(awk '{ n += $2 } END { print int(n / 1e6) }' "$tmp/files") MB" >&2
			fetch "$@"
			mv "$tmp/root" "$cache/$name"
		fi
		echo "$name" >"$tmp/asked"
		mv "$tmp/asked" "$asked"
		tree=$cache/$name
	else
		tail -n 20 "$tmp/log" >&2
		[[ -d $tree ]] || die "the mirror cannot be asked, see above"
		echo "==> the mirror cannot be asked, see above: the packages are those of $(date -r "$asked" +%F)" >&2
	fi
fi
touch "$tree"
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -path "$tree" ! -path "$tmp" -mtime +7 -exec rm -rf --one-file-system {} +
rm -f "$dir"
ln -s "$tree" "$dir"
