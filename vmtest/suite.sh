#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What is proven in the VM: the unit tests that need the kernel, with kTLS required, so
# that a skip counts as a failure; that the kernel still keeps kTLS and sockmap apart; and
# the end-to-end suite for every engine. Where OpenSSL is a newer one, what that can make
# a difference to: "tls", what the kernel has a part in, and "verify", what it has none in,
# so that no VM is needed. Run by guest.sh; results as run.sh says.
results=${VMTEST_RESULTS:?}
export SLUICE_KTLS=require

# cmocka's TAP lines, with the program's name.
unit() {
	name=$(basename "$1")
	echo "== $name"
	CMOCKA_MESSAGE_OUTPUT=TAP timeout 300 "$1" > /tmp/tap 2>&1
	rc=$?
	cat /tmp/tap
	sed -n "s/^not ok [0-9]* # SKIP /not ok $name (skipped) /p; s/^ok [0-9]* - /ok $name /p; s/^not ok [0-9]* - /not ok $name /p" /tmp/tap >> "$results"
	if [ $rc -ne 0 ] && ! grep -q '^not ok' /tmp/tap || ! grep -q '^ok' /tmp/tap; then
		echo "not ok $name ended with $rc" >> "$results"
	fi
	grep -q '^not ok' /tmp/tap || [ $rc -ne 0 ] || return 0
	{ echo "== $name, status $rc"; tail -n 60 /tmp/tap; } >> "$(dirname "$results")/failures"
}

if [ $# -gt 0 ]; then
	version=$(openssl version)
	case $version in
	"OpenSSL 3."[01].*) echo "not ok OpenSSL is 3.2 or newer: $version" >> "$results" ;;
	*) echo "ok OpenSSL is 3.2 or newer: $version" >> "$results" ;;
	esac
fi
case ${1:-} in
verify)
	unit build/tests/tls_verify_test
	exec sh vmtest/e2e.sh tests/e2e/test_upstream_tls.py tests/e2e/test_listener_tls.py
	;;
tls)
	unit build/tests/tls_kernel_test
	unit build/tests/tls_stream_test
	exec sh vmtest/e2e.sh tests/e2e/test_kernel_tls.py tests/e2e/test_upstream_tls.py -k "kernel_tls and not no_call or tunnel or truncated or cut_short"
	;;
esac
for t in build/tests/tls_*_test build/tests/kern_*_test; do
	[ -x "$t" ] && unit "$t"
done
/usr/bin/python3 vmtest/sockmap_refuses_ktls.py >> "$results" || echo "not ok sockmap_refuses_ktls.py ended with $?" >> "$results"
sh vmtest/e2e.sh
exit 0
