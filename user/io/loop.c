/* SPDX-License-Identifier: Apache-2.0 */
#include "io/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fault.h"

#define EVENTS_PER_WAIT 128

struct loop {
	int epfd;
	struct watch wake;
	uint64_t now;
	bool stop;

	struct timer **heap;
	size_t heap_n, heap_cap;

	struct defer *deferred;
	_Atomic(struct task *) posted; /* a stack; reversed when taken */
};

static void wake_cb(struct watch *w, _unused_ uint32_t events)
{
	uint64_t n;

	while (read(w->fd, &n, sizeof(n)) > 0)
		;
}

int loop_new(struct loop **out)
{
	struct loop *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	l->wake = (struct watch){ .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .cb = wake_cb };
	if (l->epfd < 0 || l->wake.fd < 0) {
		r = -errno;
		goto fail;
	}
	r = loop_add(l, &l->wake, EPOLLIN);
	if (r < 0)
		goto fail;
	l->now = now_ns();
	*out = l;
	return 0;
fail:
	loop_free(l);
	return r;
}

static void run_deferred(struct loop *l)
{
	while (l->deferred) {
		struct defer *d = l->deferred;
		l->deferred = d->next;
		d->free(d);
	}
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	run_deferred(l);
	if (l->wake.fd >= 0)
		close(l->wake.fd);
	if (l->epfd >= 0)
		close(l->epfd);
	free(l->heap);
	free(l);
}

int loop_add(struct loop *l, struct watch *w, uint32_t events)
{
	struct epoll_event ev = { .events = events | EPOLLET, .data.ptr = w };

	if (fault_hit(FAULT_EPOLL))
		return -ENOMEM;
	return epoll_ctl(l->epfd, EPOLL_CTL_ADD, w->fd, &ev) < 0 ? -errno : 0;
}

int loop_mod(struct loop *l, struct watch *w, uint32_t events)
{
	struct epoll_event ev = { .events = events | EPOLLET, .data.ptr = w };

	return epoll_ctl(l->epfd, EPOLL_CTL_MOD, w->fd, &ev) < 0 ? -errno : 0;
}

void loop_del(struct loop *l, struct watch *w)
{
	if (w->fd >= 0)
		epoll_ctl(l->epfd, EPOLL_CTL_DEL, w->fd, NULL);
}

uint64_t loop_now(const struct loop *l)
{
	return l->now;
}

uint64_t loop_now_fresh(struct loop *l)
{
	return l->now = now_ns();
}

void loop_defer(struct loop *l, struct defer *d)
{
	if (d->queued)
		return;
	d->queued = true;
	d->next = l->deferred;
	l->deferred = d;
}

void loop_later(struct loop *l, struct task *t)
{
	struct task *head = atomic_load(&l->posted);

	do
		t->next = head;
	while (!atomic_compare_exchange_weak(&l->posted, &head, t));
}

void loop_post(struct loop *l, struct task *t)
{
	uint64_t one = 1;

	loop_later(l, t);
	if (write(l->wake.fd, &one, sizeof(one)) < 0) {
		/* The counter is full, so a wake-up is pending already. */
	}
}

static void run_posted(struct loop *l)
{
	struct task *t = atomic_exchange(&l->posted, NULL), *in_order = NULL;

	while (t) {
		struct task *next = t->next;
		t->next = in_order;
		in_order = t;
		t = next;
	}
	while (in_order) {
		t = in_order;
		in_order = t->next;
		t->run(t);
	}
}

static void heap_put(struct loop *l, size_t i, struct timer *t)
{
	l->heap[i] = t;
	t->index = i + 1;
}

static void sift_up(struct loop *l, size_t i, struct timer *t)
{
	while (i > 0 && l->heap[(i - 1) / 2]->key > t->key) {
		heap_put(l, i, l->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	heap_put(l, i, t);
}

static void sift_down(struct loop *l, size_t i, struct timer *t)
{
	for (;;) {
		size_t c = 2 * i + 1;

		if (c >= l->heap_n)
			break;
		if (c + 1 < l->heap_n && l->heap[c + 1]->key < l->heap[c]->key)
			c++;
		if (l->heap[c]->key >= t->key)
			break;
		heap_put(l, i, l->heap[c]);
		i = c;
	}
	heap_put(l, i, t);
}

int timer_set(struct loop *l, struct timer *t, uint64_t deadline)
{
	t->deadline = deadline;
	if (t->index) {
		if (deadline < t->key) {
			t->key = deadline;
			sift_up(l, t->index - 1, t);
		}
		return 0;
	}
	if (l->heap_n == l->heap_cap) {
		size_t cap = l->heap_cap ? l->heap_cap * 2 : 64;
		struct timer **heap = realloc(l->heap, cap * sizeof(*heap));

		if (!heap)
			return -ENOMEM;
		l->heap = heap;
		l->heap_cap = cap;
	}
	t->key = deadline;
	sift_up(l, l->heap_n++, t);
	return 0;
}

void timer_remove(struct loop *l, struct timer *t)
{
	struct timer *last;
	size_t i;

	timer_off(t);
	if (!t->index)
		return;
	i = t->index - 1;
	t->index = 0;
	last = l->heap[--l->heap_n];
	if (last == t)
		return;
	if (i > 0 && l->heap[(i - 1) / 2]->key > last->key)
		sift_up(l, i, last);
	else
		sift_down(l, i, last);
}

static void run_timers(struct loop *l)
{
	while (l->heap_n && l->heap[0]->key <= l->now) {
		struct timer *t = l->heap[0];

		if (t->deadline > l->now && t->deadline != UINT64_MAX) {
			t->key = t->deadline;
			sift_down(l, 0, t);
			continue;
		}
		bool due = t->deadline <= l->now;
		timer_remove(l, t);
		if (due)
			t->cb(t);
	}
}

static int next_timeout(struct loop *l, int timeout_ms)
{
	uint64_t ms;

	if (atomic_load_explicit(&l->posted, memory_order_relaxed))
		return 0;
	if (!l->heap_n)
		return timeout_ms;
	if (l->heap[0]->key <= l->now)
		return 0;
	ms = (l->heap[0]->key - l->now + NS_PER_MS - 1) / NS_PER_MS;
	if (ms > 60000)
		ms = 60000;
	return timeout_ms >= 0 && timeout_ms < (int)ms ? timeout_ms : (int)ms;
}

int loop_turn(struct loop *l, int timeout_ms)
{
	struct epoll_event ev[EVENTS_PER_WAIT];
	int n = epoll_wait(l->epfd, ev, EVENTS_PER_WAIT, next_timeout(l, timeout_ms));

	if (n < 0 && errno != EINTR)
		return -errno;
	l->now = now_ns();
	for (int i = 0; i < n; i++) {
		struct watch *w = ev[i].data.ptr;
		if (w->fd >= 0)
			w->cb(w, ev[i].events);
	}
	run_timers(l);
	if (atomic_load_explicit(&l->posted, memory_order_relaxed))
		run_posted(l);
	run_deferred(l);
	return 0;
}

int loop_run(struct loop *l)
{
	int r = 0;

	while (!l->stop && r >= 0)
		r = loop_turn(l, -1);
	return r;
}

void loop_stop(struct loop *l)
{
	l->stop = true;
}
