/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bpf.c gives to flow.c and caps.c, and nobody else. bpf.c alone knows
 * libbpf; the others see descriptors and mapped memory.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "kern/bpf.h"

struct ring_reader;

/* Text into a fixed array. */
#define reason_set(array, ...) ((void)snprintf(array, sizeof(array), __VA_ARGS__))

/* Another process may count in the same entry. */
#define KERN_COUNT(counters, name, n) __atomic_fetch_add(&(counters)->name, (__u64)(n), __ATOMIC_RELAXED)

struct pin_dir;

/* The directory of pins; NULL: nothing is pinned. */
struct pin_dir *kern_pins(struct kern *k);

/* The sockmap side. fds are -1 and pointers NULL when it is off. */
struct kern_splice {
	int targets, sources, index; /* map descriptors */
	struct sluice_flow *flows;   /* mapped, shared with the program */
	struct sluice_limits *limits;
	struct sluice_probe *probes; /* by worker */
	unsigned flows_n;

	pthread_mutex_t lock; /* of the free slots */
	uint32_t *free;	      /* ring of free slot numbers; first in, first out, so that a slot rests as long as possible */
	unsigned free_head, free_n;

	atomic_uint armed; /* running flows */
	uint64_t window, memory;
	uint64_t send_buffer_max; /* what the kernel grows a TCP socket's to; 0: not known */
};

struct kern_splice *kern_splice(struct kern *k);

/* A slot of the flow table, cleared but for its raised generation; -1: none free. */
int kern_slot_take(struct kern *k);
void kern_slot_give(struct kern *k, uint32_t slot);

/* Room for one more running flow in the memory budget; windows shrink as it fills. False: none. */
bool kern_budget_take(struct kern *k);
void kern_budget_give(struct kern *k);
void kern_bounds_apply(struct kern *k);

/* Raw map access by cookie. 0 or -errno. */
int kern_map_set(int map, uint64_t key, const void *value);
int kern_map_unset(int map, uint64_t key);

/* Asks the kernel about a socket in the maps; the answer is in probes[worker]. False: not in the maps, or it can not be asked. */
bool kern_probe(struct kern *k, unsigned worker, uint64_t cookie);

/* Events of one worker. The callback gets each event once. */
int kern_ring_new(struct ring_reader **out, struct kern *k, unsigned worker, int (*cb)(void *ctx, void *data, size_t n), void *ctx);
void kern_ring_free(struct ring_reader *r);
int kern_ring_fd(struct kern *k, unsigned worker);
void kern_ring_consume(struct ring_reader *r);

/* caps.c */
/* Whether the running kernel is one whose sockmap is known to keep its bytes. False: why is set. */
bool caps_kernel_floor(char *why, size_t n);
/* Whether that version is. */
bool caps_version_ok(unsigned major, unsigned minor, unsigned patch);
/* The upstream version out of uname's release and version and Ubuntu's signature (NULL or "": none). */
bool caps_version_parse(const char *release, const char *version, const char *signature, unsigned v[3]);
/* Whether this process has what loading the programs takes. */
bool caps_privileges(char *why, size_t n);
/* selftest.c: moves bytes over loopback through the loaded programs and compares. 0, or a negative errno with why set. */
int caps_selftest(struct kern *k, char *why, size_t n);
