#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Inside the VM: guest.sh OUT USERLAND SCRIPT [ARGUMENT]... Readies the kernel, runs the
# script, in another userland unless that is "", looks for complaints of the kernel, and
# writes OUT/verdict last.
out=$1 userland=$2
shift 2
export VMTEST_RESULTS=$out/results PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
: > "$VMTEST_RESULTS"
echo "vmtest: begins" > /dev/kmsg
modprobe tun && [ ! -e /dev/net/tun ] && mkdir -p /dev/net && mknod /dev/net/tun c 10 200 # the retransmission tests build their segments there
if modprobe tls; then
	echo "ok the kernel has TLS" >> "$VMTEST_RESULTS"
else
	echo "not ok the kernel has TLS" >> "$VMTEST_RESULTS"
fi
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
ip link set lo up
cd "$(dirname "$0")/.." || exit 1
if [ -n "$userland" ]; then set -- vmtest/inside.sh "$userland" sh "$@"; fi
sh "$@" > "$out/log" 2>&1
rc=$?
[ $rc -eq 0 ] || echo "not ok $1 ended with $rc" >> "$VMTEST_RESULTS"

# Only what came after the start; stalls are emulation's fault, not the kernel's.
dmesg > "$out/dmesg"
sed '1,/vmtest: begins/d' "$out/dmesg" |
	grep -E 'BUG:|WARNING:|Oops|KASAN|UBSAN|general protection|refcount_t|stack-protector|Kernel panic' |
	grep -v 'soft lockup' > "$out/splats"
if [ -s "$out/splats" ]; then
	echo "not ok the kernel complained: $(head -1 "$out/splats")" >> "$VMTEST_RESULTS"
else
	echo "ok no complaint of the kernel" >> "$VMTEST_RESULTS"
fi
sync
echo done > "$out/verdict"
