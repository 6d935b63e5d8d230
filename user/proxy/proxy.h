/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy as a whole: listening sockets, workers, and the site they serve.
 * Used by main and by the control room, from the main thread only, except
 * where said.
 */
#pragma once
#include "conf/conf.h"
#include "kern/bpf.h"
#include "lb/lb.h"

struct proxy;

/*
 * Opens every listening socket of conf (n per TCP address, one per worker).
 * Needs whatever privileges the ports need; starts nothing yet. 0 or -errno
 * with a text in err that names the address and what could be done about it.
 */
int proxy_new(struct proxy **out, const struct conf *conf, struct kern *k, char *err, size_t errlen);
/* Starts the workers; connections are accepted from here on. 0 or -errno, text as above. */
int proxy_start(struct proxy *p, struct lb *lb, char *err, size_t errlen);
/*
 * Goes over to another snapshot: new listeners are opened before anything
 * changes, then every worker switches. 0, or -errno with a text and all is as
 * it was.
 */
int proxy_reload(struct proxy *p, const struct conf *conf, char *err, size_t errlen);
/* Stops accepting; running requests go on with Connection: close. close_idle: idle connections end now. */
void proxy_drain(struct proxy *p, bool close_idle);
/* A descriptor that becomes readable when the last session of a draining proxy has ended. */
int proxy_drained_fd(const struct proxy *p);
/* Ends everything now, sessions under way are cut; frees. *p becomes NULL. */
void proxy_stop(struct proxy **p);
/* SIGUSR1: reopens the access log. 0 or -errno. */
int proxy_reopen_logs(struct proxy *p);

/* ---- for status pages; each from the main thread ---- */
unsigned proxy_workers(const struct proxy *p);
/* Open client connections, idle upstream connections. Any thread. */
unsigned proxy_sessions(const struct proxy *p);
unsigned proxy_idle_upstreams(const struct proxy *p);
const struct conf *proxy_conf(const struct proxy *p);
struct kern *proxy_kern(const struct proxy *p);
struct lb *proxy_lb(const struct proxy *p);
bool proxy_draining(const struct proxy *p);
/* The address that listener i of the configuration is bound to, the kernel's choice of port filled in. */
const char *proxy_listener_text(const struct proxy *p, unsigned i);
/* Sessions of listener i now, and accepted since the start. */
void proxy_listener_counts(const struct proxy *p, unsigned i, unsigned *open, uint64_t *accepted);
