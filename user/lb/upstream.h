/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An upstream at run time: the backends behind one conf_upstream.
 *
 * The members of an upstream are an immutable, reference-counted set. The
 * resolver replaces the set when a name's addresses change; a worker sees that
 * by comparing one generation number and takes the new set then, so that the
 * request path has no lock. A worker looks through its own view, which holds
 * the set and the worker's balancer.
 *
 * A reload makes new upstreams (they point into the new snapshot); backends
 * and statistics that did not change are shared with the old ones.
 */
#pragma once
#include <stdatomic.h>
#include "conf/conf.h"
#include "io/tls.h"
#include "lb/backend.h"
#include "lb/balance.h"

struct lb;
struct upstream_names;

/* Counters of one upstream name, one shard a worker, so that workers do not share cache lines. They outlive reloads. */
#define UPSTREAM_STATUS_MAX 600
struct upstream_shard {
	/* Responses by status. The shard's worker counts; what a process before us counted is added to the first shard. */
	atomic_uint_fast64_t code[UPSTREAM_STATUS_MAX];
} __attribute__((aligned(64)));

struct upstream_stats {
	uint32_t shards;
	char name[CONF_NAME_MAX + 1];
	struct upstream_stats *next; /* lb's list, under its lock */
	struct upstream_shard shard[];
};

struct upstream_member {
	struct backend *backend;          /* one reference */
	const struct conf_server *server; /* it comes from; lives as long as the upstream */
	uint32_t weight;                  /* from the configuration */
};

struct upstream_set {
	atomic_uint refs;
	atomic_uint_fast64_t turn; /* round robin's, over all workers */
	uint32_t n;
	struct str *names; /* n, the backends' texts */
	struct upstream_member member[];
};

struct upstream {
	atomic_uint refs;
	struct lb *lb;
	const struct conf *conf; /* one reference; it keeps `c` */
	const struct conf_upstream *c;
	struct upstream_stats *stats;
	atomic_uint_fast64_t generation; /* of set; >= 1 */
	struct upstream_set *set;        /* under lb's lock; one reference */

	/* Private to lb. */
	struct upstream_names *names; /* one per server; under lb's lock */
	struct tls_ctx *check_tls;    /* for health checks; NULL: plain, or see below */
	char check_tls_error[128];    /* why there is none though there should be */
};

/* What a connection to such a backend asks of TLS, for a request or a check. The strings are the configuration's. */
struct tls_client_options upstream_tls_options(const struct conf_upstream_tls *t);

struct upstream *upstream_ref(struct upstream *u);
void upstream_unref(struct upstream *u);

/* One worker's sight of one upstream. Not shared between threads. */
struct upstream_view {
	struct upstream *upstream; /* one reference */
	struct upstream_set *set;  /* one reference */
	uint64_t generation;
	uint32_t worker;
	struct balancer balancer;
	struct balancer_candidate *candidates; /* set->n */
};

/* Backends that were tried for the request in hand. */
#define UPSTREAM_TRIED_MAX 8
struct upstream_tried {
	const struct backend *backend[UPSTREAM_TRIED_MAX]; /* compared only, never followed */
	uint32_t n;
};

static inline void upstream_tried_add(struct upstream_tried *t, const struct backend *b)
{
	if (t->n < UPSTREAM_TRIED_MAX)
		t->backend[t->n++] = b;
}

/* worker is the index of its shard. 0 or -ENOMEM. */
int upstream_view_init(struct upstream_view *v, struct upstream *u, uint32_t worker);
void upstream_view_deinit(struct upstream_view *v);

/*
 * Chooses a backend for a request by the upstream's method; one reference for
 * the caller (backend_unref). NULL: none is usable (503), or all that are have
 * been tried. key: what `hash` names, empty when the request has none.
 */
struct backend *upstream_choose(struct upstream_view *v, struct str key, const struct upstream_tried *tried);

/* Counts a response to a client. From the view's worker. */
static inline void upstream_count_status(struct upstream_view *v, unsigned status)
{
	struct upstream_stats *s = v->upstream->stats;
	atomic_uint_fast64_t *p = &s->shard[v->worker % s->shards].code[status < UPSTREAM_STATUS_MAX ? status : 0];

	atomic_fetch_add_explicit(p, 1, memory_order_relaxed);
}

/* Sum over the workers; from any thread. */
uint64_t upstream_status_total(const struct upstream_stats *s, unsigned status);
