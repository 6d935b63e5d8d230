/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One address that requests can go to. There is one struct backend per
 * (upstream, address), shared by all workers, the health thread, idle
 * connections and reloads; references are counted and thread-safe.
 *
 * Its identity never changes after backend creation. What changes is atomic,
 * and each word has one kind of writer:
 *   state      whoever finds out (health thread, or a worker whose connects fail), by compare-and-swap
 *   counters   workers
 *   admin, weight override   the operator, in the shared health table (struct sluice_health)
 * The daemon's copy of the state here is the one that decides; the table
 * mirrors it for bpftool and for the next process, and is rewritten by the
 * health thread when somebody overwrites it.
 *
 *   UNKNOWN --check ok / connect ok--> UP        UNKNOWN is used like UP
 *   UNKNOWN, UP --`fall` failures in a row--> DOWN
 *   DOWN --`rise` checks in a row--> UP          without a health_check: one connect that works, tried each second
 */
#pragma once
#include <stdatomic.h>
#include "io/sock.h"
#include "sluice_abi.h"

struct lb;
struct health_check;

struct backend {
	/* Identity: constant. */
	uint64_t id; /* never used twice in a process */
	struct lb *lb;
	struct sock_addr addr;
	const char *upstream; /* its name */
	const char *text;     /* the address as the operator knows it: as written, or what the name resolved to */
	const char *tls_name; /* for SNI and verification; NULL: none */
	struct sluice_health *health;

	atomic_uint state;    /* enum sluice_health_state */
	atomic_uint fall;     /* connect failures in a row that take it down */
	atomic_uint failures; /* connect failures in a row */
	atomic_int last_error;
	atomic_uint_fast64_t changed_ns; /* of state, CLOCK_MONOTONIC; 0: never */

	/* Written for each request, so on lines of their own. */
	_Alignas(64) atomic_uint refs;
	atomic_uint active;            /* requests running there now */
	atomic_uint connections;       /* open connections, idle ones too */
	atomic_uint_fast64_t requests; /* since start */

	/* Private to lb. */
	struct backend *next;       /* registry; under lb's lock */
	uint32_t slot;              /* in the health table; UINT32_MAX: the table was full, memory of its own */
	struct health_check *check; /* the health thread's */
};

/* backend_ref returns b. backend_unref ignores NULL. */
struct backend *backend_ref(struct backend *b);
void backend_unref(struct backend *b);

static inline uint32_t backend_admin(const struct backend *b)
{
	return __atomic_load_n(&b->health->admin, __ATOMIC_RELAXED);
}

static inline uint32_t backend_state(const struct backend *b)
{
	return atomic_load_explicit(&b->state, memory_order_relaxed);
}

/* May new requests go there. Two relaxed loads; no syscall, no lock. */
static inline bool backend_usable(const struct backend *b)
{
	return backend_state(b) != SLUICE_HEALTH_DOWN && backend_admin(b) == SLUICE_ADMIN_ENABLED;
}

/* The operator's override, else the configured one. */
static inline uint32_t backend_weight(const struct backend *b, uint32_t configured)
{
	uint32_t w = __atomic_load_n(&b->health->weight, __ATOMIC_RELAXED);

	return w ? w : configured;
}

/* A request was given to b, and later it ended. */
static inline void backend_request_begin(struct backend *b)
{
	atomic_fetch_add_explicit(&b->active, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&b->requests, 1, memory_order_relaxed);
}

static inline void backend_request_end(struct backend *b)
{
	atomic_fetch_sub_explicit(&b->active, 1, memory_order_relaxed);
}

static inline void backend_connection_opened(struct backend *b)
{
	atomic_fetch_add_explicit(&b->connections, 1, memory_order_relaxed);
}

static inline void backend_connection_closed(struct backend *b)
{
	atomic_fetch_sub_explicit(&b->connections, 1, memory_order_relaxed);
}

/*
 * A connect (or TLS handshake) to b failed with err (an errno value, either
 * sign). After `fall` in a row b goes DOWN, is logged, and the health thread
 * starts looking for it at once. From any thread.
 */
void backend_note_connect_failure(struct backend *b, int err);
void backend_note_ok_slow(struct backend *b);

/* A connect worked. A load and nothing else when all was well before. */
static inline void backend_note_ok(struct backend *b)
{
	if (atomic_load_explicit(&b->failures, memory_order_relaxed) != 0)
		backend_note_ok_slow(b);
}

/* What sluicectl does; takes effect at once, logged by the health thread. From any thread. */
void backend_set_admin(struct backend *b, uint32_t admin);
/* 0: back to the configured weight. */
void backend_set_weight(struct backend *b, uint32_t weight);

/* Why the last check or connect failed, "" when it did not. From any thread; always NUL-terminated. */
void backend_last_error(const struct backend *b, char *out, size_t cap);

/* "down", "up", "unknown"; "enabled", "drain", "disabled". Never NULL. */
const char *backend_state_name(uint32_t state);
const char *backend_admin_name(uint32_t admin);
