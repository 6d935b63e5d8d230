/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The load balancing of the whole process: all upstreams and backends, the
 * threads that check their health and resolve their names.
 *
 * Lock: one mutex guards what changes rarely (registry of backends, sets,
 * table of upstreams). Workers take it at a reload, when a set was replaced,
 * and when the last reference of a backend goes; never for a request.
 */
#pragma once
#include "lb/resolver.h"
#include "lb/upstream.h"

struct kern;
struct lb;

/*
 * The upstreams of one configuration snapshot, upstreams[i] belonging to
 * conf->upstreams[i]. Immutable, reference-counted, thread-safe.
 */
struct lb_table {
	atomic_uint refs;
	const struct conf *conf; /* one reference */
	uint32_t n;
	struct upstream *upstream[]; /* one reference each */
};

/*
 * Builds all upstreams, adopts what the health table knows of their backends
 * (DOWN, drained, weights), starts the threads; first checks start at once.
 * Waits up to two seconds for the names to resolve; an upstream whose names
 * did not gets its backends later (no backend: 503). Call after fork and
 * after dropping privileges. k may be NULL. 0 or -errno.
 */
int lb_start(struct lb **out, const struct conf *conf, struct kern *k);

/* The same with its surroundings given: tests bring a table of their own and answers for names. */
struct lb_options {
	struct sluice_health *slots; /* NULL: no table */
	unsigned slot_count;
	resolver_lookup_fn lookup; /* NULL: the system's */
};
int lb_start_with(struct lb **out, const struct conf *conf, const struct lb_options *o);

/* The current table; one reference for the caller. */
struct lb_table *lb_table_get(struct lb *lb);
void lb_table_unref(struct lb_table *t);
/*
 * Switches to another snapshot. Backends with the same upstream name and
 * address go on with their state. Does not wait for names. Workers go over to
 * the new table when they like (lb_table_get). 0, or -errno and all is as before.
 */
int lb_apply(struct lb *lb, const struct conf *conf);
/*
 * For the old process after a hand-over: checks and resolving end, the health
 * table belongs to the new process and is only read from now on.
 */
void lb_freeze(struct lb *lb);
/*
 * Ends the threads and frees everything; *lb becomes NULL. All views, tables and backends of the
 * workers must have been given back. Entries in the health table stay, for an adopting process.
 */
void lb_stop(struct lb **lb);

/*
 * Finds "upstream/address", or "address" when only one upstream has it.
 * 0: *out is a backend, one reference for the caller; 1: there is none; 2: several.
 */
int lb_find_backend(struct lb *lb, struct str name, struct backend **out);

/* Calls fn for every member of every current upstream, in the order of the file, under the lock: fn must be short. */
void lb_each_backend(struct lb *lb, void (*fn)(void *ctx, const struct upstream *u, struct backend *b, uint32_t weight),
		     void *ctx);
/* Adds what the process before us counted of an upstream's responses. Unknown names are passed over, here and below. */
void lb_restore_status(struct lb *lb, const char *upstream, unsigned status, uint64_t n);
/* What the process before us knew of a backend, where no health table tells; a check that came first is newer. */
void lb_restore_health(struct lb *lb, struct str backend, unsigned state, unsigned admin, uint32_t weight);
/* The same for statistics by upstream name, those of removed upstreams included. */
void lb_each_stats(struct lb *lb, void (*fn)(void *ctx, const struct upstream_stats *s), void *ctx);
