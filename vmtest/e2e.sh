#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The end-to-end tests inside the VM: e2e.sh [PYTEST ARGUMENT]... Without arguments the
# files where the kernel's TLS or the engines matter; all of them take too long emulated.
results=${VMTEST_RESULTS:?}
export PYTHONDONTWRITEBYTECODE=1 SLUICE_TEST_SLOW=10 SLUICE_KTLS=require
[ $# -gt 0 ] || set -- tests/e2e/test_kernel_tls.py tests/e2e/test_upstream_tls.py tests/e2e/test_listener_tls.py tests/e2e/test_bodies.py
timeout -s INT -k 60 "${VMTEST_E2E_TIMEOUT:-1200}" /usr/bin/pytest-3 -p no:cacheprovider --tb=short -q -rA "$@" > /tmp/e2e.out 2>&1
rc=$?
cat /tmp/e2e.out
# What failed and why, with the daemons' logs: run.sh shows it.
sed -n '/^=\{3,\} \(ERRORS\|FAILURES\) =/,/^=\{3,\} \(PASSES\|short test summary info\) =/p' /tmp/e2e.out >> "$(dirname "$results")/failures"
sed -n 's/^PASSED tests/ok tests/p; s/^FAILED tests/not ok tests/p; s/^ERROR tests/not ok tests/p; /^SKIPPED .*overtook the head/{ s/^SKIPPED/skip/p; d }
	s/^SKIPPED/not ok skipped where nothing may be lacking/p' /tmp/e2e.out >> "$results"
[ $rc -eq 0 ] || [ $rc -eq 1 ] || echo "not ok e2e ended with $rc" >> "$results"
exit 0
