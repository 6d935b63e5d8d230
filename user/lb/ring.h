/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Consistent hashing: what key goes to whom, such that a change of the
 * members moves few keys. Pure, immutable once built.
 *
 * ketama: each member has 160 points per unit of weight on a circle of 2^32;
 *   a key belongs to the next point. Points and keys are placed by CRC-32 by
 *   the formula of Cache::Memcached::Fast, crc32(HOST \0 PORT PREVIOUS_POINT),
 *   which nginx (`hash … consistent`) and Pingora use too: caches behind them
 *   stay warm when sluice takes their place.
 * maglev: a table of a prime size that the members fill in turns by
 *   permutations of their own (Eisenbud et al., NSDI 2016, section 3.4),
 *   turns being given by weight. Even to a percent, one lookup.
 */
#pragma once
#include "lb/balance.h"

struct balance_ring;

/*
 * For CONF_BALANCE_KETAMA or _MAGLEV. Takes weights and names from the n
 * candidates; keeps neither pointer. NULL: no memory.
 */
struct balance_ring *balance_ring_new(enum conf_balance policy, const struct str *names,
				      const struct balancer_candidate *c, uint32_t n);
void balance_ring_free(struct balance_ring *r);
/* False when the weights are not those it was built with. */
bool balance_ring_current(const struct balance_ring *r, const struct balancer_candidate *c);
/* The key's owner, or where it is not usable the next one that is; -1 when nobody is. */
int balance_ring_choose(const struct balance_ring *r, const struct balancer_candidate *c, struct str key);
/* CRC-32 (IEEE 802.3) continued from crc; start with 0. */
uint32_t balance_crc32(uint32_t crc, const void *p, size_t n);
