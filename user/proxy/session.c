/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session's states and the ways between them:
 *
 *   PREFACE ->
 *   HANDSHAKE -> HEAD -> PICK -> CONNECT -> EXCHANGE -> HEAD | LINGER | CLOSED
 *                  |       ^________|           |  \-> TUNNEL -> CLOSED
 *                  |        (retry)             |
 *                  \------> REPLY <-------------/   (an answer of our own)
 *
 * Everything is tried in order until nothing moves; events only say that it is
 * worth trying again. Only session_run calls the steps.
 */
#include "proxy/session.h"

#include <errno.h>
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "http/proxy_header.h"
#include "proxy/exchange.h"
#include "proxy/listener.h"
#include "proxy/session_slab.h"
#include "proxy/worker.h"

#define HEAD_READ 4096u
#define END_IDLE_AFTER_MS 100u	 /* so long a client may take to say what it wants */
#define END_IDLE_LOOK 256u	 /* sessions to choose from: the longest here come first */
#define REQUESTS_A_TURN 16u	 /* of those that can be answered at once: then it is others' turn */
#define DRAIN_FIRST_MS 1000u /* for a first request, when the process stops */

static const char *const state_names[] = {
#define X(name, text) [SESSION_##name] = text,
#include "proxy/session_state.def"
#undef X
};

static const struct {
	const char *text;
	bool is_error;
} ends[] = {
#define X(name, err, what) [END_##name] = { what, err },
#include "proxy/session_end.def"
#undef X
};

/* Which states may follow which; checked at every change. */
static const uint16_t legal[_SESSION_STATE_MAX] = {
#define TO(s) (1u << SESSION_##s)
	[SESSION_PREFACE] = TO(HANDSHAKE) | TO(HEAD) | TO(CLOSED),
	[SESSION_HANDSHAKE] = TO(HEAD) | TO(CLOSED),
	[SESSION_HEAD] = TO(PICK) | TO(REPLY) | TO(CLOSED),
	[SESSION_PICK] = TO(CONNECT) | TO(EXCHANGE) | TO(REPLY) | TO(CLOSED),
	[SESSION_CONNECT] = TO(PICK) | TO(EXCHANGE) | TO(REPLY) | TO(CLOSED),
	[SESSION_EXCHANGE] = TO(HEAD) | TO(PICK) | TO(TUNNEL) | TO(REPLY) | TO(LINGER) | TO(CLOSED),
	[SESSION_TUNNEL] = TO(CLOSED),
	[SESSION_REPLY] = TO(HEAD) | TO(LINGER) | TO(CLOSED),
	[SESSION_LINGER] = TO(CLOSED),
	[SESSION_CLOSED] = 0,
#undef TO
};

const char *session_end_name(enum session_end e)
{
	return ends[e].text;
}

bool session_end_is_error(enum session_end e)
{
	return ends[e].is_error;
}

void session_go(struct session *s, enum session_state next)
{
	if (!(legal[s->state] & (1u << next))) {
		log_error("bug", "reason=\"illegal session state change\" from=%s to=%s", state_names[s->state],
			  state_names[next]);
		abort();
	}
	s->state = next;
	s->since = loop_now(s->worker->loop);
}

static void session_free(struct defer *d)
{
	struct session *s = container_of(d, struct session, reap);

	if (s->again_queued)
		return; /* the task frees it */
	session_slab_give(s->worker, s);
}

static void session_again(struct task *t)
{
	struct session *s = container_of(t, struct session, again);

	s->again_queued = false;
	if (s->state == SESSION_CLOSED)
		loop_defer(s->worker->loop, &s->reap);
	else
		session_event(s);
}

static void client_event(struct watch *w, uint32_t events)
{
	struct session *s = container_of(w, struct session, client.watch);

	conn_event(&s->client, events);
	session_event(s);
}

void session_close(struct session *s, bool abort)
{
	if (s->state == SESSION_CLOSED)
		return;
	session_go(s, SESSION_CLOSED);
	timer_remove(s->worker->loop, &s->timer);
	flow_sock_remove(&s->flow);
	conn_deinit(&s->client, abort);
	descriptors_give(&s->worker->fds, DESCRIPTORS_SESSION);
	buf_deinit(&s->in);
	list_unlink(&s->link);
	worker_session_count(s->worker, -1);
	listener_session_closed(s->listener);
	s->reap.queued = false;
	loop_defer(s->worker->loop, &s->reap);
	worker_session_gone(s->worker);
}

/* ---- steps: true when something moved and the next step is worth trying ---- */

/* The PROXY header is looked at before it is taken, so that not a byte of what follows is. */
static bool step_preface(struct session *s)
{
	char head[PROXY_HEADER_MAX];
	struct proxy_header h;
	ssize_t n;

	if (!s->client.readable)
		return false;
	n = recv(s->client.watch.fd, head, sizeof(head), MSG_PEEK);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		s->client.readable = false;
		return false;
	}
	switch (n > 0 ? proxy_header_parse(head, (size_t)n, &h) : HTTP_BAD) {
	case HTTP_MORE:
		s->client.readable = false; /* the next byte makes the next edge */
		if (s->client.rdhup || s->client.failed)
			session_close(s, true);
		return false;
	case HTTP_BAD:
		COUNT(s->worker, requests_refused);
		if (n > 0)
			log_info("proxy_header_refused", "listener=%s reason=\"no valid PROXY header came first\"",
				 s->listener->text);
		session_close(s, true);
		return false;
	default:
		break;
	}
	if (recv(s->client.watch.fd, head, h.len, 0) != (ssize_t)h.len) {
		session_close(s, true);
		return false;
	}
	if (h.version == 4) {
		s->peer.in = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(h.port) };
		memcpy(&s->peer.in.sin_addr, h.addr, 4);
	} else if (h.version == 6) {
		s->peer.in6 = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = htons(h.port) };
		memcpy(&s->peer.in6.sin6_addr, h.addr, 16);
	}
	session_go(s, s->client.tls ? SESSION_HANDSHAKE : SESSION_HEAD);
	return true;
}

static bool step_handshake(struct session *s)
{
	int r = tls_handshake(s->client.tls);

	if (r > 0)
		return false;
	if (r < 0) {
		char text[160];

		COUNT(s->worker, client_tls_failures);
		log_info("client_tls_failed", "listener=%s reason=%s", s->listener->text,
			 log_quote(text, sizeof(text), str_from(tls_reason(s->client.tls))));
		session_close(s, false);
		return false;
	}
	worker_tls_opened(s->worker, s->client.tls, "listener", s->listener->text);
	s->client.readable = s->client.writable = true;
	session_go(s, SESSION_HEAD);
	return true;
}

/* Nothing to read. A request that is here already is never crossed by a close; one that is on its way may be. */
static bool head_waits(struct session *s)
{
	buf_release_if_empty(&s->in);
	if (s->worker->close_idle && s->in.len == 0 && s->requests)
		session_close(s, false);
	return false;
}

static bool step_head(struct session *s)
{
	const struct conf_listener *l = s->listener->conf;
	struct http_limits limits = { .head_bytes = l->limits.head_bytes, .fields = l->limits.fields };
	struct http_verdict verdict;
	ssize_t n;
	int r;

	if (s->in.len) {
		r = http_parse_request(buf_data(&s->in), s->in.len, &s->scan, &limits, &s->worker->head, &verdict);
		if (r == 0) {
			s->scan = 0;
			exchange_begin(s);
			return s->state != SESSION_CLOSED;
		}
		if (r == HTTP_BAD) {
			exchange_refuse(s, &verdict);
			return s->state != SESSION_CLOSED;
		}
	}
	if (s->client.eof || s->client.failed) {
		session_close(s, false);
		return false;
	}
	if (!s->client.readable && !s->worker->close_idle)
		return head_waits(s);
	if (buf_room(&s->in) < HEAD_READ / 4 && buf_reserve(&s->in, HEAD_READ) < 0) {
		session_close(s, false);
		return false;
	}
	n = conn_read(&s->client, buf_tail(&s->in), buf_room(&s->in));
	if (n > 0) {
		if (s->in.len == 0)
			s->since = loop_now(s->worker->loop);
		buf_commit(&s->in, (size_t)n);
		return true;
	}
	if (n == -EAGAIN)
		return head_waits(s);
	if (n < 0)
		session_close(s, false);
	return n == 0;
}

static bool step_linger(struct session *s)
{
	char sink[16384];
	ssize_t n;

	if (s->shut_pending) {
		int r = s->client.writable ? conn_shutdown(&s->client) : -EAGAIN;

		if (r == -EAGAIN && !s->client.failed)
			return false;
		s->shut_pending = false;
		if (r < 0 || !s->lingers) {
			session_close(s, false);
			return false;
		}
	}
	for (unsigned i = 0; i < 64 && s->client.readable; i++) {
		n = conn_read(&s->client, sink, sizeof(sink));
		if (n == -EAGAIN)
			return false;
		if (n <= 0)
			break;
	}
	if (s->client.readable || s->client.eof || s->client.failed)
		session_close(s, false);
	return false;
}

static bool step(struct session *s)
{
	switch (s->state) {
	case SESSION_PREFACE:
		return step_preface(s);
	case SESSION_HANDSHAKE:
		return step_handshake(s);
	case SESSION_HEAD:
		return step_head(s);
	case SESSION_PICK:
		return exchange_pick(s);
	case SESSION_CONNECT:
		return exchange_connect(s);
	case SESSION_EXCHANGE:
		return exchange_step(s);
	case SESSION_TUNNEL:
		return exchange_tunnel(s);
	case SESSION_REPLY:
		return exchange_reply(s);
	case SESSION_LINGER:
		return step_linger(s);
	default:
		return false;
	}
}

void session_event(struct session *s)
{
	uint32_t enough = s->requests + REQUESTS_A_TURN;
	bool turn_over = false;

	if (s->running || s->state == SESSION_CLOSED) {
		s->rerun = true;
		return;
	}
	s->running = true;
	do {
		s->rerun = false;
		while (!turn_over && step(s))
			turn_over = s->state == SESSION_HEAD && s->requests == enough;
	} while (!turn_over && s->rerun && s->state != SESSION_CLOSED);
	if (turn_over)
		session_run_again(s);
	s->running = false;
	if (s->state != SESSION_CLOSED)
		session_arm_timer(s);
}

void session_run_again(struct session *s)
{
	if (s->again_queued)
		return;
	s->again_queued = true;
	loop_later(s->worker->loop, &s->again);
}

/* A close with bytes unread is a reset, and takes from the client what it has not read of its answer. */
static bool sent_more(const struct session *s)
{
	char c;

	return s->in.len || recv(s->client.watch.fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

void session_end_connection(struct session *s, bool unread)
{
	int r;

	if (s->client.eof || s->client.failed) {
		session_close(s, false);
		return;
	}
	unread = unread || sent_more(s);
	/* close(2) sends FIN by itself when nothing is unread; TLS needs its close_notify on the way first. */
	if (!s->client.tls && !unread) {
		session_close(s, false);
		return;
	}
	r = conn_shutdown(&s->client);
	if (r < 0 && r != -EAGAIN) {
		session_close(s, false);
		return;
	}
	s->shut_pending = r == -EAGAIN;
	s->lingers = unread;
	if (!s->shut_pending && !s->lingers) {
		session_close(s, false);
		return;
	}
	buf_deinit(&s->in);
	session_go(s, SESSION_LINGER);
}

void session_kill(struct session *s, enum session_end why)
{
	if (s->x)
		exchange_abort(s, why);
	else
		session_close(s, false);
}

void session_drain(struct session *s)
{
	if (s->state != SESSION_HEAD || s->in.len)
		return;
	/* An edge may be on its way to us: look, rather than believe that nothing is there. */
	s->client.readable = true;
	session_event(s);
	/* Somebody who has just connected is about to ask. */
	if (s->state == SESSION_HEAD && s->in.len == 0 && s->requests == 0)
		timer_set(s->worker->loop, &s->timer, loop_now(s->worker->loop) + DRAIN_FIRST_MS * NS_PER_MS);
}

/* Waits for a request of which nothing has come, and may be ended here and now. */
static bool is_idle(const struct session *s)
{
	char c;

	/* A listener that accepts no more goes with its last session, and whoever walks the listeners may be on it. */
	if (s->state != SESSION_HEAD || s->in.len || s->client.failed || !s->listener->accepting)
		return false;
	return recv(s->client.watch.fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

bool session_end_idle(struct worker *w)
{
	uint64_t before = loop_now(w->loop) - END_IDLE_AFTER_MS * NS_PER_MS;
	struct session *oldest = NULL;
	unsigned looked = 0;
	struct list *it, *next;

	list_for_each_safe(it, next, &w->sessions) {
		struct session *s = list_entry(it, struct session, link);

		if (++looked > END_IDLE_LOOK)
			break;
		if (s->since < before && (!oldest || s->since < oldest->since) && is_idle(s))
			oldest = s;
	}
	if (!oldest)
		return false;
	COUNT(w, idle_closed);
	session_close(oldest, false);
	return true;
}

int session_new(struct worker *w, struct listener *l, int fd, const struct sock_addr *peer)
{
	struct session *s = session_slab_take(w);
	struct tls_ctx *tls = l->site->site->listener_tls[l->index];
	int r;

	if (!s) {
		close(fd);
		return -ENOMEM;
	}
	s->worker = w;
	s->listener = l;
	s->reap.free = session_free;
	s->again.run = session_again;
	timer_init(&s->timer, session_timer);
	s->flow = FLOW_SOCK_INIT;
	list_init(&s->link);
	if (peer->len <= sizeof(s->peer) && peer->sa.sa_family != AF_UNIX)
		memcpy(&s->peer, &peer->ss, peer->len);
	else
		s->peer.sa.sa_family = AF_UNIX;
	r = conn_init(&s->client, w->loop, fd, client_event);
	if (r < 0) {
		session_slab_give(w, s);
		return r;
	}
	s->state = l->conf->proxy_protocol ? SESSION_PREFACE : tls ? SESSION_HANDSHAKE : SESSION_HEAD;
	s->since = loop_now(w->loop);
	if (tls) {
		r = tls_new_server(&s->client.tls, tls, fd);
		if (r < 0) {
			conn_deinit(&s->client, true);
			session_slab_give(w, s);
			return r;
		}
	}
	list_push_back(&w->sessions, &s->link);
	worker_session_count(w, 1);
	session_event(s);
	return 0;
}
