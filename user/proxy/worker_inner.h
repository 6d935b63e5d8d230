/* SPDX-License-Identifier: Apache-2.0 */
/* Between proxy.c and worker.c. */
#pragma once
#include "kern/listen.h"
#include "proxy/worker.h"

struct listener_address;

int worker_init(struct worker *w, struct proxy *p, unsigned index, struct kern *k);
/* After its thread has ended. */
void worker_deinit(struct worker *w);
int worker_site_new(struct worker_site **out, struct site *site, unsigned worker);

/* The rest from the worker's own thread. */
/* Goes over to another site (takes the reference); addresses[i] belongs to listener i. */
void worker_apply(struct worker *w, struct worker_site *site, struct listener_address **addresses);
void worker_drain(struct worker *w, bool close_idle);
void worker_end(struct worker *w);

/* proxy.c: who spreads new connections over the workers. */
struct descriptors *proxy_descriptors(struct proxy *p);
struct kern_listen *proxy_listen(struct proxy *p);
/* proxy.c: the worker's last session has ended while draining. */
void proxy_worker_drained(struct proxy *p);
