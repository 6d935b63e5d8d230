/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every wait has an end. A session has one timer; when it comes up, what the
 * session waits for decides.
 *
 * Waits with a fixed end: handshake, head (however its bytes drip), connect,
 * the first byte of a response. Waits that move: bodies. Those are watched by
 * windows as long as the timeout: at the end of a window the side that holds
 * things up must have moved at least one byte, and at least the minimum rate
 * times the window. For what goes to a client, progress is what its TCP
 * acknowledged, not what a send buffer took; its windows are half as long and
 * two in a row must be bad, so that a moment's backlog of a slow stream at the
 * end of a window is not taken for a slow reader.
 */
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "proxy/exchange.h"
#include "proxy/listener.h"
#include "proxy/worker.h"

#define LINGER_MS 2000u

/* Bytes the peer has acknowledged so far, and what it has not. */
static uint64_t acked(struct session *s, uint64_t *unacked)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);
	int outq = 0;

	ioctl(s->client.watch.fd, SIOCOUTQ, &outq);
	*unacked = (uint64_t)MAX_OF(outq, 0);
	if (getsockopt(s->client.watch.fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && len >= offsetof(struct tcp_info, tcpi_bytes_received))
		return info.tcpi_bytes_acked;
	return s->x->response.data - MIN_OF(s->x->response.data, *unacked);
}

static uint64_t after(uint64_t start, uint32_t ms)
{
	return start + ms * NS_PER_MS;
}

/* The timeouts that hold for the exchange's two directions; UINT64_MAX: none. */
static uint64_t exchange_deadline(const struct session *s)
{
	struct exchange *x = s->x;
	const struct conf_listener_timeouts *c = &x->listener->timeouts;
	const struct conf_upstream_timeouts *u = &x->upstream->timeouts;
	uint64_t d = UINT64_MAX;

	if (s->state == SESSION_TUNNEL)
		return after(x->up_mark_ns, u->read_ms);
	if (!x->request_done && !x->request_dead)
		d = after(x->request_mark_ns, body_waits_for_dst(&x->request) ? u->write_ms : c->body_ms);
	if (x->response_state == RESPONSE_HEAD && (x->request_done || x->request_dead))
		d = MIN_OF(d, after(x->up_mark_ns, u->read_ms));
	if (x->response_state == RESPONSE_BODY)
		d = MIN_OF(d, MIN_OF(after(x->up_mark_ns, u->read_ms), after(x->client_mark_ns, c->write_ms / 2 + 1)));
	return d;
}

void session_arm_timer(struct session *s)
{
	const struct conf_listener_timeouts *c = &s->listener->conf->timeouts;
	uint64_t d = UINT64_MAX;

	switch (s->state) {
	case SESSION_PREFACE:
	case SESSION_HANDSHAKE:
		d = after(s->since, c->head_ms);
		break;
	case SESSION_HEAD:
		d = after(s->since, s->in.len || s->requests == 0 ? c->head_ms : c->idle_ms);
		break;
	case SESSION_CONNECT:
		d = after(s->since, s->x->up->state == UPCONN_HANDSHAKE ? s->x->upstream->timeouts.tls_ms
									: s->x->upstream->timeouts.connect_ms);
		break;
	case SESSION_EXCHANGE:
	case SESSION_TUNNEL:
		d = exchange_deadline(s);
		break;
	case SESSION_REPLY:
		d = after(s->since, c->write_ms);
		break;
	case SESSION_LINGER:
		d = after(s->since, s->shut_pending ? c->write_ms : LINGER_MS);
		break;
	case SESSION_PICK:
	case SESSION_CLOSED:
	case _SESSION_STATE_MAX:
		return;
	}
	timer_set(s->worker->loop, &s->timer, d);
}

static bool too_slow(uint64_t moved, uint64_t rate, uint32_t window_ms)
{
	return moved == 0 || moved < rate * window_ms / 1000;
}

/* The request's window is over. True: it goes on. */
static bool request_goes_on(struct session *s, uint64_t now)
{
	struct exchange *x = s->x;
	uint32_t ms = body_waits_for_dst(&x->request) ? x->upstream->timeouts.write_ms : x->listener->timeouts.body_ms;
	uint64_t at = body_progress(&x->request) + x->request.head_sent;

	if (now < after(x->request_mark_ns, ms))
		return true;
	if (!too_slow(at - x->request_mark, body_waits_for_dst(&x->request) ? 0 : x->listener->min_rate.body, ms)) {
		x->request_mark = at;
		x->request_mark_ns = now;
		return true;
	}
	COUNT(s->worker, timeouts);
	if (body_waits_for_dst(&x->request))
		exchange_fail(s, 504, END_UPSTREAM_TIMEOUT, "the backend takes no more of the request");
	else
		exchange_fail(s, 408, END_REQUEST_BODY_TIMEOUT, "the request body comes too slowly");
	return false;
}

/* A window of the response's body is over, on one side or the other. */
static bool response_goes_on(struct session *s, uint64_t now)
{
	struct exchange *x = s->x;
	uint64_t unacked, client_at, up_at;

	uint32_t client_ms = x->listener->timeouts.write_ms / 2 + 1;

	if (now < after(x->up_mark_ns, x->upstream->timeouts.read_ms) && now < after(x->client_mark_ns, client_ms))
		return true;
	client_at = acked(s, &unacked);
	up_at = body_progress(&x->response);
	if (now >= after(x->client_mark_ns, client_ms)) {
		bool behind = unacked > 0 || body_waits_for_dst(&x->response);

		if (!behind || !too_slow(client_at - x->client_mark, x->listener->min_rate.write, client_ms)) {
			x->client_slow = 0;
		} else if (++x->client_slow >= 2) {
			COUNT(s->worker, timeouts);
			x->detail = "the client takes the response too slowly";
			exchange_abort(s, END_CLIENT_TOO_SLOW);
			return false;
		}
		x->client_mark = client_at;
		x->client_mark_ns = now;
	}
	if (now >= after(x->up_mark_ns, x->upstream->timeouts.read_ms)) {
		if (up_at == x->up_mark && unacked == 0 && !body_waits_for_dst(&x->response)) {
			COUNT(s->worker, timeouts);
			x->detail = "the backend stopped within the response body";
			exchange_abort(s, END_UPSTREAM_TIMEOUT);
			return false;
		}
		x->up_mark = up_at;
		x->up_mark_ns = now;
	}
	return true;
}

static void exchange_timed(struct session *s, uint64_t now)
{
	struct exchange *x = s->x;

	if (!x->request_done && !x->request_dead && !request_goes_on(s, now))
		return;
	if (x->response_state == RESPONSE_HEAD && (x->request_done || x->request_dead) &&
	    now >= after(x->up_mark_ns, x->upstream->timeouts.read_ms)) {
		COUNT(s->worker, timeouts);
		exchange_fail(s, 504, END_UPSTREAM_TIMEOUT, "the backend did not answer in time");
		return;
	}
	if (x->response_state == RESPONSE_BODY)
		response_goes_on(s, now);
}

static void tunnel_timed(struct session *s, uint64_t now)
{
	struct exchange *x = s->x;
	uint64_t at = body_progress(&x->request) + body_progress(&x->response);

	if (now < after(x->up_mark_ns, x->upstream->timeouts.read_ms))
		return;
	if (at == x->up_mark) {
		COUNT(s->worker, timeouts);
		exchange_abort(s, END_TUNNEL_TIMEOUT);
		return;
	}
	x->up_mark = at;
	x->up_mark_ns = now;
}

/* The head did not come in time; an idle connection is closed without a word. */
static void head_timed(struct session *s)
{
	static const struct http_verdict v = { 408, "the request head did not come in time" };

	if (s->in.len == 0) {
		session_close(s, false);
		return;
	}
	COUNT(s->worker, timeouts);
	exchange_refuse(s, &v);
	if (s->x)
		s->x->end = END_HEAD_TIMEOUT;
}

void session_timer(struct timer *t)
{
	struct session *s = container_of(t, struct session, timer);
	uint64_t now = loop_now(s->worker->loop);

	switch (s->state) {
	case SESSION_PREFACE:
	case SESSION_HANDSHAKE:
	case SESSION_LINGER:
		session_close(s, false);
		return;
	case SESSION_HEAD:
		head_timed(s);
		break;
	case SESSION_CONNECT:
		exchange_timeout_connect(s);
		break;
	case SESSION_EXCHANGE:
		exchange_timed(s, now);
		break;
	case SESSION_TUNNEL:
		tunnel_timed(s, now);
		break;
	case SESSION_REPLY:
		COUNT(s->worker, timeouts);
		exchange_abort(s, END_CLIENT_TOO_SLOW);
		break;
	default:
		break;
	}
	session_event(s);
}
