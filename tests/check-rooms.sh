#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The house rules that a compiler does not check: a room includes only its own
# headers and those of lower rooms; libbpf and OpenSSL each have one owner.
set -u
bad=0
complain() {
	echo "rooms: $1" >&2
	bad=1
}
allowed() {
	case $1 in
	base) echo "base" ;;
	io) echo "base io" ;;
	kern) echo "base io kern" ;;
	http) echo "base http" ;;
	conf) echo "base conf" ;;
	lb) echo "base io kern http conf lb" ;;
	proxy) echo "base io kern http conf lb proxy" ;;
	control) echo "base io kern http conf lb proxy control" ;;
	esac
}
for room in base io kern http conf lb proxy control; do
	may=$(allowed $room)
	for f in user/$room/*.[ch]; do
		[ -e "$f" ] || continue
		for inc in $(sed -n 's/^#include "\([a-z]*\)\/.*/\1/p' "$f" | sort -u); do
			case " $may " in
			*" $inc "*) ;;
			*) complain "$f includes a header of '$inc', but $room may only use: $may" ;;
			esac
		done
	done
done
for f in $(grep -lE '#include [<"](bpf/|linux/bpf\.h)' -r user | grep -v '^user/kern/'); do
	complain "$f includes libbpf; only user/kern does"
done
for f in $(grep -l '#include <openssl/' -r user | grep -v '^user/io/tls'); do
	complain "$f includes OpenSSL; only user/io/tls does"
done
for f in $(grep -lE '#include <(sys/socket|sys/epoll|unistd|fcntl|time)\.h>' -r user/http user/lb/balance.c user/lb/balance.h); do
	complain "$f is to be pure, but includes what reaches the system"
done
for f in $(git ls-files 'user/*.c' 'user/*.h' 'bpf/*' 'include/*' 'tools/*.c' 'tests/*.c'); do
	[ -e "$f" ] || continue
	head -n 1 "$f" | grep -q SPDX || complain "$f does not begin with its licence"
	n=$(wc -l <"$f")
	[ "$n" -le 800 ] || complain "$f has $n lines; over 800 it is two things"
done
if git grep -nE '\b(TODO|FIXME|XXX|HACK)\b' -- '*.c' '*.h' '*.py' '*.sh' Makefile | grep -v check-rooms.sh; then
	complain "something was left to be done, see above"
fi
[ $bad -eq 0 ] && echo "rooms: in order"
exit $bad
