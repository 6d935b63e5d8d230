#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs cmocka binaries one after the other and adds up what they say. Prints
# one line for each and, last, "unit: N passed, N failed, N skipped".
# Usage: run-unit.sh BINARY...
set -u
passed=0 failed=0 skipped=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for t in "$@"; do
	timeout 600 "$t" >"$out" 2>&1 </dev/null
	rc=$?
	p=$(grep -c '^\[       OK \]' "$out")
	f=$(grep -c '^\[  FAILED  \] [a-z]' "$out")
	s=$(grep -c '^\[  SKIPPED \] [a-z]' "$out")
	# cmocka names each failed and each skipped test once more in its summary.
	f=$(grep '^\[  FAILED  \] [a-z]' "$out" | sort -u | wc -l)
	s=$(grep '^\[  SKIPPED \] [a-z]' "$out" | sort -u | wc -l)
	if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then
		f=1
	fi
	if [ "$rc" -eq 0 ] && [ "$p" -eq 0 ] && [ "$s" -eq 0 ]; then
		echo "$(basename "$t"): ran no test" && f=1
	fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	printf '  %-28s %4d passed, %d failed, %d skipped\n' "$(basename "$t")" "$p" "$f" "$s"
	grep '^skip:' "$out" | sed 's/^/      /'
	if [ "$f" -gt 0 ]; then
		sed 's/^/      /' "$out" | tail -n 60
	fi
done
echo "unit: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
