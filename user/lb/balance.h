/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which backend gets the next request. Pure: candidates in, index out; no
 * descriptor, no clock, and the only randomness comes from the seed.
 *
 * A balancer belongs to one worker. It keeps what a method remembers from one
 * choice to the next: current weights (smooth weighted round robin), the state
 * of the random generator, the ring or table of the consistent hashes. These
 * are built at the first choice, and again when the weights have changed.
 *
 * What must not be chosen (down, drained, tried already for this request) is a
 * candidate with usable == false. It keeps its place in rings and tables, so
 * that the keys of all others stay where they were.
 */
#pragma once
#include "base/util.h"
#include "conf/conf.h"

struct balancer_candidate {
	uint32_t weight; /* 0: never chosen */
	uint32_t active; /* requests running there; read by least_conn and p2c only */
	bool usable;
};

struct balance_ring;

struct balancer {
	enum conf_balance policy;
	uint32_t n;
	const struct str *names; /* borrowed: n of them */
	int64_t *current;        /* n, round robin */
	uint16_t *turns;	 /* the order of turns for the weights in `turns_for`, or NULL */
	uint32_t turns_n;
	uint64_t turns_for;
	uint64_t rand;
	struct balance_ring *ring; /* ketama, maglev; NULL until built */
};

/*
 * names identify the candidates for the consistent hashes ("10.0.0.1:80");
 * they stay the caller's and must live as long as b. 0 or -ENOMEM.
 */
int balancer_init(struct balancer *b, enum conf_balance policy, const struct str *names, uint32_t n, uint64_t seed);
void balancer_deinit(struct balancer *b);

/*
 * The index of the candidate to use among c[0..b->n), or -1 when none is
 * usable. key is what the hashing methods hash; when it is empty (the header
 * is not there) they take turns like round robin instead of sending all of
 * these to one backend.
 */
int balancer_choose(struct balancer *b, const struct balancer_candidate *c, struct str key);

/*
 * Round robin over several balancers: whose turn it is at place `turn` of the
 * order that balancer_choose would give from its beginning. Balancers that see
 * the same candidates and share one counter of turns alternate as one would.
 * Same answers. An order that is too long to keep is walked by each balancer for itself.
 */
int balancer_turn(struct balancer *b, const struct balancer_candidate *c, uint64_t turn);
