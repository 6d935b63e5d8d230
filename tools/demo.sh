#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What `make run` runs: two HTTPS origins on loopback and sluice in front of them,
# until Ctrl-C. Everything it makes is under build/demo; everything it starts it stops.
# Other ports and places for a second one: demo.sh CONF, ORIGIN_ONE, ORIGIN_TWO, DEMO_DIR.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${SLUICE_BUILD:-build}
CONF=${1:-conf/quickstart.yaml}
DIR=${DEMO_DIR:-build/demo} # where the quickstart file looks for ca.pem
ONE=${ORIGIN_ONE:-6443} TWO=${ORIGIN_TWO:-6444}
PIDS= SLUICE=

say() { printf '%s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# The process that serves: after an upgrade (sluicectl upgrade) another one than we started.
serving() {
	[ -n "$SLUICE" ] || return 0
	next=$(sed -n 's/.* event=handed_over pid=[0-9]* to=\([0-9]*\).*/\1/p' "$DIR/sluice.log" 2>/dev/null | tail -n 1)
	[ -z "$next" ] || SLUICE=$next
}

stop() {
	trap - EXIT INT TERM HUP
	first=$SLUICE
	serving
	[ "$SLUICE" = "$first" ] || PIDS="$SLUICE $PIDS"
	for p in $PIDS; do kill "$p" 2>/dev/null; done
	for p in $PIDS; do wait "$p" 2>/dev/null; done
	# One that took over is no child of ours.
	i=0
	while [ -n "$SLUICE" ] && kill -0 "$SLUICE" 2>/dev/null && [ $i -lt 600 ]; do
		sleep 0.1
		i=$((i + 1))
	done
}
trap 'stop' EXIT
trap 'stop; exit 0' INT TERM HUP

# Who has the port, where ss can tell.
owner() {
	command -v ss >/dev/null 2>&1 || return 0
	ss -ltnpH "sport = :$1" 2>/dev/null | sed -n 's/.*users:((\(.*\)))$/ (held by \1)/p' | head -n 1
}

taken() {
	fail "port $1 is taken$(owner "$1"): stop what listens there, or change it in $2"
}

# start_origin NAME PORT: returns when it listens.
start_origin() {
	ready=$DIR/$1.json
	rm -f "$ready"
	"$OUT/origin" --name "$1" --https "127.0.0.1:$2" --cert "$DIR/server.pem" --key "$DIR/server.key" \
		--port-file "$ready" --die-with-parent 2>"$DIR/$1.log" &
	pid=$!
	PIDS="$PIDS $pid"
	while [ ! -s "$ready" ]; do
		if ! kill -0 "$pid" 2>/dev/null; then
			grep -q 'already in use' "$DIR/$1.log" && taken "$2" tools/demo.sh
			fail "origin $1 did not start: $(cat "$DIR/$1.log")"
		fi
		sleep 0.05
	done
}

for b in sluice origin; do
	[ -x "$OUT/$b" ] || fail "$OUT/$b is not there: run make first"
done
mkdir -p "$DIR" || exit 1
# Where the pinned maps are; systemd mounts it, a bare container does not.
if [ "$(id -u)" = 0 ] && [ -d /sys/fs/bpf ] && ! mountpoint -q /sys/fs/bpf; then
	mount -t bpf bpf /sys/fs/bpf 2>/dev/null && say "mounted the BPF file system on /sys/fs/bpf"
fi
"$OUT/origin" --make-certs "$DIR" >/dev/null || fail "no certificates in $DIR"
start_origin one "$ONE"
start_origin two "$TWO"

: >"$DIR/sluice.log" # there before the first look at it
"$OUT/sluice" -c "$CONF" 2>"$DIR/sluice.log" &
SLUICE=$!
PIDS="$SLUICE $PIDS"
until grep -q 'event=ready' "$DIR/sluice.log"; do
	if ! kill -0 "$SLUICE" 2>/dev/null; then
		for port in 6188 6189; do
			grep -qE "(:$port|port=$port).*(EADDRINUSE|in use)" "$DIR/sluice.log" && taken "$port" "$CONF"
		done
		cat "$DIR/sluice.log" >&2
		fail "sluice did not start"
	fi
	sleep 0.05
done

say ""
say "sluice listens on port 6188, in front of two HTTPS origins (127.0.0.1:$ONE one, 127.0.0.1:$TWO two)."
say ""
say "  curl 127.0.0.1:6188                          the origins take turns"
say "  curl 127.0.0.1:6188/bytes/1000000000 | wc -c a gigabyte"
say "  http://127.0.0.1:6189/                       a page to look at; /metrics and /status beside it"
say "  $OUT/sluicectl -s /tmp/sluice-quickstart.sock backends"
say "  $OUT/sluicectl -s /tmp/sluice-quickstart.sock drain 127.0.0.1:$ONE"
say ""
say "Configuration: $CONF   log: $DIR/sluice.log   stop with Ctrl-C"
say ""
tail -n +1 -f "$DIR/sluice.log" --pid=$$ 2>/dev/null &
PIDS="$PIDS $!"
wait "$SLUICE"
status=$?
while ended=$SLUICE && serving && [ "$SLUICE" != "$ended" ]; do
	PIDS="$SLUICE $PIDS"
	tail --pid="$SLUICE" -f /dev/null &
	wait $!
	status=0
done
say "sluice ended (status $status)"
exit "$status"
