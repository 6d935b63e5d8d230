/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Request and response on their way, and tunnels. The two directions are
 * independent: a response may begin, and end, before its request has.
 */
#include <errno.h>
#include <sys/socket.h>

#include "base/log.h"
#include "io/tls.h"
#include "proxy/exchange_inner.h"
#include "proxy/listener.h"
#include "proxy/worker.h"

#define HEAD_READ 16384u
#define RESPONSE_HEAD_BYTES 65536u
#define INTERIM_MAX 32		 /* 1xx responses to one request */
#define OUT_PENDING_MAX 131072u /* 1xx bytes a client may leave unread */

/* What lies behind the request. Of TLS only reading tells: it may be data, or the end. */
static bool more_behind(struct session *s)
{
	ssize_t n;
	char c;

	if (!s->client.tls)
		return recv(s->client.watch.fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) != 0;
	if (buf_reserve(&s->in, HEAD_READ) < 0)
		return false;
	n = conn_read(&s->client, buf_tail(&s->in), buf_room(&s->in));
	if (n > 0)
		buf_commit(&s->in, (size_t)n);
	return n > 0;
}

/*
 * A client that has sent its whole request and then FIN has gone: nobody will
 * take the answer. Not so when there is something behind the request (it
 * pipelined and half-closed); then the rest is answered first.
 */
static bool client_gone(struct session *s)
{
	if (s->client.failed)
		return true;
	if (!s->client.rdhup || !s->x->request_done || s->in.len)
		return false;
	return !more_behind(s);
}

/* The backend's side failed with nothing of a final response seen. */
static void upstream_died(struct session *s, const char *detail)
{
	struct exchange *x = s->x;

	if (x->up->in.len == 0 && x->reused && !x->answered && x->interim == 0 &&
	    (x->idempotent || x->request.head_sent == 0)) {
		/* It may be dying, and accept what it will not answer: elsewhere first, unless the key binds us to it. */
		if (!conf_balance_hashes(x->upstream->balance) && x->tried.n < UPSTREAM_TRIED_MAX) {
			upstream_tried_add(&x->tried, x->up->backend);
			x->avoids_last = true;
		}
		exchange_retry(s, CONF_RETRY_REUSED_CONNECTION, 502, END_UPSTREAM_CLOSED, detail);
		return;
	}
	exchange_fail(s, 502, END_UPSTREAM_CLOSED, detail);
}

/* True while the exchange goes on. */
static bool run_request(struct session *s)
{
	struct exchange *x = s->x;

	switch (body_run(&x->request)) {
	case BODY_DONE:
		x->request_done = true;
		x->t_sent = x->up_mark_ns = loop_now(s->worker->loop);
		return true;
	case BODY_WAIT:
		return true;
	case BODY_AGAIN:
		session_run_again(s);
		return true;
	case BODY_SRC_ENDED:
	case BODY_SRC_FAILED:
		exchange_abort(s, END_CLIENT_GONE);
		return false;
	case BODY_DST_FAILED:
		/* It may have answered before it closed: the response decides. */
		x->request_dead = true;
		return true;
	case BODY_TOO_LARGE:
		exchange_fail(s, 413, END_BODY_TOO_LARGE, "the body is longer than limits.body_bytes");
		return false;
	case BODY_BAD:
		COUNT(s->worker, requests_refused);
		exchange_fail(s, x->request.verdict.status, END_BAD_REQUEST, x->request.verdict.reason);
		return false;
	}
	return false;
}

static bool begin_tunnel(struct session *s, const struct http_head *h)
{
	struct exchange *x = s->x;
	struct http_rewrite_response rw = { .client_minor = x->client_minor,
					    .upgrade = true,
					    .via = x->site->site->via[s->listener->index] };
	size_t sent = x->response.head_sent;

	if (!http_upgrade_was_offered(x->upgrade, h->upgrade) || !x->request_done) {
		exchange_fail(s, 502, END_UPSTREAM_BAD, "101 that was not asked for");
		return false;
	}
	if (http_write_response(&x->out, h, &rw) < 0) {
		exchange_abort(s, END_OUT_OF_MEMORY);
		return false;
	}
	buf_consume(&x->up->in, h->head_len);
	x->status = 101;
	x->answered = true;
	x->last = true;
	x->t_response = loop_now(s->worker->loop);
	body_deinit(&x->request);
	buf_consume(&x->head, x->head.len);
	body_restart(&x->request, HTTP_BODY_CLOSE, 0);
	body_restart(&x->response, HTTP_BODY_CLOSE, 0);
	x->response.head_sent = sent;
	x->request.tunnel = x->response.tunnel = true;
	x->request_done = false;
	x->response_state = RESPONSE_BODY;
	x->request_mark_ns = x->client_mark_ns = x->up_mark_ns = x->t_response;
	session_go(s, SESSION_TUNNEL);
	return false;
}

/* A final response head: everything that decides how its body goes and what follows it. */
static bool begin_response(struct session *s, const struct http_head *h)
{
	struct exchange *x = s->x;
	struct http_rewrite_response rw = { .client_minor = x->client_minor,
					    .via = x->site->site->via[s->listener->index] };
	size_t sent = x->response.head_sent;

	/*
	 * The rest of a request is not waited for once its response is through, and then the connection ends: that must be
	 * said now. The kernel may have moved all of it and not told us yet.
	 */
	if (!x->request_done && !x->request_dead) {
		body_poll(&x->request);
		if (!run_request(s))
			return false;
	}
	if (!x->keep_alive || s->worker->draining || http_response_ends_by_close(h, x->client_minor) || !x->request_done)
		x->last = true;
	rw.close = x->last;
	if (http_write_response(&x->out, h, &rw) < 0) {
		exchange_abort(s, END_OUT_OF_MEMORY);
		return false;
	}
	buf_consume(&x->up->in, h->head_len);
	x->status = h->status;
	x->answered = true;
	x->t_response = loop_now(s->worker->loop);
	x->up_keep_alive = h->keep_alive && h->framing != HTTP_BODY_CLOSE;
	body_restart(&x->response, h->framing, h->length);
	x->response.head_sent = sent;
	if (h->framing == HTTP_BODY_CHUNKED && x->client_minor == 0)
		body_chunks_bare(&x->response);
	x->response_state = RESPONSE_BODY;
	x->client_mark_ns = x->up_mark_ns = x->t_response;
	return true;
}

/* A complete head from the backend. True while the exchange goes on. */
static bool take_response_head(struct session *s, const struct http_head *h)
{
	struct exchange *x = s->x;
	struct http_rewrite_response rw = { .client_minor = x->client_minor,
					    .via = x->site->site->via[s->listener->index] };

	if (h->status == 101)
		return begin_tunnel(s, h);
	if (h->status >= 200)
		return begin_response(s, h);
	if (++x->interim > INTERIM_MAX || x->out.len - x->response.head_sent > OUT_PENDING_MAX) {
		exchange_fail(s, 502, END_UPSTREAM_BAD, "too many interim responses");
		return false;
	}
	if (x->client_minor > 0 && http_write_response(&x->out, h, &rw) < 0) { /* 1.0 knows no 1xx */
		exchange_abort(s, END_OUT_OF_MEMORY);
		return false;
	}
	buf_consume(&x->up->in, h->head_len);
	x->up_mark_ns = loop_now(s->worker->loop);
	return true;
}

/*
 * Nothing to read from the backend. When it refused our bytes there is nothing
 * to wait for either: what it had sent before is read by now.
 */
static bool response_may_come(struct session *s)
{
	if (!s->x->request_dead)
		return true;
	upstream_died(s, "the backend closed within the request");
	return false;
}

/* Reads and parses until a final head is there. True while the exchange goes on. */
static bool run_response_head(struct session *s)
{
	static const struct http_limits limits = { .head_bytes = RESPONSE_HEAD_BYTES, .fields = HTTP_FIELDS_MAX };
	struct exchange *x = s->x;
	struct http_head *h = &s->worker->head;
	struct http_verdict verdict;

	while (x->response_state == RESPONSE_HEAD) {
		struct upconn *u = x->up;
		ssize_t n;
		int r = HTTP_MORE;

		if (u->in.len)
			r = http_parse_response(buf_data(&u->in), u->in.len, &x->scan, &limits, x->method_id, h,
						&verdict);
		if (r == HTTP_BAD) {
			exchange_fail(s, 502, END_UPSTREAM_BAD, verdict.reason);
			return false;
		}
		if (r == 0) {
			if (!take_response_head(s, h))
				return false;
			continue;
		}
		if (u->conn.eof) {
			upstream_died(s, u->in.len ? "the backend closed within the response head"
						   : "the backend closed without a response");
			return false;
		}
		if (!u->conn.readable)
			return response_may_come(s);
		if (buf_room(&u->in) < HEAD_READ / 4 && buf_reserve(&u->in, HEAD_READ) < 0) {
			exchange_abort(s, END_OUT_OF_MEMORY);
			return false;
		}
		n = conn_read(&u->conn, buf_tail(&u->in), buf_room(&u->in));
		if (n == -EAGAIN)
			return response_may_come(s);
		if (n < 0) {
			upstream_died(s, n == -ENODATA ? "the backend ended TLS without close_notify"
						       : "the backend reset the connection");
			return false;
		}
		buf_commit(&u->in, (size_t)n);
	}
	return true;
}

/* True while the exchange goes on. */
static bool run_response(struct session *s)
{
	struct exchange *x = s->x;

	if (x->response_state == RESPONSE_HEAD) {
		if (!run_response_head(s))
			return false;
		if (x->response_state == RESPONSE_HEAD && x->out.len == x->response.head_sent)
			return true;
	}
	switch (body_run(&x->response)) {
	case BODY_DONE:
		if (x->response_state == RESPONSE_HEAD) {
			/* Only interim responses so far; they are out, and the body object waits for the next head. */
			buf_consume(&x->out, x->out.len);
			body_restart(&x->response, HTTP_BODY_NONE, 0);
			return true;
		}
		/*
		 * The backend can answer before the kernel's word that it has the whole request
		 * reaches us; that must not cost the client its connection.
		 */
		if (!x->request_done && !x->request_dead) {
			body_poll(&x->request);
			x->request_done = body_run(&x->request) == BODY_DONE;
		}
		exchange_complete(s);
		return false;
	case BODY_WAIT:
		return true;
	case BODY_AGAIN:
		session_run_again(s);
		return true;
	case BODY_SRC_ENDED:
		x->detail = "the backend closed before the body was complete";
		exchange_abort(s, END_UPSTREAM_CUT);
		return false;
	case BODY_SRC_FAILED:
		x->detail = x->up->conn.tls ? tls_open_failure(x->up->conn.tls) : NULL;
		if (!x->detail)
			x->detail = "the backend reset the connection within the body";
		exchange_abort(s, END_UPSTREAM_CUT);
		return false;
	case BODY_BAD:
		x->detail = x->response.verdict.reason;
		exchange_abort(s, END_UPSTREAM_BAD);
		return false;
	case BODY_DST_FAILED:
	case BODY_TOO_LARGE:
		exchange_abort(s, END_CLIENT_GONE);
		return false;
	}
	return false;
}

bool exchange_step(struct session *s)
{
	struct exchange *x = s->x;

	if (client_gone(s)) {
		exchange_abort(s, END_CLIENT_GONE);
		return false;
	}
	if (!x->request_done && !x->request_dead && !run_request(s))
		return s->state != SESSION_CLOSED;
	if (!run_response(s))
		return s->state != SESSION_CLOSED;
	return false;
}

/* One direction of a tunnel. True: it is still open. */
static bool run_tunnel(struct session *s, struct body *b, bool *done, bool *broken)
{
	if (*done)
		return false;
	switch (body_run(b)) {
	case BODY_DONE:
		if (conn_shutdown(b->dst) == -EAGAIN)
			return true;
		*done = true;
		return false;
	case BODY_WAIT:
		return true;
	case BODY_AGAIN:
		session_run_again(s);
		return true;
	default:
		*broken = true;
		return false;
	}
}

bool exchange_tunnel(struct session *s)
{
	struct exchange *x = s->x;
	bool broken = false, up_open, down_open;

	up_open = run_tunnel(s, &x->request, &x->request_done, &broken);
	down_open = run_tunnel(s, &x->response, &x->tunnel_down_done, &broken);
	if (!broken && (up_open || down_open))
		return false;
	if (!broken)
		x->response_state = RESPONSE_DONE;
	exchange_abort(s, END_TUNNEL_CLOSED);
	return false;
}
