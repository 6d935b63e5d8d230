#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command in another release's userland, with this repository at its own path
# and a build directory of that userland's own.
#
#   inside.sh USERLAND COMMAND [ARGUMENT]...    USERLAND: what "fetch.sh userland" printed
#
# The mounts are the command's alone and end with it. Works on this machine and in a VM
# whose root file system is read-only.
set -eu
if [ "${INSIDE_MOUNTS:-}" != own ]; then
	user=
	[ "$(id -u)" = 0 ] || user=--map-root-user
	INSIDE_MOUNTS=own exec unshare $user --mount --propagation private sh "$0" "$@"
fi
top=$(cd "$(dirname "$0")/.." && pwd)
root=$1
shift
mkdir -p "$root.build" "$top/build" 2> /dev/null || : # no matter where it is read-only
for d in dev proc sys; do mount --rbind /$d "$root/$d"; done
for d in tmp run var; do mount -t tmpfs tmpfs "$root/$d"; done
mkdir -p "$root/var/tmp" "$root/var/log/nginx" "$root/var/lib/nginx" "$root$top" 2> /dev/null || :
mount --rbind "$top" "$root$top"
mount --bind "$root.build" "$root$top/build"
unset INSIDE_MOUNTS
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck disable=SC2016
exec chroot "$root" sh -c 'cd "$0" && exec "$@"' "$top" "$@"
