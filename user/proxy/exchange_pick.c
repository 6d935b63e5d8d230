/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing a backend and getting a connection to it. Every failure is either
 * made good by another try, which the upstream's retries, the worker's budget
 * and the request itself must allow, or becomes the answer.
 */
#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "proxy/exchange_inner.h"
#include "proxy/listener.h"
#include "proxy/worker.h"

bool exchange_retry(struct session *s, enum conf_retry_on on, int status, enum session_end why, const char *detail)
{
	struct exchange *x = s->x;
	const struct conf_retries *r = &x->upstream->retries;

	if (detail != x->detail_text) {
		snprintf(x->detail_text, sizeof(x->detail_text), "%s", detail);
		detail = x->detail_text;
	}
	body_deinit(&x->request); /* what the kernel moved and has not told of counts */
	if ((r->on & on) && x->attempts <= r->max && !x->request.begun &&
	    retry_budget_take(&s->worker->retries, loop_now(s->worker->loop))) {
		COUNT(s->worker, retries);
		exchange_drop_upstream(s, false);
		x->fresh_only = true; /* what killed one idle connection has likely killed the others too */
		x->last_status = status;
		x->last_end = why;
		x->request_done = !exchange_has_body(x);
		x->request_dead = false;
		if (s->state != SESSION_PICK)
			session_go(s, SESSION_PICK);
		return true;
	}
	exchange_fail(s, status, why, detail);
	return false;
}

static void note_failure(struct session *s, struct backend *b, int err, const char *reason)
{
	struct exchange *x = s->x;
	char text[160];

	COUNT(s->worker, connect_failures);
	backend_note_connect_failure(b, err);
	upstream_tried_add(&x->tried, b);
	snprintf(x->detail_text, sizeof(x->detail_text), "%s: %s", b->text, reason);
	log_warn("connect_failed", "upstream=%s backend=%s attempt=%u reason=%s", b->upstream, b->text, x->attempts,
		 log_quote(text, sizeof(text), str_from(reason)));
}

/* The connection is there: both messages can start moving. */
static void start(struct session *s)
{
	struct exchange *x = s->x;
	struct worker *w = s->worker;
	struct upconn *u = x->up;

	x->t_connected = loop_now(w->loop);
	if (!x->reused)
		backend_note_ok(u->backend);
	body_init(&x->request, w, BODY_REQUEST, &s->client, &u->conn, &s->in, &x->head, x->framing, x->length);
	body_init(&x->response, w, BODY_RESPONSE, &u->conn, &s->client, &u->in, &x->out, HTTP_BODY_NONE, 0);
	body_pair(&x->request, s, &s->flow, !s->listener->address->is_tcp, &u->flow, !sock_is_tcp(&u->backend->addr));
	body_pair(&x->response, s, &u->flow, !sock_is_tcp(&u->backend->addr), &s->flow,
		  !s->listener->address->is_tcp);
	x->request.limit = x->listener->limits.body_bytes;
	x->request_done = false; /* its head is still to be sent */
	x->response_state = RESPONSE_HEAD;
	x->scan = 0;
	x->request_mark_ns = x->client_mark_ns = x->up_mark_ns = x->t_connected;
	session_go(s, SESSION_EXCHANGE);
}

bool exchange_pick(struct session *s)
{
	struct exchange *x = s->x;
	struct worker *w = s->worker;
	struct upstream_view *view = &x->site->views[x->upstream->index];
	struct backend *b;
	int r;

	for (;;) {
		b = upstream_choose(view, x->key, &x->tried);
		if (!b && x->avoids_last) {
			x->tried.n--;
			b = upstream_choose(view, x->key, &x->tried);
		}
		x->avoids_last = false;
		if (!b && x->attempts == 0) {
			exchange_fail(s, 503, END_NO_BACKEND, "no backend is healthy");
			return s->state != SESSION_CLOSED;
		}
		if (!b) {
			exchange_fail(s, x->last_status, x->last_end, x->detail_text);
			return s->state != SESSION_CLOSED;
		}
		x->attempts++;
		if (!x->t_upstream)
			x->t_upstream = loop_now(w->loop);
		text_copy(x->backend_text, sizeof(x->backend_text), b->text);
		log_debug("peer_chosen", "upstream=%s backend=%s attempt=%u method=" STR_FMT, b->upstream, b->text,
			  x->attempts, STR_ARG(x->method));
		x->up = x->fresh_only ? NULL : upconn_take(w, b, s);
		x->reused = x->up != NULL;
		if (x->up) {
			COUNT(w, upstream_reused);
			backend_request_begin(b);
			backend_unref(b);
			start(s);
			return true;
		}
		r = upconn_open(&x->up, w, x->site, x->upstream->index, b, s);
		if (r == 0) {
			COUNT(w, upstream_connections);
			backend_request_begin(b);
			backend_unref(b);
			session_go(s, SESSION_CONNECT);
			return true;
		}
		x->up = NULL;
		if ((r == -EMFILE || r == -ENFILE) && worker_spare(w)) {
			backend_unref(b);
			x->attempts--;
			continue;
		}
		/* Want of descriptors or memory is ours, not the backend's. */
		if (r == -EMFILE || r == -ENFILE || r == -ENOMEM || r == -ENOBUFS || r == -EADDRNOTAVAIL) {
			log_warn("connect_failed", "upstream=%s backend=%s errno=%d reason=\"%s\"", b->upstream, b->text,
				 -r, strerror(-r));
			backend_unref(b);
			exchange_fail(s, 503, END_CONNECT_FAILED, "out of sockets");
			return s->state != SESSION_CLOSED;
		}
		note_failure(s, b, r, strerror(-r));
		backend_unref(b);
		if (!exchange_retry(s, CONF_RETRY_CONNECT_FAILURE, 502, END_CONNECT_FAILED, x->detail_text))
			return s->state != SESSION_CLOSED;
	}
}

bool exchange_connect(struct session *s)
{
	struct exchange *x = s->x;
	const char *reason = "";
	bool tls;
	int r;

	if (s->client.failed) {
		exchange_abort(s, END_CLIENT_GONE);
		return false;
	}
	tls = x->up->state == UPCONN_HANDSHAKE;
	r = upconn_step(x->up, &reason);
	if (r > 0) {
		if (!tls && x->up->state == UPCONN_HANDSHAKE)
			s->since = loop_now(s->worker->loop); /* the handshake has a time of its own */
		return false;
	}
	if (r == 0) {
		start(s);
		return true;
	}
	tls = x->up->state == UPCONN_HANDSHAKE;
	note_failure(s, x->up->backend, r, reason);
	exchange_retry(s, CONF_RETRY_CONNECT_FAILURE, 502, tls ? END_UPSTREAM_TLS : END_CONNECT_FAILED, x->detail_text);
	return s->state != SESSION_CLOSED;
}

void exchange_timeout_connect(struct session *s)
{
	struct exchange *x = s->x;
	bool tls = x->up->state == UPCONN_HANDSHAKE;

	COUNT(s->worker, timeouts);
	note_failure(s, x->up->backend, -ETIMEDOUT, tls ? "TLS handshake timed out" : "connect timed out");
	exchange_retry(s, CONF_RETRY_CONNECT_FAILURE, 504, END_CONNECT_TIMEOUT, x->detail_text);
}
