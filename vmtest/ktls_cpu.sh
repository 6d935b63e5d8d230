#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The measurement of ktls_cpu.py inside the VM: sh vmtest/run.sh -c -k trixie vmtest/ktls_cpu.sh
# Not what sanitizers cost, which tests take where they find them.
SLUICE_BUILD=build /usr/bin/python3 -B vmtest/ktls_cpu.py > /tmp/ktls_cpu 2>&1
rc=$?
cat /tmp/ktls_cpu
if [ $rc -eq 0 ]; then
	sed -n 's/^ratio/ok ratio/p' /tmp/ktls_cpu >> "$VMTEST_RESULTS"
else
	echo "not ok ktls_cpu.py ended with $rc" >> "$VMTEST_RESULTS"
	tail -n 20 /tmp/ktls_cpu >> "$(dirname "$VMTEST_RESULTS")/failures"
fi
