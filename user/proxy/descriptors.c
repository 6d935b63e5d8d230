/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/descriptors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/util.h"

#define RESERVE_MAX 64
#define IN_HAND_MAX 128
#define LOW_MIN 4 /* with less there is no service; the kernel's refusal says so then */

long descriptors_init(struct descriptors *d, unsigned workers)
{
	struct rlimit limit = { .rlim_cur = 1024 };
	long open_now, room;
	int lowest;

	getrlimit(RLIMIT_NOFILE, &limit);
	/* Numbers are given out from below: the lowest free one is how many there are. */
	lowest = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
	open_now = lowest;
	if (lowest >= 0)
		close(lowest);
	else
		open_now = (long)MIN_OF(limit.rlim_cur, (rlim_t)64);
	room = (long)MIN_OF(limit.rlim_cur, (rlim_t)1 << 30) - open_now;
	room -= MIN_OF(room / 4, (long)RESERVE_MAX);
	room = MAX_OF(room, (long)LOW_MIN);
	d->in_hand_max = (unsigned)MIN_OF(room / (16 * (long)workers), (long)IN_HAND_MAX);
	atomic_store(&d->left, room);
	return room;
}

bool descriptors_take(struct descriptors_share *s, unsigned n)
{
	if (s->in_hand >= n) {
		s->in_hand -= n;
		return true;
	}
	if (atomic_fetch_sub_explicit(&s->all->left, n, memory_order_relaxed) >= (long)n)
		return true;
	atomic_fetch_add_explicit(&s->all->left, n, memory_order_relaxed);
	return false;
}

void descriptors_give(struct descriptors_share *s, unsigned n)
{
	unsigned back;

	s->in_hand += n;
	if (s->in_hand <= s->all->in_hand_max)
		return;
	back = s->in_hand - s->all->in_hand_max / 2;
	s->in_hand -= back;
	atomic_fetch_add_explicit(&s->all->left, back, memory_order_relaxed);
}

void descriptors_settle(struct descriptors_share *s)
{
	atomic_fetch_add_explicit(&s->all->left, s->in_hand, memory_order_relaxed);
	s->in_hand = 0;
}
