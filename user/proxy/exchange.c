/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of an exchange: begin (route, render the upstream head), answers of
 * the proxy's own, and the end (account, log, keep or close both connections).
 * Choosing and reaching a backend is in exchange_pick.c, moving the two
 * messages in exchange_run.c.
 */
#include "proxy/exchange.h"

#include <errno.h>
#include <stdlib.h>

#include "base/fault.h"
#include "base/log.h"
#include "proxy/exchange_inner.h"
#include "proxy/listener.h"
#include "proxy/worker.h"

#define KEEP_EXCHANGES 256

static struct exchange *exchange_new(struct session *s)
{
	struct worker *w = s->worker;
	struct exchange *x = w->free_exchanges;

	if (fault_hit(FAULT_ALLOC))
		return NULL;
	if (x) {
		w->free_exchanges = x->next_free;
		w->free_exchanges_n--;
		memset(x, 0, sizeof(*x));
	} else {
		x = calloc(1, sizeof(*x));
		if (!x)
			return NULL;
	}
	if (++w->busy > w->busy_peak)
		w->busy_peak = w->busy;
	x->site = worker_site_ref(s->listener->site);
	x->listener = s->listener->conf;
	x->t_start = s->since;
	x->t_head = loop_now(w->loop);
	return x;
}

void exchange_free(struct exchange *x)
{
	free(x);
}

static void exchange_put(struct worker *w, struct exchange *x)
{
	buf_deinit(&x->raw);
	buf_deinit(&x->head);
	buf_deinit(&x->out);
	worker_site_unref(x->site);
	w->busy--;
	if (w->free_exchanges_n >= KEEP_EXCHANGES) {
		free(x);
		return;
	}
	x->next_free = w->free_exchanges;
	w->free_exchanges = x;
	w->free_exchanges_n++;
}

void exchange_drop_upstream(struct session *s, bool abort)
{
	struct exchange *x = s->x;

	body_deinit(&x->request);
	body_deinit(&x->response);
	if (x->up) {
		backend_request_end(x->up->backend);
		upconn_close(x->up, abort || x->request.dst_spoiled);
		x->up = NULL;
	}
}

/* Accounts and logs; the exchange is gone afterwards. */
static void exchange_finish(struct session *s, enum session_end why)
{
	struct exchange *x = s->x;
	struct worker *w = s->worker;

	x->end = why;
	x->t_end = loop_now(w->loop);
	COUNT(w, requests);
	if (x->upstream && x->status)
		upstream_count_status(&x->site->views[x->upstream->index], (unsigned)x->status);
	if (why == END_CLIENT_GONE)
		COUNT(w, client_aborts);
	access_log_write(s, x);
	s->x = NULL;
	s->requests++;
	exchange_put(w, x);
}

void exchange_wake(struct body *b)
{
	struct session *s = b->owner;

	session_event(s);
}

/* The part of a Host or authority before its port. */
static struct str host_without_port(struct str host)
{
	const char *colon;

	if (host.n == 0) /* HTTP/1.0 needs none */
		return host;
	if (host.p[0] == '[') {
		const char *end = memchr(host.p, ']', host.n);
		return end ? (struct str){ host.p, (size_t)(end - host.p) + 1 } : host;
	}
	colon = memchr(host.p, ':', host.n);
	return colon ? (struct str){ host.p, (size_t)(colon - host.p) } : host;
}

static struct str cookie_value(struct str all, const char *name)
{
	size_t n = strlen(name);

	while (all.n) {
		const char *semi = memchr(all.p, ';', all.n);
		size_t len = semi ? (size_t)(semi - all.p) : all.n;

		if (len > n && memcmp(all.p, name, n) == 0 && all.p[n] == '=')
			return (struct str){ all.p + n + 1, len - n - 1 };
		all.p += len;
		all.n -= len;
		while (all.n && (*all.p == ';' || *all.p == ' ')) {
			all.p++;
			all.n--;
		}
	}
	return STR_NONE;
}

static struct str hash_key(const struct session *s, const struct conf_upstream *u, const struct http_head *h)
{
	const struct http_field *f;

	if (!conf_balance_hashes(u->balance))
		return STR_NONE;
	switch (u->hash.kind) {
	case CONF_HASH_SOURCE_IP:
		if (s->peer.sa.sa_family == AF_INET)
			return (struct str){ (const char *)&s->peer.in.sin_addr, 4 };
		if (s->peer.sa.sa_family == AF_INET6)
			return (struct str){ (const char *)&s->peer.in6.sin6_addr, 16 };
		return STR_NONE;
	case CONF_HASH_URI:
		return h->path;
	case CONF_HASH_HEADER:
		f = http_head_field_named(h, str_from(u->hash.name));
		return f ? f->value : STR_NONE;
	case CONF_HASH_COOKIE:
		f = http_head_field(h, HTTP_F_COOKIE);
		return f ? cookie_value(f->value, u->hash.name) : STR_NONE;
	}
	return STR_NONE;
}

/*
 * The head's bytes become the exchange's, so that views into them live as long
 * as it does; what came behind them stays in s->in.
 */
static int keep_head(struct session *s, size_t head_len)
{
	struct exchange *x = s->x;
	struct buf rest = BUF_INIT;
	int r;

	r = buf_append(&rest, buf_data(&s->in) + head_len, s->in.len - head_len);
	if (r < 0)
		return r;
	x->raw = s->in;
	x->raw.len = head_len;
	s->in = rest;
	return 0;
}

void exchange_client_ip(const struct session *s, char out[static SOCK_TEXT_MAX])
{
	struct sock_addr a = { .len = sizeof(s->peer) };

	memcpy(&a.ss, &s->peer, sizeof(s->peer));
	if (s->peer.sa.sa_family == AF_UNIX)
		memcpy(out, "unix", 5);
	else
		sock_text(out, &a, false);
}

static int render_head(struct session *s, const struct http_head *h)
{
	struct exchange *x = s->x;
	const struct conf_forwarded *f = &x->listener->forwarded;
	char ip[SOCK_TEXT_MAX] = "";
	struct http_rewrite rw = {
		.host = str_from(x->upstream->host),
		.proto = s->client.tls ? STR("https") : STR("http"),
		.via = x->site->site->via[s->listener->index],
		.xff = f->for_ && s->peer.sa.sa_family != AF_UNIX,
		.xfp = f->proto,
		.xfh = f->host,
		.pass_upgrade = h->upgrade.n != 0 && h->framing == HTTP_BODY_NONE,
	};

	if (rw.xff) {
		exchange_client_ip(s, ip);
		rw.client_ip = str_from(ip);
	}
	x->upgrade = rw.pass_upgrade ? h->upgrade : STR_NONE;
	return http_write_request(&x->head, h, &rw);
}

void exchange_begin(struct session *s)
{
	struct http_head *h = &s->worker->head;
	struct exchange *x = exchange_new(s);
	const struct conf_route *route;
	struct str path;
	const char *query;

	if (!x) {
		log_error("out_of_memory", "what=request");
		session_close(s, true);
		return;
	}
	s->x = x;
	if (keep_head(s, h->head_len) < 0) {
		exchange_abort(s, END_OUT_OF_MEMORY);
		return;
	}
	x->method = h->method;
	x->method_id = h->method_id;
	x->target = h->target;
	x->host = h->host;
	x->client_minor = h->minor;
	x->keep_alive = h->keep_alive && !s->worker->draining && s->listener->accepting;
	x->framing = h->framing;
	x->length = h->length;
	x->idempotent = http_method_is_idempotent(h->method_id);
	x->request_done = !exchange_has_body(x);
	x->last = !x->keep_alive;
	retry_budget_note_request(&s->worker->retries);

	if (h->max_forwards == 0) { /* it asks about this hop (RFC 9110 7.6.2) */
		exchange_fail(s, h->method_id == HTTP_M_OPTIONS ? 200 : 405, END_DONE, NULL);
		return;
	}
	path = h->path;
	query = memchr(path.p, '?', path.n);
	if (query)
		path.n = (size_t)(query - path.p);
	if (path.n == 0)
		path = STR("/"); /* "http://host?query" */
	route = conf_route_match(x->listener, host_without_port(h->host), path);
	if (!route) {
		exchange_fail(s, 404, END_NO_ROUTE, "no route takes this host and path");
		return;
	}
	x->upstream = &x->site->site->conf->upstreams[route->upstream];
	if (x->listener->limits.body_bytes && h->framing == HTTP_BODY_LENGTH &&
	    h->length > x->listener->limits.body_bytes) {
		exchange_fail(s, 413, END_BODY_TOO_LARGE, "Content-Length is above limits.body_bytes");
		return;
	}
	x->key = hash_key(s, x->upstream, h);
	if (render_head(s, h) < 0) {
		exchange_fail(s, 503, END_OUT_OF_MEMORY, "out of memory");
		return;
	}
	session_go(s, SESSION_PICK);
}

void exchange_refuse(struct session *s, const struct http_verdict *v)
{
	struct exchange *x = exchange_new(s);
	const char *sp, *eol;

	if (!x) {
		session_close(s, true);
		return;
	}
	s->x = x;
	/* For the log: what can be told of the request line. */
	eol = memchr(buf_data(&s->in), '\n', s->in.len);
	x->raw = s->in;
	s->in = BUF_INIT;
	x->target = buf_str(&x->raw);
	if (eol)
		x->target.n = (size_t)(eol - buf_data(&x->raw));
	x->target.n = MIN_OF(x->target.n, 256u);
	sp = memchr(x->target.p, ' ', x->target.n);
	if (sp && (size_t)(sp - x->target.p) < 20) {
		x->method = (struct str){ x->target.p, (size_t)(sp - x->target.p) };
		x->target.n -= x->method.n + 1;
		x->target.p = sp + 1;
		if (memchr(x->target.p, ' ', x->target.n))
			x->target.n = (size_t)((const char *)memchr(x->target.p, ' ', x->target.n) - x->target.p);
	}
	x->last = true;
	x->client_minor = 1;
	COUNT(s->worker, requests_refused);
	exchange_fail(s, v->status, END_BAD_REQUEST, v->reason);
}

/* Where backends are and what their certificates say is the operator's, and in the log. */
static const char *told_to_client(enum session_end why, const char *detail)
{
	switch (why) {
	case END_CONNECT_FAILED:
	case END_CONNECT_TIMEOUT:
	case END_UPSTREAM_TLS:
		return "no connection to the backend";
	default:
		return detail;
	}
}

void exchange_fail(struct session *s, int status, enum session_end why, const char *detail)
{
	struct exchange *x = s->x;

	x->detail = detail;
	if (x->answered) {
		exchange_abort(s, why);
		return;
	}
	exchange_drop_upstream(s, false);
	/* What is left of a request body has nowhere to go, so the connection ends with the answer. */
	if ((exchange_has_body(x) && !x->request_done) || why == END_BAD_REQUEST)
		x->last = true;
	x->status = status;
	x->end = why;
	/* A 1xx that is half sent must end before the answer begins. */
	if (x->response.head_sent == 0)
		buf_consume(&x->out, x->out.len);
	if (http_write_error(&x->out, status, told_to_client(why, detail), x->last, x->method_id == HTTP_M_HEAD) < 0) {
		exchange_abort(s, END_OUT_OF_MEMORY);
		return;
	}
	x->response_state = RESPONSE_OWN;
	size_t sent = x->response.head_sent;
	body_init(&x->response, s->worker, BODY_RESPONSE, &s->client, &s->client, &s->in, &x->out, HTTP_BODY_NONE, 0);
	x->response.head_sent = sent;
	session_go(s, SESSION_REPLY);
}

void exchange_abort(struct session *s, enum session_end why)
{
	struct exchange *x = s->x;
	/* Where nothing of a final response was begun, a plain close says as much as there is to say. */
	bool cut = x->answered && x->response_state != RESPONSE_DONE;

	if (cut && why != END_CLIENT_GONE)
		COUNT(s->worker, responses_cut);
	exchange_drop_upstream(s, cut || why != END_TUNNEL_CLOSED);
	exchange_finish(s, why);
	session_close(s, cut || why == END_CLIENT_TOO_SLOW);
}

bool exchange_reply(struct session *s)
{
	struct exchange *x = s->x;
	bool last = x->last, unread = (exchange_has_body(x) && !x->request_done) || x->end == END_BAD_REQUEST ||
						     x->end == END_HEAD_TIMEOUT;

	switch (body_run(&x->response)) {
	case BODY_DONE:
		exchange_finish(s, x->end);
		if (last) {
			session_end_connection(s, unread);
			return false;
		}
		session_go(s, SESSION_HEAD);
		return true;
	case BODY_WAIT:
		if (s->client.failed)
			exchange_abort(s, END_CLIENT_GONE);
		return false;
	default:
		exchange_abort(s, END_CLIENT_GONE);
		return false;
	}
}

/* Response and, where it matters, request are through: what becomes of the two connections. */
void exchange_complete(struct session *s)
{
	struct exchange *x = s->x;
	bool last = x->last || !x->request_done, unread = !x->request_done;
	struct upconn *u = x->up;

	x->response_state = RESPONSE_DONE;
	body_deinit(&x->request);
	body_deinit(&x->response);
	x->up = NULL;
	backend_request_end(u->backend);
	if (u->in.len && x->request_done)
		COUNT(s->worker, surplus_closed);
	if (x->request_done && x->up_keep_alive && u->in.len == 0 && !x->response.src_unfit)
		upconn_release(u, x->upstream);
	else
		upconn_close(u, !x->request_done);
	exchange_finish(s, END_DONE);
	if (last)
		session_end_connection(s, unread);
	else
		session_go(s, SESSION_HEAD);
}
