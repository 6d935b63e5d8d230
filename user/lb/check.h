/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One health check of one address: connect, TLS handshake where the upstream
 * has TLS, for HTTP a GET and its response head. Non-blocking on a loop; the
 * result comes by callback, never from inside check_start.
 *
 *   IDLE -> CONNECT -> HANDSHAKE -> SEND -> READ -> IDLE
 * A phase that a plan does not need is passed through. From any phase the
 * deadline or an error leads to IDLE with a result.
 */
#pragma once
#include "base/buf.h"
#include "conf/conf.h"
#include "io/conn.h"
#include "io/sock.h"

struct tls_ctx;

enum check_phase { CHECK_IDLE, CHECK_CONNECT, CHECK_HANDSHAKE, CHECK_SEND, CHECK_READ, _CHECK_PHASE_MAX };

enum check_outcome {
	CHECK_PASSED,
	CHECK_FAILED,
	CHECK_INCONCLUSIVE, /* this host could not try (no descriptors, no memory): says nothing about the backend */
};

/* What to do; everything is borrowed until the result. */
struct check_plan {
	struct sock_addr addr;
	struct tls_ctx *tls; /* NULL: plain */
	const char *tls_name;
	struct str request;                     /* empty: no HTTP, a connection is enough */
	const struct conf_health_check *expect; /* statuses, with a request */
	uint64_t timeout_ns;
};

#define CHECK_REASON_MAX 160

struct check {
	struct conn conn;
	struct timer deadline;
	struct loop *loop;
	enum check_phase phase;
	struct check_plan plan;
	size_t sent, scan;
	unsigned interim; /* 1xx responses so far */
	struct buf in;
	uint64_t started_ns;
	enum check_outcome start_failure; /* when there was no socket to begin with */

	void (*done)(struct check *c, enum check_outcome outcome);
	/* With the result: */
	uint64_t took_ns;
	char reason[CHECK_REASON_MAX]; /* of a failure, a sentence without line breaks */
};

void check_init(struct check *c, struct loop *l, void (*done)(struct check *, enum check_outcome));
/* c must be idle. The plan is copied. 0, or -ENOMEM: not started, there will be no result. */
int check_start(struct check *c, const struct check_plan *plan);
static inline bool check_running(const struct check *c)
{
	return c->phase != CHECK_IDLE;
}
/* Ends a running check without a result and frees what it holds; c can be started again. */
void check_cancel(struct check *c);

/* True for errors of this host rather than of the address: EMFILE, ENOMEM and the like. Either sign. */
bool check_error_is_ours(int err);
