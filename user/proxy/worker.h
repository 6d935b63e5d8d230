/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker: one thread, one loop, its own listening sockets, its own idle
 * upstream connections, its own counters. A request lives in one worker from
 * its first byte to its last, so nothing on its path takes a lock.
 *
 * What workers share is immutable (struct site) or atomic (backends). A site is
 * what one configuration snapshot means at run time; a reload posts the next
 * one to every worker, and running requests keep the one they began with.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/list.h"
#include "conf/conf.h"
#include "http/http.h"
#include "io/loop.h"
#include "io/pipe.h"
#include "io/tls.h"
#include "kern/bpf.h"
#include "kern/flow.h"
#include "lb/lb.h"
#include "lb/retry.h"
#include "proxy/descriptors.h"

#define WORKER_POOL_BUCKETS 64

struct access_log;
struct exchange;
struct proxy;

/* One configuration at run time. Reference-counted, thread-safe, immutable. */
struct site {
	atomic_uint refs;
	const struct conf *conf;
	struct lb_table *table;
	struct tls_ctx **upstream_tls; /* conf->upstream_count; NULL where plain */
	struct tls_ctx **listener_tls; /* conf->listener_count; NULL where plain */
	struct str *via;	       /* conf->listener_count; "1.1 name" */
};

struct site *site_ref(struct site *s);
void site_unref(struct site *s);

/* A worker's own state for the site: balancers and a session cache per upstream. */
struct worker_site {
	unsigned refs; /* the worker's own, and one per exchange; not shared between threads */
	struct site *site;
	struct upstream_view *views; /* site->table->n */
	struct tls_session_cache **sessions;
};

struct worker {
	struct proxy *proxy;
	unsigned index;
	pthread_t thread;
	bool running; /* main thread only */
	struct loop *loop;
	const struct conf *conf; /* of the current site, for short */
	struct worker_site *site;
	struct sluice_counters *counters;
	struct sluice_worker_load *load; /* tells whoever spreads new connections how many we have */
	uint32_t came;			 /* of load->given: accepted, or given up */
	uint32_t given_then;		 /* load->given at the last look for those that never come */
	uint64_t given_look_ns;		 /* when to look again */
	struct flow_group *flows; /* NULL: no sockmap engine */
	struct watch flow_watch;

	struct list listeners; /* struct listener */
	struct list sessions;  /* struct session, all of them */
	unsigned session_count;
	bool draining;	 /* every response says Connection: close */
	bool close_idle; /* ... and who waits for a next request is closed */
	bool drained_told;

	struct list pools[WORKER_POOL_BUCKETS]; /* struct pool, see upconn.c */
	unsigned pool_idle;
	struct retry_budget retries;
	struct timer tick; /* four times a second: pool, log, what is to be given back */

	struct descriptors_share fds;
	struct pipe_pool pipes; /* for the splice engine */

	struct session_slab *slabs; /* memory of the sessions; see session_slab.h */
	void *free_sessions;
	unsigned busy, busy_peak; /* exchanges under way; the most since memory was last given back */
	uint64_t trim_ns;	  /* when to look at that again */
	struct exchange *free_exchanges;
	unsigned free_exchanges_n;
	struct buf log; /* access log lines not yet written */

	/* Scratch for parsing; valid within one callback only. */
	struct http_head head;
	struct http_field fields[HTTP_FIELDS_MAX];
};

#define COUNT_ADD(w, name, n) __atomic_fetch_add(&(w)->counters->name, (uint64_t)(n), __ATOMIC_RELAXED)
#define COUNT(w, name) COUNT_ADD(w, name, 1)

static inline void worker_session_count(struct worker *w, int change)
{
	w->session_count += (unsigned)change;
	__atomic_store_n(&w->load->offset, w->session_count - w->came, __ATOMIC_RELAXED);
}

/*
 * A connection was accepted, before it is counted as a session. Where it was not given to us (it came while another
 * process chose, or over a shared socket), the count must not run ahead.
 */
static inline void worker_connection_came(struct worker *w)
{
	if ((int32_t)(__atomic_load_n(&w->load->given, __ATOMIC_RELAXED) - w->came) > 0)
		w->came++;
}

/* Ends one thing that nobody waits for: a spare pipe, an idle connection to a backend. False: there is none. */
bool worker_spare(struct worker *w);

struct worker_site *worker_site_ref(struct worker_site *s);
void worker_site_unref(struct worker_site *s);
/* A session has ended; the last one of a draining worker is told to the proxy. */
void worker_session_gone(struct worker *w);
/*
 * A handshake is done: counts by which directions are in the kernel, and why not all; the first time of
 * each reason it is logged too. side: "upstream" or "listener", with its name.
 */
void worker_tls_opened(struct worker *w, struct tls *t, const char *side, const char *name);
