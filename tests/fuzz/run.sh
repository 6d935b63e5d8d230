#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# One libFuzzer target for a time, starting from its committed corpus. New
# inputs go to build/, the corpus in the tree stays as it is.
# Usage: run.sh BINARY SECONDS
set -eu
name=$(basename "$1" _fuzz)
mkdir -p build/fuzz/new/"$name" build/fuzz/crash
"$1" -max_total_time="$2" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=build/fuzz/crash/"$name"- \
	build/fuzz/new/"$name" tests/fuzz/corpus/"$name" >build/fuzz/"$name".log 2>&1 || {
	tail -n 40 build/fuzz/"$name".log
	echo "fuzz $name: FAILED, input in build/fuzz/crash/"
	exit 1
}
echo "fuzz $name: $(sed -n 's/^stat::number_of_executed_units: *//p' build/fuzz/"$name".log) runs, nothing found"
