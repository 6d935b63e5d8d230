/* SPDX-License-Identifier: Apache-2.0 */
#include "lb/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "http/http.h"
#include "io/tls.h"

#define HEAD_MAX 16384u
#define FIELDS_MAX 100u
#define INTERIM_MAX 32u /* 1xx responses before the one that counts */

/* What a phase answers: go on with c->phase, wait for the socket, or there is a result. */
enum step { STEP_GO_ON, STEP_WAIT, STEP_PASSED, STEP_FAILED, STEP_OURS };

bool check_error_is_ours(int err)
{
	switch (err < 0 ? -err : err) {
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOBUFS:
	case EADDRNOTAVAIL: /* out of local ports */
		return true;
	}
	return false;
}

_printf_(2, 3) static enum step fail(struct check *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->reason, sizeof(c->reason), fmt, ap);
	va_end(ap);
	return STEP_FAILED;
}

static enum step fail_errno(struct check *c, const char *what, int r)
{
	fail(c, "%s: %s", what, strerror(-r));
	return check_error_is_ours(r) ? STEP_OURS : STEP_FAILED;
}

/* Called with the first event of the socket: connected, or not. */
static enum step step_connect(struct check *c)
{
	int r;

	if (!c->conn.writable && !c->conn.failed)
		return STEP_WAIT;
	r = sock_error(c->conn.watch.fd);
	if (r < 0)
		return fail_errno(c, "connect", r);
	c->phase = CHECK_HANDSHAKE;
	if (!c->plan.tls)
		return STEP_GO_ON;
	r = tls_new_client(&c->conn.tls, c->plan.tls, c->conn.watch.fd, c->plan.tls_name, NULL);
	return r < 0 ? fail_errno(c, "tls", r) : STEP_GO_ON;
}

static enum step step_handshake(struct check *c)
{
	int r;

	if (c->conn.tls) {
		r = tls_handshake(c->conn.tls);
		if (r > 0)
			return STEP_WAIT;
		if (r < 0)
			return fail(c, "tls %s: %s", tls_failure_name(tls_failure(c->conn.tls)),
				    tls_reason(c->conn.tls));
	}
	if (c->plan.request.n == 0)
		return STEP_PASSED;
	c->phase = CHECK_SEND;
	return STEP_GO_ON;
}

static enum step step_send(struct check *c)
{
	while (c->sent < c->plan.request.n) {
		ssize_t r = conn_write(&c->conn, c->plan.request.p + c->sent, c->plan.request.n - c->sent);

		if (r == -EAGAIN)
			return STEP_WAIT;
		if (r < 0)
			return fail_errno(c, "send", (int)r);
		c->sent += (size_t)r;
	}
	c->phase = CHECK_READ;
	return STEP_GO_ON;
}

/* 1xx responses are skipped; the first other one decides. STEP_GO_ON: more bytes are needed. */
static enum step judge(struct check *c)
{
	const struct http_limits limits = { .head_bytes = HEAD_MAX, .fields = FIELDS_MAX };
	struct http_field fields[FIELDS_MAX];
	struct http_verdict verdict = { 0 };
	struct http_head head;

	http_head_init(&head, fields, FIELDS_MAX);
	for (;;) {
		int r = http_parse_response(buf_data(&c->in), c->in.len, &c->scan, &limits, HTTP_M_GET, &head,
					    &verdict);

		if (r == HTTP_MORE)
			return STEP_GO_ON;
		if (r == HTTP_BAD)
			return fail(c, "not a valid response: %s", verdict.reason ? verdict.reason : "malformed");
		if (head.status >= 200)
			break;
		if (head.status == 101)
			return fail(c, "status 101 that was not asked for");
		if (++c->interim > INTERIM_MAX)
			return fail(c, "too many interim responses");
		buf_consume(&c->in, head.head_len);
		if (c->in.len == 0)
			return STEP_GO_ON;
	}
	if (!conf_status_expected(c->plan.expect, (unsigned)head.status))
		return fail(c, "status %d", head.status);
	return STEP_PASSED;
}

static enum step step_read(struct check *c)
{
	for (;;) {
		enum step s;
		ssize_t r = buf_reserve(&c->in, 2048);

		if (r == 0)
			r = conn_read(&c->conn, buf_tail(&c->in), buf_room(&c->in));
		if (r == -EAGAIN)
			return STEP_WAIT;
		if (r == 0 || r == -ENODATA)
			return fail(c, "closed before the end of the response head");
		if (r < 0)
			return fail_errno(c, "read", (int)r);
		buf_commit(&c->in, (size_t)r);
		s = judge(c);
		if (s != STEP_GO_ON)
			return s;
		if (!c->conn.readable)
			return STEP_WAIT;
	}
}

static enum step (*const steps[_CHECK_PHASE_MAX])(struct check *) = {
	[CHECK_CONNECT] = step_connect,
	[CHECK_HANDSHAKE] = step_handshake,
	[CHECK_SEND] = step_send,
	[CHECK_READ] = step_read,
};

static const char *const phase_names[_CHECK_PHASE_MAX] = {
	[CHECK_IDLE] = "idle",
	[CHECK_CONNECT] = "connect",
	[CHECK_HANDSHAKE] = "tls handshake",
	[CHECK_SEND] = "sending a request",
	[CHECK_READ] = "response",
};

/*
 * A plain connection that was only opened is reset rather than closed: no
 * TIME_WAIT for each check, and a server whose accept comes later drops it
 * without work (what other balancers do too).
 */
void check_cancel(struct check *c)
{
	conn_deinit(&c->conn, !c->conn.tls && c->plan.request.n == 0);
	timer_remove(c->loop, &c->deadline);
	buf_deinit(&c->in);
	c->phase = CHECK_IDLE;
}

static void finish(struct check *c, enum check_outcome outcome)
{
	c->took_ns = loop_now_fresh(c->loop) - c->started_ns;
	check_cancel(c);
	c->done(c, outcome);
}

static void run(struct check *c)
{
	enum step s;

	do
		s = steps[c->phase](c);
	while (s == STEP_GO_ON);
	if (s == STEP_WAIT)
		return;
	finish(c, s == STEP_PASSED ? CHECK_PASSED : s == STEP_FAILED ? CHECK_FAILED : CHECK_INCONCLUSIVE);
}

static void on_event(struct watch *w, uint32_t events)
{
	struct check *c = container_of(w, struct check, conn.watch);

	conn_event(&c->conn, events);
	if (check_running(c))
		run(c);
}

/* The deadline; where there is no socket it only brings back what went wrong in check_start. */
static void on_deadline(struct timer *t)
{
	struct check *c = container_of(t, struct check, deadline);

	if (c->conn.watch.fd < 0) {
		finish(c, c->start_failure);
		return;
	}
	fail(c, "%s timed out", phase_names[c->phase]);
	finish(c, CHECK_FAILED);
}

void check_init(struct check *c, struct loop *l, void (*done)(struct check *, enum check_outcome))
{
	*c = (struct check){ .loop = l, .done = done, .conn.watch.fd = -1 };
	timer_init(&c->deadline, on_deadline);
}

int check_start(struct check *c, const struct check_plan *plan)
{
	bool in_progress;
	int fd, r;

	c->started_ns = loop_now_fresh(c->loop);
	r = timer_set(c->loop, &c->deadline, c->started_ns + plan->timeout_ns);
	if (r < 0)
		return r;
	c->plan = *plan;
	c->phase = CHECK_CONNECT;
	c->sent = c->scan = 0;
	c->interim = 0;
	c->reason[0] = 0;
	fd = sock_connect(&plan->addr, &in_progress);
	r = fd < 0 ? fd : conn_init(&c->conn, c->loop, fd, on_event);
	if (r < 0) {
		/* The result comes by callback like any other, with the next turn. */
		c->start_failure = fail_errno(c, "connect", r) == STEP_OURS ? CHECK_INCONCLUSIVE : CHECK_FAILED;
		return timer_set(c->loop, &c->deadline, c->started_ns);
	}
	c->conn.writable = false; /* not before the first event has told how the connect ended */
	return 0;
}
