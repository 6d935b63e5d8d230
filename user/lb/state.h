/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of this room share and no other room sees: the process-wide
 * struct lb and the functions that work on it. "locked" in a name means that
 * the caller holds lb->lock; all others must be called without it.
 */
#pragma once
#include <pthread.h>
#include "lb/lb.h"

#define LB_BUCKETS 1024u
#define LB_FALL_WITHOUT_CHECK 3u /* connect failures in a row that take a backend down where no health_check says it \
				  */

struct health;
struct resolver;
struct tls_ctx;

struct lb {
	pthread_mutex_t lock;
	struct backend *registry[LB_BUCKETS]; /* every backend alive; by upstream and text */
	struct lb_table *table;               /* the current one; one reference */
	struct upstream_stats *stats;
	uint32_t workers;
	atomic_uint generation; /* of the table, from 1 */
	uint64_t next_id;
	atomic_uint version; /* of all sets together; the health thread looks again when it differs */

	struct sluice_health *slots; /* the health table; NULL: there is none */
	uint32_t slot_count;
	uint8_t *slot_used; /* by a backend of this process */
	bool slots_full_told;

	atomic_bool frozen; /* the table is another process's now, or we are going: do not write to it */
	struct health *health;
	struct resolver *resolver;
};

/* Addresses one configured name stands for, as last resolved. */
struct upstream_names {
	struct sock_addr *addr; /* sorted, without doubles */
	uint32_t n;
};

/* ---- backend.c ---- */

struct backend_key {
	const char *upstream, *text, *tls_name;
	const struct sock_addr *addr;
};

/* The living backend of that identity, or a new one that adopts what the table knows. One reference; NULL: no memory.
 */
struct backend *backend_obtain_locked(struct lb *lb, const struct backend_key *key);
void backend_unref_locked(struct backend *b);
/* Forgets entries of the table that no backend of this process has claimed. */
void backend_reap_slots_locked(struct lb *lb);
/* from -> to if it is still `from`; true when this call did it. Logs, counts the time. */
bool backend_change_state(struct backend *b, uint32_t from, uint32_t to, const char *reason);

/* ---- upstream.c ---- */

struct upstream_stats *upstream_stats_obtain_locked(struct lb *lb, const char *name);
/* Without members yet. NULL: no memory. */
struct upstream *upstream_new_locked(struct lb *lb, const struct conf *conf, uint32_t index);
void upstream_unref_locked(struct upstream *u);
/* Makes the set anew from the configuration and the resolved names, and publishes it if it differs. 0 or -ENOMEM. */
int upstream_rebuild_locked(struct upstream *u);
/* True when some name of it has never been resolved. */
bool upstream_names_missing_locked(const struct upstream *u);
/* Takes over the names another upstream has resolved, where host and port are the same. */
void upstream_inherit_names_locked(struct upstream *u, const struct upstream *from);

/* ---- health.c ---- */

/* Starts the thread. 0 or -errno. */
int health_start(struct health **out, struct lb *lb);
/* Ends the thread; what it held is let go. health_wake stays allowed and does nothing. */
void health_stop(struct health *h);
/* After health_stop, when nobody can call health_wake any more. NULL is fine. */
void health_free(struct health *h);
/* Members, states or operator fields may have changed: look at once. From any thread; h may be NULL. */
void health_wake(struct health *h);
