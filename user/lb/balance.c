/* SPDX-License-Identifier: Apache-2.0 */
#include "lb/balance.h"

#include <errno.h>
#include <stdlib.h>

#include "lb/ring.h"

int balancer_init(struct balancer *b, enum conf_balance policy, const struct str *names, uint32_t n, uint64_t seed)
{
	*b = (struct balancer){ .policy = policy, .n = n, .names = names };
	/* The generator's state must not be 0, and near seeds (worker indices) must not give near sequences. */
	b->rand = hash_u64(seed + 0x9e3779b97f4a7c15ull) | 1;
	if (n == 0)
		return 0;
	b->current = calloc(n, sizeof(*b->current));
	return b->current ? 0 : -ENOMEM;
}

void balancer_deinit(struct balancer *b)
{
	free(b->current);
	free(b->turns);
	balance_ring_free(b->ring);
	*b = (struct balancer){ 0 };
}

static bool choosable(const struct balancer_candidate *c)
{
	return c->usable && c->weight > 0;
}

/* Negative, 0 or positive as a is less, equally or more loaded than b for its weight. */
static int load_compare(const struct balancer_candidate *a, const struct balancer_candidate *b)
{
	uint64_t x = (uint64_t)a->active * b->weight, y = (uint64_t)b->active * a->weight;

	return x < y ? -1 : x > y;
}

/*
 * Smooth weighted round robin: everyone gains its weight, the richest is
 * taken and pays the sum. Weights 5,1,1 give a a b a c a a, not a a a a a b c.
 * Only candidates as loaded as `like` take part when it is not NULL.
 */
static int choose_round_robin(struct balancer *b, const struct balancer_candidate *c,
			      const struct balancer_candidate *like)
{
	int64_t total = 0;
	int best = -1;

	for (uint32_t i = 0; i < b->n; i++) {
		if (!choosable(&c[i]) || (like && load_compare(&c[i], like) != 0))
			continue;
		b->current[i] += c[i].weight;
		total += c[i].weight;
		if (best < 0 || b->current[i] > b->current[best])
			best = (int)i;
	}
	if (best >= 0)
		b->current[best] -= total;
	return best;
}

#define TURNS_MAX 4096u

/* Writes down one period of smooth weighted round robin over the choosable. False: too long, or no memory. */
static bool write_turns(struct balancer *b, const struct balancer_candidate *c)
{
	uint64_t total = 0, gcd = 0;
	int64_t *keep = b->current;

	for (uint32_t i = 0; i < b->n; i++) {
		uint64_t x = choosable(&c[i]) ? c[i].weight : 0, y = gcd;

		total += x;
		while (x) {
			uint64_t t = y % x;
			y = x;
			x = t;
		}
		gcd = y;
	}
	free(b->turns);
	b->turns = NULL;
	b->turns_n = 0;
	if (gcd == 0 || total / gcd > TURNS_MAX || b->n > UINT16_MAX)
		return false;
	b->turns = calloc(total / gcd, sizeof(*b->turns));
	b->current = calloc(b->n, sizeof(*b->current));
	if (b->turns && b->current) {
		b->turns_n = (uint32_t)(total / gcd);
		for (uint32_t i = 0; i < b->turns_n; i++)
			b->turns[i] = (uint16_t)choose_round_robin(b, c, NULL);
	}
	free(b->current);
	b->current = keep;
	return b->turns_n > 0;
}

int balancer_turn(struct balancer *b, const struct balancer_candidate *c, uint64_t turn)
{
	uint64_t seen = 1;

	for (uint32_t i = 0; i < b->n; i++)
		seen = hash_u64(seen + (choosable(&c[i]) ? c[i].weight : 0));
	if (seen != b->turns_for) {
		b->turns_for = seen;
		write_turns(b, c);
	}
	return b->turns_n ? b->turns[turn % b->turns_n] : choose_round_robin(b, c, NULL);
}

/* The least loaded for its weight; those that are equal take turns. */
static int choose_least_conn(struct balancer *b, const struct balancer_candidate *c)
{
	const struct balancer_candidate *least = NULL;

	for (uint32_t i = 0; i < b->n; i++)
		if (choosable(&c[i]) && (!least || load_compare(&c[i], least) < 0))
			least = &c[i];
	return least ? choose_round_robin(b, c, least) : -1;
}

/* One of the choosable with a probability by weight, leaving `except` out (-1: nobody). */
static int choose_random(struct balancer *b, const struct balancer_candidate *c, int except)
{
	uint64_t total = 0, at;

	for (uint32_t i = 0; i < b->n; i++)
		if (choosable(&c[i]) && (int)i != except)
			total += c[i].weight;
	if (total == 0)
		return -1;
	at = rand_next(&b->rand) % total;
	for (uint32_t i = 0; i < b->n; i++) {
		if (!choosable(&c[i]) || (int)i == except)
			continue;
		if (at < c[i].weight)
			return (int)i;
		at -= c[i].weight;
	}
	return -1;
}

/* Power of two choices: two different ones at random, the less loaded of them. */
static int choose_p2c(struct balancer *b, const struct balancer_candidate *c)
{
	int first = choose_random(b, c, -1), second;

	if (first < 0)
		return -1;
	second = choose_random(b, c, first);
	if (second < 0)
		return first;
	return load_compare(&c[second], &c[first]) < 0 ? second : first;
}

/* The candidate at place `at` when everyone takes up as many places as it has weight. */
static uint32_t weighted_place(const struct balancer_candidate *c, uint64_t at)
{
	uint32_t i = 0;

	while (at >= c[i].weight)
		at -= c[i++].weight;
	return i;
}

#define FNV_REHASHES 16

/*
 * The key's hash decides, over all that have weight, usable or not. Where it
 * falls on one that is not, the hash is mixed on, so that the keys of a dead
 * one spread over all others; after some tries the next usable one gets it.
 */
static int choose_fnv(struct balancer *b, const struct balancer_candidate *c, struct str key)
{
	uint64_t total = 0, h = hash_u64(hash_bytes(key.p, key.n));
	uint32_t i = 0;

	for (uint32_t j = 0; j < b->n; j++)
		total += c[j].weight;
	if (total == 0)
		return -1;
	for (int tries = 0; tries < FNV_REHASHES; tries++) {
		i = weighted_place(c, h % total);
		if (choosable(&c[i]))
			return (int)i;
		h = hash_u64(h + 0x9e3779b97f4a7c15ull);
	}
	for (uint32_t j = 0; j < b->n; j++, i = (i + 1) % b->n)
		if (choosable(&c[i]))
			return (int)i;
	return -1;
}

/* Without memory for the ring the keys go by plain hash: another backend than usual, but one that works. */
static int choose_ring(struct balancer *b, const struct balancer_candidate *c, struct str key)
{
	if (!b->ring || !balance_ring_current(b->ring, c)) {
		struct balance_ring *ring = balance_ring_new(b->policy, b->names, c, b->n);

		if (ring) {
			balance_ring_free(b->ring);
			b->ring = ring;
		}
	}
	if (!b->ring)
		return choose_fnv(b, c, key);
	return balance_ring_choose(b->ring, c, key);
}

static bool any_choosable(const struct balancer *b, const struct balancer_candidate *c)
{
	for (uint32_t i = 0; i < b->n; i++)
		if (choosable(&c[i]))
			return true;
	return false;
}

int balancer_choose(struct balancer *b, const struct balancer_candidate *c, struct str key)
{
	/* Nobody is the answer at once, not after a walk around a ring of a million points. */
	if (!any_choosable(b, c))
		return -1;
	if (key.n == 0 && conf_balance_hashes(b->policy))
		return choose_round_robin(b, c, NULL);
	switch (b->policy) {
	case CONF_BALANCE_RANDOM:
		return choose_random(b, c, -1);
	case CONF_BALANCE_LEAST_CONN:
		return choose_least_conn(b, c);
	case CONF_BALANCE_P2C:
		return choose_p2c(b, c);
	case CONF_BALANCE_FNV:
		return choose_fnv(b, c, key);
	case CONF_BALANCE_KETAMA:
	case CONF_BALANCE_MAGLEV:
		return choose_ring(b, c, key);
	case CONF_BALANCE_ROUND_ROBIN:
		break;
	}
	return choose_round_robin(b, c, NULL);
}
