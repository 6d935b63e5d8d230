#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The measurement of ktls_cpu.py inside the VM: sh vmtest/run.sh -k trixie vmtest/ktls_cpu.sh
/usr/bin/python3 -B vmtest/ktls_cpu.py > /tmp/ktls_cpu 2>&1
rc=$?
cat /tmp/ktls_cpu
[ $rc -eq 0 ] && echo "ok $(tail -1 /tmp/ktls_cpu)" >> "$VMTEST_RESULTS" || echo "not ok ktls_cpu.py ended with $rc" >> "$VMTEST_RESULTS"
