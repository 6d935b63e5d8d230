/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy as a whole: listening sockets, workers, and the site they serve.
 * Used by main and by the control room, from the main thread only, except
 * where said.
 */
#pragma once
#include "conf/conf.h"
#include "io/handed.h"
#include "kern/bpf.h"
#include "lb/lb.h"

struct proxy;
struct proxy_change;

/*
 * Opens every listening socket of conf (n per TCP address, one per worker),
 * except those that are in `handed`, which are taken from there (NULL: none).
 * Needs whatever privileges the ports need; starts nothing yet. 0 or -errno
 * with a text in err that names the address and what could be done about it.
 */
int proxy_new(struct proxy **out, const struct conf *conf, struct kern *k, struct handed *handed, char *err,
	      size_t errlen);
/* Starts the workers; nothing is accepted yet. Whatever can fail has been done then. 0 or -errno, text as above. */
int proxy_start(struct proxy *p, struct lb *lb, char *err, size_t errlen);
/* Connections are accepted from here on. Once, after proxy_start. */
void proxy_accept(struct proxy *p);

/*
 * Going over to another snapshot, in two steps so that several rooms can change
 * together. prepare does all that can fail: new listeners are opened, contexts
 * built, the access log opened; 0, or -errno with a text and all is as it was.
 * commit makes every worker switch; abort takes everything back. Both free the
 * change and clear the pointer.
 */
int proxy_reload_prepare(struct proxy_change **out, struct proxy *p, const struct conf *conf, char *err, size_t errlen);
void proxy_reload_commit(struct proxy_change **change);
void proxy_reload_abort(struct proxy_change **change);

/*
 * Stops accepting (what is in the queues is still taken) and closes the
 * listening sockets; every response says Connection: close. close_idle: who
 * waits for a next request is closed; without it idle connections stay until
 * their next request, which is answered. May be called again to add close_idle.
 */
void proxy_drain(struct proxy *p, bool close_idle);
/* Adds the listening sockets to a set; they stay the proxy's. 0 or -ENOMEM. */
int proxy_collect(const struct proxy *p, struct handed *set);
/* Another process has them now: their paths are no longer ours to remove. Before proxy_drain. */
void proxy_disown_paths(struct proxy *p);
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
/* Adds what the process before us accepted on the address. */
void proxy_restore_accepted(struct proxy *p, const char *listener, uint64_t n);
/* Sessions of listener i now, and accepted since the start. */
void proxy_listener_counts(const struct proxy *p, unsigned i, unsigned *open, uint64_t *accepted);
