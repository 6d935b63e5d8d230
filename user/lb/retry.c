/* SPDX-License-Identifier: Apache-2.0 */
#include "lb/retry.h"

#define TOKEN 1000u
#define CAP_SECONDS 10u

void retry_budget_init(struct retry_budget *r, uint32_t percent, uint32_t per_second, uint64_t now)
{
	uint64_t cap = (uint64_t)per_second * CAP_SECONDS * TOKEN;

	/* Without a rate the share of requests still needs room to gather in. */
	if (cap == 0 && percent > 0)
		cap = CAP_SECONDS * TOKEN;
	*r = (struct retry_budget){
		.tokens = cap, .cap = cap, .filled_ns = now, .percent = percent, .per_second = per_second
	};
}

void retry_budget_note_request(struct retry_budget *r)
{
	r->tokens = MIN_OF(r->cap, r->tokens + (uint64_t)r->percent * TOKEN / 100);
}

/* Credits whole tokens-thousandths and leaves the remainder of the time for the next call. */
static void refill(struct retry_budget *r, uint64_t now)
{
	uint64_t per_unit, units;

	if (r->per_second == 0 || now <= r->filled_ns)
		return;
	per_unit = NS_PER_S / ((uint64_t)r->per_second * TOKEN);
	if (per_unit == 0)
		per_unit = 1;
	units = (now - r->filled_ns) / per_unit;
	r->filled_ns += units * per_unit;
	r->tokens = units >= r->cap ? r->cap : MIN_OF(r->cap, r->tokens + units);
}

bool retry_budget_take(struct retry_budget *r, uint64_t now)
{
	refill(r, now);
	if (r->tokens < TOKEN)
		return false;
	r->tokens -= TOKEN;
	return true;
}
