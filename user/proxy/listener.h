/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One worker's end of a listening address. TCP addresses have one socket per
 * worker (SO_REUSEPORT, the kernel spreads connections); a unix socket is one
 * for all, and the workers are woken one at a time (EPOLLEXCLUSIVE).
 *
 * Want of descriptors pauses accepting for a moment instead of spinning; the
 * same for the limit on connections, which counts over all workers.
 */
#pragma once
#include <stdatomic.h>
#include "base/list.h"
#include "conf/conf.h"
#include "io/loop.h"

struct worker;
struct worker_site;

/* What the workers share about one address. Reference-counted by the proxy's table of addresses. */
struct listener_address {
	struct list link;
	char configured[128]; /* as written in the configuration */
	char text[128];	      /* as bound */
	int *fd;	/* one per worker */
	unsigned n;
	bool is_tcp;
	bool owns_path; /* the socket file goes with it */
	bool fresh;	/* main thread: opened by the reload in hand */
	atomic_uint open;
	atomic_uint_fast64_t accepted;
};

struct listener {
	struct list link; /* worker->listeners */
	struct worker *worker;
	struct listener_address *address;
	struct worker_site *site;	  /* one reference */
	const struct conf_listener *conf; /* of that site */
	unsigned index;			  /* in its listeners */
	const char *text;
	struct watch watch;
	struct timer retry; /* accepting pauses until then */
	bool accepting, paused;
	unsigned sessions; /* of this worker */
};

/* Starts accepting on the worker's socket of the address. The listener belongs to the worker. 0 or -errno. */
int listener_new(struct worker *w, struct listener_address *a, struct worker_site *site, unsigned index);
/* The same address under another configuration. */
void listener_reconfigure(struct listener *l, struct worker_site *site, unsigned index);
/* Stops accepting; the socket stays the address's. */
void listener_stop(struct listener *l);
void listener_free(struct listener *l);
void listener_session_closed(struct listener *l);
