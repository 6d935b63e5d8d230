/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts that are in no pinned map, on their way to the process that takes
 * over, so that its metrics go on from there and include what the old one
 * answers while it drains: responses by upstream and status, requests by
 * backend, connections by listener; without BPF maps also everything that
 * would be in those.
 *
 * They go as messages over a socket, each saying how many more there are since
 * the last. A message is read once, by whoever serves: the reading end passes
 * on with every further upgrade, also while the writer still drains. So
 * nothing is counted twice and nothing needs to be settled at an end.
 *
 * A message is lines, each standing alone; unknown ones are passed over:
 *
 *   status UPSTREAM CODE MORE
 *   backend UPSTREAM/BACKEND MORE
 *   listener ADDRESS MORE
 *   counter NAME MORE
 *   health UPSTREAM/BACKEND STATE ADMIN WEIGHT
 *
 * Everything is called on the main thread.
 */
#pragma once
#include "io/handed.h"
#include "io/loop.h"
#include "proxy/proxy.h"

struct counts;

/* All four must outlive it, but see counts_end. 0 or -ENOMEM. */
int counts_new(struct counts **out, struct loop *l, struct kern *k, struct lb *lb, struct proxy *p);

/* Takes the reading ends out of set: adds what is there, and what will come. Before requests are counted. */
void counts_take(struct counts *c, struct handed *set);

/* An upgrade begins: adds reading ends to set, borrowed until counts_failed or counts_handed_over. 0 or -errno. */
int counts_offer(struct counts *c, struct handed *set);
/* The new process is about to go ahead: tells it all, and leaves to it what others will tell. */
void counts_ready(struct counts *c);
/* It did not come up: all is as before counts_offer. */
void counts_failed(struct counts *c);
/* It serves: from now on tells what comes, once a second. Again, or without an offer: nothing. */
void counts_handed_over(struct counts *c);

/* The proxy is about to be stopped and not to be looked at any more. NULL is fine, also below. */
void counts_end(struct counts *c);
/* Tells the rest; frees. *c becomes NULL. */
void counts_free(struct counts **c);
