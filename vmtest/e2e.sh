#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The end-to-end tests inside the VM: e2e.sh [PYTEST ARGUMENT]... Without arguments the
# files where the kernel's TLS or the engines matter; all of them take too long emulated.
results=${VMTEST_RESULTS:?}
export PYTHONDONTWRITEBYTECODE=1 SLUICE_TEST_SLOW=10
[ $# -gt 0 ] || set -- tests/e2e/test_kernel_tls.py tests/e2e/test_upstream_tls.py tests/e2e/test_listener_tls.py tests/e2e/test_bodies.py
timeout -s INT -k 60 "${VMTEST_E2E_TIMEOUT:-1200}" /usr/bin/pytest-3 -p no:cacheprovider --tb=short -q -rA "$@" > /tmp/e2e.out 2>&1
rc=$?
cat /tmp/e2e.out
sed -n 's/^PASSED tests/ok tests/p; s/^FAILED tests/not ok tests/p; s/^ERROR tests/not ok tests/p; s/^SKIPPED \[/skip [/p' /tmp/e2e.out >> "$results"
[ $rc -eq 0 ] || [ $rc -eq 1 ] || echo "not ok e2e ended with $rc" >> "$results"
exit 0
