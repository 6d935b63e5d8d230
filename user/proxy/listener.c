/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/listener.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/sock.h"
#include "proxy/session.h"
#include "proxy/worker.h"

#define ACCEPTS_PER_TURN 64
#define PAUSE_MS 100
#define LAST_TURNS 16u /* of accepting, before a listener stops */

/* A pause ends by the timer, which also makes up for edges that came meanwhile. */
static void pause_accepting(struct listener *l)
{
	l->paused = true;
	timer_set(l->worker->loop, &l->retry, loop_now(l->worker->loop) + PAUSE_MS * NS_PER_MS);
}

/* One line for a condition that holds for long, not one for each connection. */
static void accept_failed(struct listener *l, int err)
{
	COUNT(l->worker, accept_failures);
	if (!l->paused)
		log_warn("accept_failed", "listener=%s errno=%d reason=\"%s\" action=\"accepting pauses for %d ms\"",
			 l->text, err, strerror(err), PAUSE_MS);
	pause_accepting(l);
}

/* Room for one more client and its backend, if need be by ending what nobody waits for. */
static bool take_descriptors(struct listener *l)
{
	struct worker *w = l->worker;

	while (!descriptors_take(&w->fds, DESCRIPTORS_SESSION))
		if (!worker_spare(w) && !session_end_idle(w)) {
			atomic_store_explicit(&w->fds.all->wanted, true, memory_order_relaxed);
			descriptors_settle(&w->fds);
			return false;
		}
	return true;
}

/* True when the queue may hold more. */
static bool accept_turn(struct listener *l)
{
	unsigned limit = l->conf->limits.connections;

	for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
		struct sock_addr peer = { .len = sizeof(peer.ss) };
		int fd;

		if (limit && atomic_load_explicit(&l->address->open, memory_order_relaxed) >= limit) {
			pause_accepting(l);
			return false;
		}
		if (!take_descriptors(l)) {
			pause_accepting(l);
			return false;
		}
		if (fault_hit(FAULT_ACCEPT)) {
			descriptors_give(&l->worker->fds, DESCRIPTORS_SESSION);
			accept_failed(l, EMFILE);
			return false;
		}
		fd = accept4(l->watch.fd, &peer.sa, &peer.len, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			descriptors_give(&l->worker->fds, DESCRIPTORS_SESSION);
			if (errno == EAGAIN || errno == EWOULDBLOCK)
				return false;
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
				accept_failed(l, errno);
				return false;
			}
			continue; /* that connection died in the queue */
		}
		l->paused = false;
		atomic_fetch_add_explicit(&l->address->open, 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&l->address->accepted, 1, memory_order_relaxed);
		COUNT(l->worker, connections);
		l->sessions++;
		if (l->address->is_tcp)
			worker_connection_came(l->worker);
		if (session_new(l->worker, l, fd, &peer) < 0) {
			worker_session_count(l->worker, 0);
			listener_session_closed(l);
			descriptors_give(&l->worker->fds, DESCRIPTORS_SESSION);
			COUNT(l->worker, accept_failures);
		}
	}
	return true;
}

static void accept_some(struct listener *l)
{
	if (!accept_turn(l))
		return;
	/* Edge-triggered: what is left in the queue makes no event of its own. */
	l->paused = true;
	timer_set(l->worker->loop, &l->retry, loop_now(l->worker->loop));
}

static void listener_event(struct watch *w, _unused_ uint32_t events)
{
	struct listener *l = container_of(w, struct listener, watch);

	if (l->accepting && !l->paused)
		accept_some(l);
}

/* A place that is ours is not given up for want of memory in the kernel. */
static void watch_or_retry(struct listener *l)
{
	const struct listener_address *a = l->address;
	int r = loop_add(l->worker->loop, &l->watch, EPOLLIN | (a->n < a->places ? (uint32_t)EPOLLEXCLUSIVE : 0u));

	if (r < 0 && !l->unwatched)
		log_error("listen_failed", "listener=%s worker=%u errno=%d reason=\"%s\" action=\"tried again\"", l->text,
			  l->worker->index, -r, strerror(-r));
	l->unwatched = r < 0;
	if (r < 0)
		pause_accepting(l);
}

static void listener_retry(struct timer *t)
{
	struct listener *l = container_of(t, struct listener, retry);

	if (!l->accepting)
		return;
	if (l->unwatched)
		watch_or_retry(l);
	if (l->unwatched)
		return;
	l->paused = false;
	accept_some(l);
}

void listener_reconfigure(struct listener *l, struct worker_site *site, unsigned index)
{
	worker_site_unref(l->site);
	l->site = worker_site_ref(site);
	l->conf = &site->site->conf->listeners[index];
	l->index = index;
}

void listener_address_close(struct listener_address *a)
{
	for (unsigned i = 0; i < a->n; i++) {
		if (a->fd[i] >= 0)
			close(a->fd[i]);
		a->fd[i] = -1;
	}
	if (!a->is_tcp && a->owns_path)
		unlink(a->text + strlen("unix:"));
	a->owns_path = false;
}

/* One place fewer accepts on it. */
static void address_stopped(struct listener_address *a)
{
	if (atomic_fetch_sub(&a->accepting, 1) == 1 && atomic_load(&a->retired))
		listener_address_close(a);
}

int listener_new(struct worker *w, struct listener_address *a, unsigned place, struct worker_site *site, unsigned index)
{
	struct listener *l = calloc(1, sizeof(*l));

	if (!l) {
		address_stopped(a);
		atomic_fetch_sub(&a->refs, 1);
		return -ENOMEM;
	}
	l->worker = w;
	l->address = a;
	l->place = place;
	l->text = a->text;
	l->watch = (struct watch){ .fd = a->fd[place % a->n], .cb = listener_event };
	l->accepting = true;
	timer_init(&l->retry, listener_retry);
	watch_or_retry(l);
	listener_reconfigure(l, site, index);
	list_push_back(&w->listeners, &l->link);
	return 0;
}

void listener_stop(struct listener *l)
{
	if (!l->accepting)
		return;
	for (unsigned i = 0; i < LAST_TURNS && accept_turn(l); i++)
		;
	l->accepting = false;
	if (!l->unwatched)
		loop_del(l->worker->loop, &l->watch);
	timer_remove(l->worker->loop, &l->retry);
	address_stopped(l->address);
}

void listener_free(struct listener *l)
{
	listener_stop(l);
	list_unlink(&l->link);
	worker_site_unref(l->site);
	atomic_fetch_sub(&l->address->refs, 1);
	free(l);
}

void listener_session_closed(struct listener *l)
{
	atomic_fetch_sub_explicit(&l->address->open, 1, memory_order_relaxed);
	l->sessions--;
	if (!l->accepting && l->sessions == 0)
		listener_free(l);
	else if (l->accepting && l->paused)
		timer_set(l->worker->loop, &l->retry, loop_now(l->worker->loop));
}
