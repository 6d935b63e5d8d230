#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All tests of this machine: house rules, unit tests under ASan+UBSan, what
# threads share under TSan, fuzz targets shortly, end-to-end tests against
# sanitized binaries. Says what it is doing; last line: N passed, N failed,
# N skipped over everything. Exit status 1 when anything failed.
set -u
cd "$(dirname "$0")/.."
jobs=$(nproc)
passed=0 failed=0 skipped=0
start=$(date +%s)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
if [ "$(id -u)" = 0 ] && ! mountpoint -q /sys/fs/bpf; then
	mount -t bpf bpf /sys/fs/bpf 2>/dev/null || echo "check: no bpf file system can be mounted here"
fi

stage() {
	echo "== $1 ($(($(date +%s) - start)) s)"
}
# Adds "N passed, N failed, N skipped" from the last matching line of a file.
add() {
	set -- $(grep -oE '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped' "$1" | tail -n 1 | tr -dc '0-9 ')
	if [ $# -ne 3 ]; then
		failed=$((failed + 1))
		return
	fi
	passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
}
one() { # NAME COMMAND...: one test that is a command
	name=$1
	shift
	if "$@" >"$dir/one" 2>&1; then
		passed=$((passed + 1))
		tail -n 1 "$dir/one"
	else
		failed=$((failed + 1))
		tail -n 60 "$dir/one"
		echo "$name: FAILED"
	fi
}

stage "building"
for v in "" asan tsan; do
	if ! make -j"$jobs" VARIANT=$v bins $([ "$v" = asan ] && echo "unit-bins") >"$dir/build" 2>&1; then
		cat "$dir/build"
		echo "0 passed, 1 failed, 0 skipped"
		exit 1
	fi
done
one "rooms" sh tests/check-rooms.sh
one "a second make does nothing" sh -c '! make -n bins | grep -qE "gcc|clang|cc "'

stage "unit tests, ASan and UBSan"
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
make --no-print-directory VARIANT=asan unit >"$dir/unit" 2>&1
cat "$dir/unit"
add "$dir/unit"

stage "unit tests, TSan"
make --no-print-directory -j"$jobs" VARIANT=tsan unit-threads >"$dir/tsan" 2>&1
cat "$dir/tsan"
add "$dir/tsan"

stage "fuzz targets, ${FUZZ_SECONDS:-10} s each"
for f in tests/fuzz/*_fuzz.c; do
	n=$(basename "$f" .c)
	one "fuzz $n" make --no-print-directory "fuzz-$n" FUZZ_SECONDS="${FUZZ_SECONDS:-10}"
done

stage "end to end, ASan and UBSan"
SLUICE_SUMMARY=$dir/e2e.json SLUICE_BUILD=build/asan timeout 2400 /usr/bin/python3 -m pytest -q -p no:cacheprovider tests/e2e -rs --tb=short </dev/null
rc=$?
if [ -s "$dir/e2e.json" ]; then
	/usr/bin/python3 -c 'import json,sys
s=json.load(open(sys.argv[1]))
print("e2e: %d passed, %d failed, %d skipped" % (s["passed"], s["failed"], s["skipped"]))' "$dir/e2e.json" | tee "$dir/e2e"
	add "$dir/e2e"
fi
[ $rc -eq 0 ] || [ "$failed" -gt 0 ] || failed=1

echo "check took $(($(date +%s) - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
