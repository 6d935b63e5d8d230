/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/upconn.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/fault.h"
#include "proxy/session.h"
#include "proxy/worker.h"

/* The idle connections to one backend. Lives as long as there are any. */
struct pool {
	struct list link; /* worker->pools[…] */
	struct backend *backend; /* kept by the connections in it */
	struct list idle;	 /* newest first */
	unsigned n;
};

static struct pool *pool_find(struct worker *w, const struct backend *b)
{
	struct list *head = &w->pools[hash_u64(b->id) % WORKER_POOL_BUCKETS], *it, *next;

	list_for_each_safe(it, next, head)
		if (list_entry(it, struct pool, link)->backend == b)
			return list_entry(it, struct pool, link);
	return NULL;
}

static struct pool *pool_get(struct worker *w, struct backend *b)
{
	struct pool *p = pool_find(w, b);

	if (p)
		return p;
	p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	p->backend = b;
	list_init(&p->idle);
	list_push_back(&w->pools[hash_u64(b->id) % WORKER_POOL_BUCKETS], &p->link);
	return p;
}

static void pool_drop_empty(struct pool *p)
{
	if (!p || p->n)
		return;
	list_unlink(&p->link);
	free(p);
}

/* Takes u out of its pool; the backend's other idle connections keep the pool alive. */
static void pool_leave(struct upconn *u)
{
	struct pool *p = u->pool;

	list_unlink(&u->idle);
	u->pool = NULL;
	u->worker->pool_idle--;
	descriptors_give(&u->worker->fds, 1);
	p->n--;
	pool_drop_empty(p);
}

static void upconn_free(struct defer *d)
{
	struct upconn *u = container_of(d, struct upconn, reap);

	buf_deinit(&u->in);
	backend_unref(u->backend);
	free(u);
}

void upconn_close(struct upconn *u, bool abort)
{
	if (u->pool)
		pool_leave(u);
	u->session = NULL;
	if (conn_open(&u->conn)) {
		flow_sock_remove(&u->flow);
		conn_deinit(&u->conn, abort);
		backend_connection_closed(u->backend);
	}
	loop_defer(u->worker->loop, &u->reap);
}

/*
 * Nothing to read, not even an end. A byte that nobody asked for would be taken
 * for the answer to the next request, so this is looked at before a connection
 * is kept and again before it is used.
 */
static bool upconn_silent(struct upconn *u)
{
	char c;

	if (u->conn.rdhup || u->conn.failed || u->in.len)
		return false;
	if (u->conn.tls) /* may take in a session ticket, which is no data */
		return conn_read(&u->conn, &c, 1) == -EAGAIN;
	if (sock_recv(u->conn.watch.fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN)
		return false;
	u->conn.readable = false; /* the next byte makes the next edge */
	return true;
}

static void upconn_event(struct watch *w, uint32_t events)
{
	struct upconn *u = container_of(w, struct upconn, conn.watch);

	conn_event(&u->conn, events);
	if (u->session)
		session_event(u->session);
	else if (u->state == UPCONN_IDLE && !upconn_silent(u))
		upconn_close(u, false);
}

struct upconn *upconn_take(struct worker *w, struct backend *b, struct session *s)
{
	struct pool *p;

	while ((p = pool_find(w, b))) {
		struct upconn *u = list_entry(p->idle.next, struct upconn, idle);

		if (!upconn_silent(u)) {
			upconn_close(u, false);
			continue;
		}
		pool_leave(u);
		u->state = UPCONN_READY;
		u->session = s;
		u->requests++;
		return u;
	}
	return NULL;
}

int upconn_open(struct upconn **out, struct worker *w, struct worker_site *site, uint32_t upstream, struct backend *b,
		struct session *s)
{
	bool in_progress = false;
	struct upconn *u;
	int fd, r;

	if (fault_hit(FAULT_ALLOC))
		return -ENOMEM;
	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	fd = sock_connect(&b->addr, &in_progress);
	if (fd < 0) {
		free(u);
		return fd;
	}
	list_init(&u->idle);
	u->worker = w;
	u->session = s;
	u->reap.free = upconn_free;
	u->requests = 1;
	u->flow = FLOW_SOCK_INIT;
	r = conn_init(&u->conn, w->loop, fd, upconn_event);
	if (r < 0) {
		free(u);
		return r;
	}
	u->backend = backend_ref(b);
	backend_connection_opened(b);
	u->conn.readable = false;
	u->conn.writable = !in_progress;
	u->state = UPCONN_CONNECTING;
	if (site->site->upstream_tls[upstream]) {
		r = tls_new_client(&u->conn.tls, site->site->upstream_tls[upstream], fd, b->tls_name,
				   site->sessions[upstream]);
		if (r < 0) {
			upconn_close(u, false);
			return r;
		}
	}
	*out = u;
	return 0;
}

int upconn_step(struct upconn *u, const char **reason)
{
	int r;

	if (u->state == UPCONN_CONNECTING) {
		if (!u->conn.writable)
			return 1;
		r = sock_error(u->conn.watch.fd);
		if (r == 0 && u->conn.failed)
			r = -ECONNRESET;
		if (r < 0) {
			*reason = strerror(-r);
			return r;
		}
		u->state = u->conn.tls ? UPCONN_HANDSHAKE : UPCONN_READY;
		u->conn.readable = true;
	}
	if (u->state == UPCONN_HANDSHAKE) {
		r = tls_handshake(u->conn.tls);
		if (r > 0)
			return 1;
		if (r < 0) {
			*reason = tls_reason(u->conn.tls);
			return r;
		}
		u->state = UPCONN_READY;
		u->conn.readable = u->conn.writable = true;
		worker_tls_opened(u->worker, u->conn.tls, "upstream", u->backend->upstream);
	}
	return 0;
}

void upconn_release(struct upconn *u, const struct conf_upstream *c)
{
	struct worker *w = u->worker;
	uint32_t share = (c->keepalive_max_idle + w->conf->threads - 1) / w->conf->threads;
	struct pool *p = NULL;

	u->session = NULL;
	if (w->draining || !backend_usable(u->backend) || u->in.len || (u->conn.readable && !upconn_silent(u))) {
		upconn_close(u, false);
		return;
	}
	p = share ? pool_get(w, u->backend) : NULL;
	/* Until now the session's second descriptor stood for it. */
	if (!p || p->n >= share || !descriptors_take(&w->fds, 1)) {
		pool_drop_empty(p);
		upconn_close(u, false);
		return;
	}
	buf_deinit(&u->in);
	u->state = UPCONN_IDLE;
	u->idle_until = loop_now(w->loop) + c->timeouts.idle_ms * NS_PER_MS;
	list_push_front(&p->idle, &u->idle);
	u->pool = p;
	p->n++;
	w->pool_idle++;
}

void upconn_sweep(struct worker *w, uint64_t now)
{
	struct list *it, *next;

	for (size_t i = 0; w->pool_idle && i < WORKER_POOL_BUCKETS; i++)
		list_for_each_safe(it, next, &w->pools[i]) {
			struct pool *p = list_entry(it, struct pool, link);
			unsigned n = p->n;

			/* From the oldest on; the last one closed takes the pool with it. */
			while (n-- && list_entry(p->idle.prev, struct upconn, idle)->idle_until <= now)
				upconn_close(list_entry(p->idle.prev, struct upconn, idle), false);
		}
}

bool upconn_close_one(struct worker *w)
{
	for (size_t i = 0; w->pool_idle && i < WORKER_POOL_BUCKETS; i++)
		if (!list_empty(&w->pools[i])) {
			struct pool *p = list_entry(w->pools[i].next, struct pool, link);

			upconn_close(list_entry(p->idle.prev, struct upconn, idle), false);
			return true;
		}
	return false;
}

void upconn_close_idle(struct worker *w)
{
	upconn_sweep(w, UINT64_MAX);
}
