#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fetches a Debian kernel (bookworm: 6.1, trixie: 6.12), a userland of another release,
# and virtme-ng into .cache/vm.
#
#   fetch.sh RELEASE            prints the directory: vmlinuz, modules/, release
#   fetch.sh userland RELEASE   prints the directory: a root that inside.sh enters
#   fetch.sh virtme-ng          prints the path of the vng command
#
# The mirror is the one this system's apt already uses, asked for other releases
# through lists of our own: the system's sources, lists and packages stay as they are.
set -eu
cd "$(dirname "$0")/.."
cache=$PWD/.cache/vm
mkdir -p "$cache"

# "site release" of the system's own Debian archive.
mirror() {
	apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(SITE)' 'Created-By: Packages' |
		awk -F'|' -v sec="$1" '$1 == "Debian" && $2 == "main" && (($3 ~ /-security/) == sec) { print $3; exit }'
}

# apt with lists of our own for the release in $1.
private() {
	rel=$1
	shift
	dir=$cache/apt/$rel
	apt-get -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root \
		-o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::preferences=/dev/null \
		-o Acquire::Languages=none -o APT::Get::AllowUnauthenticated=false "$@"
}

update() {
	rel=$1 dir=$cache/apt/$1
	site=$(mirror 0)
	[ -n "$site" ] || { echo "vmtest: this system's apt knows no Debian archive to fetch kernels from" >&2; exit 1; }
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	key=/usr/share/keyrings/debian-archive-keyring.gpg
	echo "deb [signed-by=$key arch=amd64] $site $rel main" > "$dir/sources.list"
	sec=$(mirror 1)
	[ -z "$sec" ] || echo "deb [signed-by=$key arch=amd64] $sec $rel-security main" >> "$dir/sources.list"
	private "$rel" update >&2
}

# Downloads package $2 of release $1 and unpacks it into $3.
unpack() {
	tmp=$(mktemp -d "$cache/tmp.XXXXXX")
	(cd "$tmp" && private "$1" download "$2" >&2)
	mkdir -p "$3.new"
	dpkg-deb -x "$tmp"/*.deb "$3.new"
	rm -rf "$tmp"
	rm -rf "$3"
	mv "$3.new" "$3"
}

kernel() {
	rel=$1 out=$cache/kernel-$1
	if [ ! -e "$out/release" ]; then
		update "$rel"
		# The meta package names the kernel; the generic one, since the cloud image lacks 9p.
		pkg=$(private "$rel" --print-uris --yes -o Dir::State::status=/dev/null install --no-install-recommends linux-image-amd64 |
			sed -n "s/^'[^']*' \(linux-image-[0-9][^_]*-amd64\)_.*/\1/p" | head -1)
		[ -n "$pkg" ] || { echo "vmtest: no kernel package in $rel" >&2; exit 1; }
		unpack "$rel" "$pkg" "$out"
		version=$(basename "$(ls -d "$out"/lib/modules/* "$out"/usr/lib/modules/* 2>/dev/null | head -1)")
		[ -d "$out/lib/modules" ] || { mkdir -p "$out/lib" && ln -s ../usr/lib/modules "$out/lib/modules"; }
		ln -sf "boot/vmlinuz-$version" "$out/vmlinuz"
		depmod -b "$out" "$version"
		echo "$version" > "$out/release"
	fi
	echo "$out"
}

# What building sluice and the tests of TLS take.
userland_packages="?essential gcc make clang bpftool libc6-dev libbpf-dev libelf-dev zlib1g-dev libssl-dev libyaml-dev libcmocka-dev
	openssl curl nginx-light strace python3-pytest python3-h11 procps iproute2"

# Unpacked only: no script of a package runs, so nothing is configured beyond what the
# commands above need, and making it takes seconds.
userland() {
	rel=$1 out=$cache/root-$1
	if [ ! -e "$out" ]; then
		update "$rel"
		debs=$cache/apt/$rel/cache/archives
		set -f # ?essential is apt's pattern
		# shellcheck disable=SC2086
		private "$rel" -o Dir::State::status=/dev/null -qq --yes --download-only --no-install-recommends install $userland_packages >&2
		set +f
		rm -rf "$out.build" "$out.new"
		mkdir "$out.new"
		dpkg-deb -x "$debs"/base-files_*.deb "$out.new" # has the links that others unpack through
		printf '%s\0' "$debs"/*.deb | xargs -0 -P "$(nproc)" -I DEB dpkg-deb -x DEB "$out.new"
		rm -f "$debs"/*.deb
		cp "$out.new/usr/share/base-passwd/passwd.master" "$out.new/etc/passwd"
		cp "$out.new/usr/share/base-passwd/group.master" "$out.new/etc/group"
		ln -s mawk "$out.new/usr/bin/awk"
		echo "127.0.0.1 localhost" > "$out.new/etc/hosts"
		# Emulated, Python would compile its library for minutes.
		sh vmtest/inside.sh "$out.new" sh -c 'python3 -m compileall -q -j 0 /usr/lib/python3*' >&2
		rm -rf "$out.new.build"
		mv "$out.new" "$out"
	fi
	echo "$out"
}

vng() {
	out=$cache/virtme-ng
	if [ ! -e "$out/usr/bin/vng" ]; then
		update trixie
		unpack trixie virtme-ng "$out"
	fi
	echo "$out/usr/bin/vng"
}

case ${1:-} in
virtme-ng) vng ;;
userland) userland "${2:?}" ;;
?*) kernel "$1" ;;
*) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
