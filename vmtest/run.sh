#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a script inside virtual machines with Debian's kernels, where TLS is in the
# kernel, and says what came of it.
#
#   vmtest/run.sh [-cu] [-k RELEASE]... [SCRIPT [ARGUMENT]...]
#
#   -c           the machine's clock counts instructions: figures of processor time then
#                depend neither on this machine nor on what else runs on it; slower
#   -k RELEASE   bookworm (6.1) or trixie (6.12); default: both, one after the other
#   -u           sluice built in, and the script run in, Debian 13's userland, where
#                OpenSSL is 3.5
#   SCRIPT       run with sh by root in the VM; default: vmtest/suite.sh; then with the
#                last kernel, with -u, its parts for TLS, and with -c vmtest/ktls_cpu.sh.
#                It sees this machine's files, read-only but for temporary directories,
#                and writes lines "ok …", "not ok …", "skip …" to the file $VMTEST_RESULTS
#
# Prints "N passed, N failed, N skipped" last; exit 0 only if nothing failed, every VM
# came to its end, and no kernel complained. Logs: .cache/vm/out/RELEASE/.
# KVM is used where a probe shows that it boots a stock kernel, else emulation.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache/vm
limit=${VMTEST_TIMEOUT:-1500}
releases=
counting= cpus=2 newer= userland=
count_instructions() {
	counting=--disable-kvm cpus=1
}
while getopts cuk: opt; do
	case $opt in
	c) count_instructions ;;
	u) newer=yes ;;
	k) releases="$releases $OPTARG" ;;
	*) sed -n '6,22s/^# \{0,1\}//p' "$0"; exit 2 ;;
	esac
done
shift $((OPTIND - 1))
releases=${releases:-bookworm trixie}

mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9 # one run at a time

for tool in qemu-system-x86_64 busybox depmod udevadm; do
	PATH=$PATH:/usr/sbin:/sbin command -v $tool > /dev/null && continue
	echo "vmtest: $tool is missing: apt-get install qemu-system-x86 busybox-static kmod udev python3-argcomplete python3-requests nginx-light strace" >&2
	exit 1
done
vng=$(sh "$root/vmtest/fetch.sh" virtme-ng)

# vm KERNEL_DIR OUT_DIR KVM_OPTION COMMAND: boots, runs COMMAND, ends. timeout(1) ends the
# emulator too, which outlives virtme-ng, when it is told to end.
vm() {
	# virtme looks the writable directory up relative to the root, so be there.
	(cd / && PYTHONPATH=${vng%/bin/vng}/lib/python3/dist-packages PATH=${vng%/vng}:$PATH:/usr/sbin:/sbin \
		exec timeout -k 5 "${patience:-$((limit + 120))}" nice /usr/bin/python3 "$vng" $3 --run "$1/boot/vmlinuz-$(cat "$1/release")" --cpus $cpus --memory 2G ${counting:+"--qemu-opts=-icount shift=1,sleep=off -cpu max"} \
		--rwdir "$2" --exec "$4") < /dev/null 9>&-
}

# Prints the option that chooses emulation when KVM is absent or does not boot.
kvm_option() {
	state=$cache/kvm-$(cat /proc/sys/kernel/random/boot_id)
	if [ ! -e "$state" ]; then
		echo no > "$state"
		mkdir -p "$cache/out/probe"
		if [ -w /dev/kvm ]; then
			rm -f "$cache/out/probe/booted"
			patience=60
			vm "$1" "$cache/out/probe" "" "touch $cache/out/probe/booted" > /dev/null 2>&1 || :
			patience=
			[ ! -e "$cache/out/probe/booted" ] || echo yes > "$state"
		fi
	fi
	[ "$(cat "$state")" = yes ] || echo --disable-kvm
}

trap 'kill $(cat "$cache"/out/*/pid 2> /dev/null) 2> /dev/null; exit 130' INT TERM
rm -f "$cache"/out/*/pid

passed=0 failed=0 skipped=0
# Debian 13's userland and sluice built there. Says why it can not be.
newer_userland() {
	mkdir -p "$cache/out"
	: > "$cache/out/build"
	userland=$(sh "$root/vmtest/fetch.sh" userland trixie) &&
		sh "$root/vmtest/inside.sh" "$userland" make --no-print-directory -j "$(nproc)" bins unit-bins > "$cache/out/build" 2>&1 && return
	userland=
	echo "not ok the newer userland: it could not be made, or sluice could not be built in it; see $cache/out/build"
	[ ! -s "$cache/out/build" ] || tail -n 40 "$cache/out/build" | sed 's/^/    /'
	failed=$((failed + 1))
	return 1
}

# count NAME: what NAME wrote to its directory is shown where it matters, and added.
count() {
	out=$cache/out/$1
	grep -E '^(not ok|skip|ok ratio) ' "$out/results" 2> /dev/null || :
	# Whoever reads only this output shall see why.
	[ ! -s "$out/failures" ] || tail -n 400 "$out/failures" | sed 's/^/    /'
	[ ! -s "$out/splats" ] || sed -n '/vmtest: begins/,$p' "$out/dmesg" | grep -A 30 -F -e "$(head -1 "$out/splats")" | sed 's/^/    /'
	for kind in passed failed skipped; do
		case $kind in passed) mark='ok' ;; failed) mark='not ok' ;; skipped) mark='skip' ;; esac
		n=$(grep -c "^$mark " "$out/results" 2> /dev/null) || n=${n:-0}
		eval "$kind=\$(($kind + n))"
	done
}

# here NAME SCRIPT [ARGUMENT]...: the same in the other userland under this machine's kernel.
here() {
	name=$1
	shift
	out=$cache/out/$name
	rm -rf "$out"
	mkdir -p "$out"
	echo "== $name: this machine's kernel"
	VMTEST_RESULTS=$out/results timeout "$limit" sh "$root/vmtest/inside.sh" "$userland" sh "$@" > "$out/log" 2>&1 || {
		echo "not ok $name: $1 did not come to its end; see $out/log" >> "$out/results"
		tail -n 60 "$out/log" >> "$out/failures"
	}
	count "$name"
}

# start NAME RELEASE SCRIPT [ARGUMENT]...: begins one VM.
start() {
	name=$1 rel=$2
	shift 2
	kernel=$(sh "$root/vmtest/fetch.sh" "$rel")
	out=$cache/out/$name
	rm -rf "$out"
	mkdir -p "$out"
	option=${counting:-$(kvm_option "$kernel")}
	echo "== $name: Linux $(cat "$kernel/release")${option:+, emulated}${counting:+, counting instructions}"
	script=
	for word; do script="$script '$word'"; done
	vm "$kernel" "$out" "$option" "timeout $limit sh $root/vmtest/guest.sh $out '$userland' $script" > "$out/console" 2>&1 &
	echo $! > "$out/pid"
	date +%s > "$out/began"
}

# finish NAME: waits for its end; its output and its share of the counts.
finish() {
	name=$1 out=$cache/out/$1
	wait "$(cat "$out/pid")" || :
	rm -f "$out/pid"
	echo "== $name: ended after $(($(date +%s) - $(cat "$out/began"))) s"
	# The verdict is the last thing the guest writes: without it the run did not end.
	if [ ! -s "$out/verdict" ]; then
		echo "not ok $name: the VM did not come to its end; see $out/console"
		tail -n 20 "$out/console" | sed 's/^/    /'
		[ ! -e "$out/log" ] || tail -n 60 "$out/log" | sed 's/^/    log: /'
		failed=$((failed + 1))
	fi
	count "$name"
}

if [ $# -gt 0 ] && { [ -z "$newer" ] || newer_userland; }; then
	for rel in $releases; do
		start "$rel${newer:+-u}" "$rel" "$@"
		finish "$rel${newer:+-u}"
	done
elif [ $# -eq 0 ]; then
	for rel in $releases; do # one by one: two at a time are no faster on two processors
		start "$rel" "$rel" "$root/vmtest/suite.sh"
		finish "$rel"
	done
	newer=
	if newer_userland; then
		newer=yes
		here openssl-3.5-verify "$root/vmtest/suite.sh" verify
		start openssl-3.5 "$rel" "$root/vmtest/suite.sh" tls
		userland=
	fi
	count_instructions # which the other VM beside it does not disturb
	start ktls-cpu "$rel" "$root/vmtest/ktls_cpu.sh"
	[ -z "$newer" ] || finish openssl-3.5
	finish ktls-cpu
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
