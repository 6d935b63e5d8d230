/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection to a backend, and the pool of those that wait for their next
 * request. A connection has one owner at a time: a session, or the worker's
 * pool. Whatever an idle connection does (a byte, FIN, RST) ends it: a backend
 * has nothing to say between requests.
 *
 *   CONNECTING -> HANDSHAKE -> READY <-> IDLE
 */
#pragma once
#include "base/buf.h"
#include "base/list.h"
#include "io/conn.h"
#include "kern/flow.h"
#include "lb/backend.h"

struct session;
struct worker;
struct conf_upstream;
struct pool;
struct worker_site;

enum upconn_state { UPCONN_CONNECTING, UPCONN_HANDSHAKE, UPCONN_READY, UPCONN_IDLE };

struct upconn {
	struct conn conn;
	enum upconn_state state;
	struct worker *worker;
	struct backend *backend; /* one reference */
	struct session *session; /* NULL while idle */
	struct pool *pool;	 /* while idle */
	struct list idle;	 /* in its pool */
	uint64_t idle_until;
	struct buf in;	    /* read and not yet used */
	uint32_t requests;  /* begun on it */
	struct flow_sock flow;
	struct defer reap;
};

/* An idle connection to b, now the session's; NULL: none. */
struct upconn *upconn_take(struct worker *w, struct backend *b, struct session *s);
/*
 * Starts a connection for the session; takes no reference of the caller's but
 * one of its own. 0 or -errno (the backend is not told of the failure).
 */
int upconn_open(struct upconn **out, struct worker *w, struct worker_site *site, uint32_t upstream, struct backend *b,
		struct session *s);
/*
 * Goes on with connecting and handshake. 0: READY; 1: an event is needed;
 * -errno: failed, *reason says why (static, or valid as long as u).
 */
int upconn_step(struct upconn *u, const char **reason);
/* Gives a connection with nothing under way back to the pool, or closes it when the pool has enough. */
void upconn_release(struct upconn *u, const struct conf_upstream *c);
/* Closes (abort: with RST); freed at the end of the turn. */
void upconn_close(struct upconn *u, bool abort);
/* Closes what has been idle for too long. */
void upconn_sweep(struct worker *w, uint64_t now);
void upconn_close_idle(struct worker *w);
/* Closes an idle one; false: there is none. */
bool upconn_close_one(struct worker *w);
