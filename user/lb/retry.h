/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many retries one worker may make: a token bucket, so that a failing
 * upstream is not hit by a multiple of the load that made it fail. A bucket
 * fills by a share of the requests seen and by a small rate of its own, which
 * lets a quiet proxy retry at all. Pure: the caller brings the time.
 *
 * Amounts are thousandths of a retry.
 */
#pragma once
#include "base/util.h"

#define RETRY_PERCENT 20    /* of the requests */
#define RETRY_PER_SECOND 10 /* besides */

struct retry_budget {
	uint64_t tokens, cap;
	uint64_t filled_ns; /* up to when the rate has been credited */
	uint32_t percent, per_second;
};

/* Starts full, with what ten seconds of the rate would bring; that is also the cap. 0 and 0: no retries at all. */
void retry_budget_init(struct retry_budget *r, uint32_t percent, uint32_t per_second, uint64_t now);
/* A request came in (the first attempt only). */
void retry_budget_note_request(struct retry_budget *r);
/* True, and one retry taken, when there is one left. now never goes backwards. */
bool retry_budget_take(struct retry_budget *r, uint64_t now);
