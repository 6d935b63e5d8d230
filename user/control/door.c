/* SPDX-License-Identifier: Apache-2.0 */
#include "control/door.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"

#define ACCEPT_RETRY (100 * NS_PER_MS)

static void peer_free(struct defer *f)
{
	free(container_of(f, struct peer, defer));
}

/* The memory stays until the turn ends: an event for it may be in the same batch. */
static void peer_kill(struct peer *p)
{
	if (p->state == PEER_DEAD)
		return;
	p->state = PEER_DEAD;
	conn_deinit(&p->conn, false);
	timer_remove(p->door->loop, &p->timer);
	buf_deinit(&p->in);
	buf_deinit(&p->out);
	list_unlink(&p->link);
	p->door->n--;
	loop_defer(p->door->loop, &p->defer);
}

static bool peer_due_in(struct peer *p, uint64_t ns)
{
	return timer_set(p->door->loop, &p->timer, loop_now(p->door->loop) + ns) == 0;
}

static void peer_timeout(struct timer *t)
{
	peer_kill(container_of(t, struct peer, timer));
}

/* The steps return true when the state moved, false when an event must come first or the peer is dead. */
static bool peer_read(struct peer *p)
{
	const struct door_service *sv = p->door->service;
	ssize_t n;
	int r;

	if (p->in.len) {
		r = sv->answer(p);
		if (r < 0) {
			peer_kill(p);
			return false;
		}
		if (r == 0) {
			p->scan = 0;
			if (++p->served >= DOOR_REQUESTS_MAX || p->door->listen.fd < 0)
				p->keep = false;
			p->state = PEER_WRITE;
			return peer_due_in(p, DOOR_TIMEOUT) || (peer_kill(p), false);
		}
	}
	if (p->in.len >= sv->request_max) { /* the service should have decided */
		peer_kill(p);
		return false;
	}
	if (!p->conn.readable) {
		if (p->in.len == 0)
			buf_release_if_empty(&p->in);
		return false;
	}
	if (buf_reserve(&p->in, sv->request_max - p->in.len) < 0) {
		peer_kill(p);
		return false;
	}
	n = conn_read(&p->conn, buf_tail(&p->in), sv->request_max - p->in.len);
	if (n == -EAGAIN) {
		buf_release_if_empty(&p->in);
		return false;
	}
	/* The time for a request runs from its first byte, and is not prolonged by the next ones. */
	if (n <= 0 || (p->in.len == 0 && p->served && !peer_due_in(p, DOOR_TIMEOUT))) {
		peer_kill(p);
		return false;
	}
	buf_commit(&p->in, (size_t)n);
	return true;
}

static bool peer_write(struct peer *p)
{
	bool moved = false;

	while (p->out.len) {
		ssize_t n = conn_write(&p->conn, buf_data(&p->out), p->out.len);

		if (n == -EAGAIN) {
			if (moved && !peer_due_in(p, DOOR_TIMEOUT))
				peer_kill(p);
			return false;
		}
		if (n < 0) {
			peer_kill(p);
			return false;
		}
		buf_consume(&p->out, (size_t)n);
		moved = true;
	}
	buf_deinit(&p->out);
	if (!p->keep && conn_shutdown(&p->conn) < 0) {
		peer_kill(p);
		return false;
	}
	p->state = p->keep ? PEER_READ : PEER_LINGER;
	return peer_due_in(p, p->keep ? (p->in.len ? DOOR_TIMEOUT : DOOR_IDLE) : DOOR_LINGER) || (peer_kill(p), false);
}

static bool peer_linger(struct peer *p)
{
	char waste[4096];
	ssize_t n;

	/* Bounded: who goes on sending is cut off by the timer, not served for ever within one event. */
	for (int i = 0; i < 16; i++) {
		n = conn_read(&p->conn, waste, sizeof(waste));
		if (n == -EAGAIN)
			return false;
		if (n <= 0)
			break;
	}
	peer_kill(p);
	return false;
}

static bool (*const peer_steps[])(struct peer *) = {
	[PEER_READ] = peer_read,
	[PEER_WRITE] = peer_write,
	[PEER_LINGER] = peer_linger,
};

static void peer_event(struct watch *w, uint32_t events)
{
	struct peer *p = container_of(w, struct peer, conn.watch);

	if (p->state == PEER_DEAD)
		return;
	conn_event(&p->conn, events);
	while (p->state != PEER_DEAD && peer_steps[p->state](p))
		;
}

/* Room for one more: ends the oldest peer that is between two requests. False: all are at work. */
static bool door_evict(struct door *d)
{
	struct list *it, *tmp;

	list_for_each_safe(it, tmp, &d->peers) {
		struct peer *p = list_entry(it, struct peer, link);

		if (p->state == PEER_LINGER || (p->state == PEER_READ && p->served && p->in.len == 0)) {
			peer_kill(p);
			return true;
		}
	}
	return false;
}

static void door_admit(struct door *d, int fd)
{
	struct peer *p;

	if (d->n >= d->service->peers_max && !door_evict(d)) {
		close(fd);
		return;
	}
	p = calloc(1, sizeof(*p));
	if (!p) {
		close(fd);
		return;
	}
	p->door = d;
	p->defer.free = peer_free;
	timer_init(&p->timer, peer_timeout);
	list_init(&p->link);
	if (conn_init(&p->conn, d->loop, fd, peer_event) < 0) {
		free(p);
		return;
	}
	list_push_back(&d->peers, &p->link);
	d->n++;
	if (!peer_due_in(p, DOOR_TIMEOUT))
		peer_kill(p);
}

static void door_accept(struct door *d)
{
	int fd;

	while (d->listen.fd >= 0) {
		fd = fault_hit(FAULT_ACCEPT) ? (errno = EMFILE, -1) :
					       accept4(d->listen.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			door_admit(d, fd);
			continue;
		}
		if (errno == EAGAIN)
			return;
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			/* The edge is used up, so nobody would tell us of those who wait. */
			timer_set(d->loop, &d->retry, loop_now(d->loop) + ACCEPT_RETRY);
			return;
		}
		if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO && errno != EPERM) {
			log_error("control_accept", "door=%s errno=%d", d->service->name, errno);
			return;
		}
	}
}

static void door_event(struct watch *w, uint32_t events _unused_)
{
	door_accept(container_of(w, struct door, listen));
}

static void door_retry(struct timer *t)
{
	struct door *d = container_of(t, struct door, retry);

	timer_off(t);
	door_accept(d);
}

void door_init(struct door *d, const struct door_service *service, void *owner)
{
	*d = (struct door){ .service = service, .owner = owner, .listen = { .fd = -1, .cb = door_event } };
	timer_init(&d->retry, door_retry);
	list_init(&d->peers);
}

int door_listen(struct door *d, struct loop *l, int fd)
{
	int old = d->listen.fd, r = 0;
	struct list *it, *tmp;

	if (old >= 0) {
		loop_del(l, &d->listen); /* shared with the other process at a hand-over: closing alone would leave the watch */
		close(old);
	}
	d->loop = l;
	d->listen.fd = fd;
	if (fd >= 0)
		r = loop_add(l, &d->listen, EPOLLIN);
	if (r < 0) {
		close(fd);
		d->listen.fd = fd = -1;
	}
	if (fd < 0) { /* nobody is to be kept waiting for a next request */
		list_for_each_safe(it, tmp, &d->peers) {
			struct peer *p = list_entry(it, struct peer, link);

			p->keep = false;
			if (p->state == PEER_READ && p->served && p->in.len == 0)
				peer_kill(p);
		}
	}
	return r;
}

void door_deinit(struct door *d)
{
	struct list *it, *tmp;

	if (!d->loop) {
		return;
	}
	door_listen(d, d->loop, -1);
	list_for_each_safe(it, tmp, &d->peers)
		peer_kill(list_entry(it, struct peer, link));
	timer_remove(d->loop, &d->retry);
}
