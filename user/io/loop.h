/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One epoll loop, owned by one thread. All watches are edge-triggered: an
 * event is told once, so its owner caches readiness and reads or writes until
 * EAGAIN. A turn is: wait, callbacks of ready watches, due timers, posted
 * tasks, then the reaping of what was deferred. Nothing a callback can reach
 * is freed before the turn ends, so a stale event in the same batch can not
 * bite: free with loop_defer.
 */
#pragma once
#include <stdatomic.h>
#include <sys/epoll.h>
#include "base/list.h"
#include "base/util.h"

struct loop;
struct timer;

struct watch {
	int fd; /* -1: not watched */
	void (*cb)(struct watch *w, uint32_t events);
};

/* A piece of work handed to the loop's thread from another one. */
struct task {
	struct task *next;
	void (*run)(struct task *t);
};

/* Something to be freed when the current turn ends. */
struct defer {
	struct defer *next;
	void (*free)(struct defer *d);
	bool queued;
};

/* 0 or -errno. The caller owns the loop; loop_free from the same thread that ran it, or after it ended. */
int loop_new(struct loop **out);
void loop_free(struct loop *l);

/* Starts watching w->fd, edge-triggered, for events (EPOLLIN | EPOLLOUT | EPOLLRDHUP …). 0 or -errno. */
int loop_add(struct loop *l, struct watch *w, uint32_t events);
/* Changes what is watched; an already pending condition is told again. 0 or -errno. */
int loop_mod(struct loop *l, struct watch *w, uint32_t events);
/* Stops watching. Must be called before the descriptor is closed when it may be shared. */
void loop_del(struct loop *l, struct watch *w);

/* Monotonic nanoseconds as of the start of this turn. */
uint64_t loop_now(const struct loop *l);
/* Reads the clock again, for work that took long. */
uint64_t loop_now_fresh(struct loop *l);

void loop_defer(struct loop *l, struct defer *d);
/* From any thread. The task must stay alive until it ran. */
void loop_post(struct loop *l, struct task *t);
/* The same from the loop's own thread: runs in the next turn, which then does not wait. */
void loop_later(struct loop *l, struct task *t);

/* Runs until loop_stop. 0 or -errno of epoll. */
int loop_run(struct loop *l);
/* One turn, waiting at most timeout_ms (-1: until something happens). 0 or -errno. */
int loop_turn(struct loop *l, int timeout_ms);
/* From the loop's own thread; from others post a task that calls it. */
void loop_stop(struct loop *l);

/*
 * Timers. Setting a later deadline is one store: the heap learns of it only
 * when the earlier one comes up, which is what makes a timeout per connection
 * that moves with every read cheap.
 */
struct timer {
	void (*cb)(struct timer *t);
	uint64_t deadline; /* ns; UINT64_MAX: off */
	uint64_t key;	   /* what the heap is ordered by, <= deadline */
	size_t index;	   /* place in the heap + 1; 0: not in it */
};

static inline void timer_init(struct timer *t, void (*cb)(struct timer *))
{
	*t = (struct timer){ .cb = cb, .deadline = UINT64_MAX };
}

/* Due at the absolute time. 0 or -ENOMEM (only when the timer was not in the heap yet). */
int timer_set(struct loop *l, struct timer *t, uint64_t deadline);
static inline void timer_off(struct timer *t)
{
	t->deadline = UINT64_MAX;
}
/* Takes the timer out of the heap; needed before its memory goes. */
void timer_remove(struct loop *l, struct timer *t);
