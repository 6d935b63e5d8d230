/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One worker's end of a listening address. TCP addresses have one socket per
 * worker (SO_REUSEPORT, the kernel spreads connections); a unix socket is one
 * for all, and the workers are woken one at a time (EPOLLEXCLUSIVE).
 *
 * Sockets taken over from another process may be more or fewer than the
 * workers. A place is a pair of worker and socket: place k is socket k % n at
 * worker k % workers, for k below the larger of the two, so that every socket
 * has somebody who accepts and every worker has a socket.
 *
 * An address that is retired is closed by the last worker that stops accepting
 * on it, after it took what was in the queue.
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

/* What the workers share about one address. In the proxy's table; freed there when it is retired and refs is 0. */
struct listener_address {
	struct list link;
	char configured[128]; /* as written in the configuration */
	char text[128];	      /* as bound */
	int *fd;	/* n of them; -1 once closed */
	unsigned n, places;
	unsigned listening; /* the first so many; the others are bound and follow when accepting begins */
	bool is_tcp;
	bool owns_path; /* the socket file goes with it */
	bool fresh;	/* main thread: opened by the reload in hand */
	bool spread;	/* main thread: how new connections are spread over the sockets is arranged */
	atomic_bool retired;   /* set by the main thread before it tells the workers */
	atomic_uint accepting; /* places where it is not yet stopped; set to `places` when it is opened */
	atomic_uint refs;      /* places whose struct listener may still be looked at; likewise */
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
	unsigned place;
	const char *text;
	struct watch watch;
	struct timer retry; /* accepting pauses until then */
	bool accepting, paused;
	bool unwatched; /* epoll refused it so far */
	unsigned sessions; /* of this worker */
};

/*
 * Starts accepting at a place of the address. The listener belongs to the
 * worker. 0, or -errno and the place is given up.
 */
int listener_new(struct worker *w, struct listener_address *a, unsigned place, struct worker_site *site, unsigned index);
/* The same address under another configuration. */
void listener_reconfigure(struct listener *l, struct worker_site *site, unsigned index);
/* Takes what is in the queue, then stops accepting. */
void listener_stop(struct listener *l);
void listener_free(struct listener *l);
void listener_session_closed(struct listener *l);
/* Closes the sockets, removes the path that goes with them. By whoever is the last to use them. */
void listener_address_close(struct listener_address *a);
