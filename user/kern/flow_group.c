/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker's flows: where their events come from.
 *
 * One epoll descriptor holds the ring of the verdict program, a timer, and the
 * targets that flows wait to have room. All are edge-triggered, and dispatch
 * empties the ring and runs what is due every time, so the owner may watch the
 * descriptor edge-triggered too. Timers are a binary heap of flows.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "kern/flow_inner.h"

#define SWEEP_NS (250 * NS_PER_MS)

/* --- timers --- */

static void heap_put(struct flow_group *g, size_t i, struct flow *f)
{
	g->heap[i] = f;
	f->heap_index = i + 1;
}

static void heap_up(struct flow_group *g, size_t i)
{
	struct flow *f = g->heap[i];

	for (; i > 0 && g->heap[(i - 1) / 2]->due_ns > f->due_ns; i = (i - 1) / 2)
		heap_put(g, i, g->heap[(i - 1) / 2]);
	heap_put(g, i, f);
}

static void heap_down(struct flow_group *g, size_t i)
{
	struct flow *f = g->heap[i];

	for (;;) {
		size_t c = 2 * i + 1;
		if (c >= g->heap_n)
			break;
		if (c + 1 < g->heap_n && g->heap[c + 1]->due_ns < g->heap[c]->due_ns)
			c++;
		if (g->heap[c]->due_ns >= f->due_ns)
			break;
		heap_put(g, i, g->heap[c]);
		i = c;
	}
	heap_put(g, i, f);
}

void group_at_off(struct flow *f)
{
	struct flow_group *g = f->group;
	size_t i;

	if (f->heap_index == 0)
		return;
	i = f->heap_index - 1;
	f->heap_index = 0;
	if (i == --g->heap_n)
		return;
	heap_put(g, i, g->heap[g->heap_n]);
	heap_up(g, i);
	heap_down(g, g->heap[i]->heap_index - 1);
}

static void timer_arm(struct flow_group *g)
{
	uint64_t due = list_empty(&g->running) ? UINT64_MAX : g->sweep_ns;
	struct itimerspec t = { 0 };

	if (g->heap_n > 0 && g->heap[0]->due_ns < due)
		due = g->heap[0]->due_ns;
	/* Setting it back costs a system call; an early expiry costs a look. */
	if (due == UINT64_MAX || (g->timer_ns <= due && g->timer_ns > now_ns()))
		return;
	g->timer_ns = due;
	t.it_value.tv_sec = (time_t)(due / NS_PER_S);
	t.it_value.tv_nsec = (long)(due % NS_PER_S);
	(void)timerfd_settime(g->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

void group_at(struct flow *f, uint64_t when_ns)
{
	struct flow_group *g = f->group;

	if (f->heap_index == 0 && g->heap_n == g->heap_cap) {
		size_t cap = g->heap_cap ? g->heap_cap * 2 : 64;
		struct flow **h = realloc(g->heap, cap * sizeof(*h));
		if (!h)
			return; /* the sweep looks at every flow that waits */
		g->heap = h;
		g->heap_cap = cap;
	}
	group_at_off(f);
	f->due_ns = when_ns;
	g->heap[g->heap_n++] = f;
	heap_up(g, g->heap_n - 1);
	timer_arm(g);
}

/* --- events --- */

static int ring_event(void *ctx, void *data, size_t n)
{
	struct flow_group *g = ctx;
	const struct sluice_event *ev = data;
	struct flow_sock *fs;

	if (n < sizeof(*ev) || ev->slot >= g->splice->flows_n)
		return 0;
	fs = g->owners[ev->slot];
	/* Of an earlier body or socket: what it meant is over. */
	if (fs && fs->as_source && fs->as_source->epoch == ev->epoch && g->splice->flows[ev->slot].generation == ev->generation)
		flow_wake(fs->as_source);
	return 0;
}

static void room_events(struct flow_group *g)
{
	struct epoll_event ev[FLOW_BATCH];
	int n;

	do {
		n = epoll_wait(g->epoll, ev, FLOW_BATCH, 0);
		/* A callback may remove the socket of a later event: flow_sock_remove takes it out of the batch. */
		for (int i = 0; i < n; i++)
			g->batch[i] = ev[i].data.ptr;
		for (int i = 0; i < n; i++) {
			struct flow_sock *fs = g->batch[i];
			g->batch[i] = NULL;
			if (!fs)
				continue; /* ring or timer */
			sock_room_end(fs);
			if (!fs->as_target)
				continue;
			fs->as_target->notsent = fs->as_target->window / 4; /* no more than was waited for */
			flow_wake(fs->as_target);
		}
	} while (n == FLOW_BATCH);
}

static void sweep(struct flow_group *g, uint64_t now)
{
	struct list *it;
	size_t n = 0;

	g->sweep_ns = now + SWEEP_NS;
	for (it = g->running.next; it != &g->running; it = it->next)
		n++;
	/* Waking may unlink any flow, so each is moved to the end before it is woken. */
	while (n-- > 0 && !list_empty(&g->running)) {
		struct flow *f = list_entry(g->running.next, struct flow, link);
		list_unlink(&f->link);
		list_push_back(&g->running, &f->link);
		if (flow_overlooked(f)) {
			KERN_COUNT(g->counters, flow_sweeps, 1);
			flow_wake(f);
		}
	}
}

void flow_group_dispatch(struct flow_group *g)
{
	uint64_t now, expired;

	room_events(g);
	kern_ring_consume(g->ring);
	now = now_ns();
	if (g->timer_ns <= now) {
		(void)!read(g->timer, &expired, sizeof(expired));
		g->timer_ns = UINT64_MAX;
	}
	while (g->heap_n > 0 && g->heap[0]->due_ns <= now) {
		struct flow *f = g->heap[0];
		group_at_off(f);
		KERN_COUNT(g->counters, flow_polls, 1);
		flow_wake(f);
	}
	if (g->sweep_ns <= now)
		sweep(g, now);
	timer_arm(g);
}

int flow_group_fd(const struct flow_group *g)
{
	return g->epoll;
}

/* --- life --- */

int flow_group_new(struct flow_group **out, struct kern *k, unsigned worker)
{
	struct flow_group *g;
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };
	int r;

	if (worker >= kern_workers(k))
		return -EINVAL;
	if (!kern_features(k)->sockmap)
		return -EOPNOTSUPP;
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->kern = k;
	g->splice = kern_splice(k);
	g->counters = kern_counters(k, worker);
	g->worker = worker;
	g->epoll = g->timer = -1;
	g->timer_ns = UINT64_MAX;
	g->sweep_ns = now_ns() + SWEEP_NS;
	/* Epochs of two groups must differ where a slot moves between them. */
	g->epoch = (worker + 1) << 20;
	list_init(&g->running);
	r = -ENOMEM;
	g->owners = calloc(g->splice->flows_n, sizeof(struct flow_sock *));
	g->buffer = malloc(FLOW_BUFFER);
	if (!g->owners || !g->buffer)
		goto fail;
	r = kern_ring_new(&g->ring, k, worker, ring_event, g);
	if (r < 0)
		goto fail;
	g->epoll = epoll_create1(EPOLL_CLOEXEC);
	g->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (g->epoll < 0 || g->timer < 0 || epoll_ctl(g->epoll, EPOLL_CTL_ADD, g->timer, &ev) < 0 ||
	    epoll_ctl(g->epoll, EPOLL_CTL_ADD, kern_ring_fd(k, worker), &ev) < 0) {
		r = -errno;
		goto fail;
	}
	*out = g;
	return 0;
fail:
	flow_group_free(g);
	return r;
}

void flow_group_free(struct flow_group *g)
{
	if (!g)
		return;
	while (!list_empty(&g->running))
		(void)flow_disarm(list_entry(g->running.next, struct flow, link));
	kern_ring_free(g->ring);
	if (g->epoll >= 0)
		close(g->epoll);
	if (g->timer >= 0)
		close(g->timer);
	free(g->heap);
	free(g->owners);
	free(g->buffer);
	free(g);
}
