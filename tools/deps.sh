#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing on Debian and Ubuntu, by package name, and says so
# first. Usage: sh tools/deps.sh [build|test|bench|vm|browser]...   (build is always in)
# Does nothing, quickly and without root, when everything is there.
set -eu

build="gcc make clang llvm libc6-dev libbpf-dev libelf-dev zlib1g-dev libssl-dev libyaml-dev openssl curl ca-certificates pkg-config"
test="python3 python3-pytest python3-h11 libcmocka-dev wrk procps iproute2 git util-linux libclang-rt-dev"
bench="haproxy nginx-light wrk"
browser="chromium"
vm="qemu-system-x86 udev busybox-static kmod file cpio python3-argcomplete python3-requests nginx-light strace"

# bpftool is a package of its own on Debian and part of linux-tools on Ubuntu.
if ! command -v bpftool >/dev/null 2>&1 && ! [ -x /usr/sbin/bpftool ]; then
	if [ -r /etc/os-release ] && grep -qi '^ID=ubuntu' /etc/os-release; then
		build="$build linux-tools-common linux-tools-generic"
	else
		build="$build bpftool"
	fi
fi

want="$build"
for group in "$@"; do
	case $group in
	build) ;;
	test) want="$want $test" ;;
	bench) want="$want $bench" ;;
	vm) want="$want $vm" ;;
	browser) want="$want $browser" ;;
	*)
		echo "deps.sh: unknown group '$group' (build, test, bench, vm, browser)" >&2
		exit 2
		;;
	esac
done

if ! command -v dpkg-query >/dev/null 2>&1; then
	echo "deps.sh: this is no Debian or Ubuntu; install the equivalents of: $want" >&2
	exit 0
fi

missing=""
for p in $want; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' && continue
	# libclang-rt-dev comes with a version in its name on older releases.
	if [ "$p" = libclang-rt-dev ] && dpkg-query -W 'libclang-rt-*-dev' >/dev/null 2>&1; then
		continue
	fi
	missing="$missing $p"
done
[ -n "$missing" ] || exit 0

echo "sluice: installing what is missing, from this system's own package sources:$missing"
as_root=""
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "sluice: that needs root; run: apt-get install$missing" >&2
		exit 1
	fi
	as_root="sudo"
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Services of packages that only tests and benchmarks use are not started.
policy=/usr/sbin/policy-rc.d
if [ "$(id -u)" = 0 ] && ! [ -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
	trap 'rm -f "$log" '$policy EXIT
fi
# shellcheck disable=SC2086
if ! { $as_root apt-get -q update && $as_root apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
	tail -n 20 "$log" >&2
	echo "sluice: the packages could not be installed; see above" >&2
	exit 1
fi
echo "sluice: installed"
