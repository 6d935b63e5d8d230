/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many descriptors connections may use, shared out before they run out.
 *
 * A session takes two when it is accepted: its client's and, for as long as it
 * lives, one for a backend. So a request that was accepted never fails for
 * want of a descriptor; whoever comes when there are none waits in the
 * listening queue. Idle connections to backends and pipes take their own.
 *
 * Each worker keeps a few in hand, so that a request touches nothing shared.
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>

#define DESCRIPTORS_SESSION 2u

struct descriptors {
	atomic_long left;
	atomic_bool wanted; /* a worker has clients waiting and none to spare itself */
	unsigned in_hand_max; /* of one worker */
};

/* A worker's share. */
struct descriptors_share {
	struct descriptors *all;
	unsigned in_hand;
};

/*
 * What RLIMIT_NOFILE leaves beside what is open now, some of it kept back for
 * health checks, administration and reloads. Call when everything lasting is
 * open. Returns how many there are for connections.
 */
long descriptors_init(struct descriptors *d, unsigned workers);
/* True: they are the caller's. False: there are not so many. */
bool descriptors_take(struct descriptors_share *s, unsigned n);
void descriptors_give(struct descriptors_share *s, unsigned n);
/* What is in hand goes back, for others to take. */
void descriptors_settle(struct descriptors_share *s);
