/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Which worker's socket a new connection goes to. One program for each
 * listening address, attached to its SO_REUSEPORT group; it takes the socket
 * whose worker has the fewest sessions, counting those that were given to it
 * and that it has not yet accepted. Equal ones take turns, so that a burst is dealt
 * out evenly; by hash, as the kernel does it, few long connections pile up.
 *
 * The migrate section lets the kernel ask again for what waits at a socket that
 * is closed. Whatever does not work ends in the kernel's own choice.
 */
#include "vmlinux_min.h"
#include <bpf/bpf_helpers.h>
#include "sluice_abi.h"

#ifndef BPF_MAP_TYPE_REUSEPORT_SOCKARRAY
#define BPF_MAP_TYPE_REUSEPORT_SOCKARRAY 20
#endif

#define LOOK_AT_MOST 64

struct sk_reuseport_md;

/* Sockets of all addresses; an entry goes with its socket. User space reads cookies. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_worker_load);
} loads SEC(".maps");

/* This address: its sockets are listeners[base .. base + n), socket i is accepted on by worker i % workers. */
const volatile __u32 base = 0, n = 1, workers = 1;

__u32 turn = 0;

static struct sluice_worker_load *load_of(__u32 i)
{
	__u32 key = i % workers;

	return bpf_map_lookup_elem(&loads, &key);
}

SEC("sk_reuseport/migrate")
int listen_choose(struct sk_reuseport_md *ctx)
{
	__u32 start = __sync_fetch_and_add(&turn, 1) % n, best = start, best_load = ~0u, key;
	struct sluice_worker_load *l;

	for (__u32 k = 0; k < LOOK_AT_MOST && k < n; k++) {
		__u32 i = (start + k) % n, load;

		l = load_of(i);
		if (!l)
			continue;
		load = l->given + l->offset;
		if (load < best_load) {
			best = i;
			best_load = load;
		}
	}
	key = base + best;
	if (bpf_sk_select_reuseport(ctx, &listeners, &key, 0) == 0) {
		l = load_of(best);
		if (l)
			__sync_fetch_and_add(&l->given, 1);
	}
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
