/* SPDX-License-Identifier: Apache-2.0 */
/* Who gets which request: exact sequences where they are defined, bounds where chance or hashing decides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "lb/balance.h"
#include "lb/retry.h"
#include "lb/ring.h"

#define MAX 200

struct fixture {
	char text[MAX][32];
	struct str names[MAX];
	struct balancer_candidate c[MAX];
	struct balancer b;
};

static void set_up(struct fixture *f, enum conf_balance policy, uint32_t n, const uint32_t *weights)
{
	for (uint32_t i = 0; i < n; i++) {
		snprintf(f->text[i], sizeof(f->text[i]), "10.0.%u.%u:80", i / 250, i % 250);
		f->names[i] = str_from(f->text[i]);
		f->c[i] = (struct balancer_candidate){ .weight = weights ? weights[i] : 1, .usable = true };
	}
	assert_int_equal(balancer_init(&f->b, policy, f->names, n, 7), 0);
}

static int choose_key(struct fixture *f, unsigned key)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "key-%u", key);

	return balancer_choose(&f->b, f->c, (struct str){ text, (size_t)n });
}

static void round_robin_sequences(void **state)
{
	static const struct {
		const char *what;
		uint32_t n, weights[4];
		const char *down; /* members by letter */
		const char *want;
	} rows[] = {
		{ "equal weights take turns", 3, { 1, 1, 1 }, "", "abcabc" },
		{ "heavy ones are spread out", 3, { 5, 1, 1 }, "", "aabacaaaabacaa" },
		{ "weights of two", 2, { 2, 1 }, "", "abaaba" },
		{ "one alone", 1, { 3 }, "", "aaa" },
		{ "one that is down is left out", 3, { 1, 1, 1 }, "b", "acacac" },
		{ "weight 0 gets nothing", 3, { 1, 0, 1 }, "", "acacac" },
		{ "all down", 2, { 1, 1 }, "ab", "---" },
		{ "no weight at all", 2, { 0, 0 }, "", "--" },
		{ "nobody there", 0, { 0 }, "", "--" },
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		static struct fixture f;
		char got[32] = "";

		set_up(&f, CONF_BALANCE_ROUND_ROBIN, rows[i].n, rows[i].weights);
		for (const char *d = rows[i].down; *d; d++)
			f.c[*d - 'a'].usable = false;
		for (size_t j = 0; j < strlen(rows[i].want); j++) {
			int at = balancer_choose(&f.b, f.c, STR_NONE);
			got[j] = at < 0 ? '-' : (char)('a' + at);
		}
		if (strcmp(got, rows[i].want) != 0)
			fail_msg("%s: got %s, want %s", rows[i].what, got, rows[i].want);
		balancer_deinit(&f.b);
	}
}

static void balancers_that_share_turns_alternate_as_one(void **state)
{
	static const struct {
		uint32_t weights[3];
		const char *down, *want;
	} rows[] = {
		{ { 1, 1, 1 }, "", "abcabcabc" },
		{ { 5, 1, 1 }, "", "aabacaaaabacaa" },
		{ { 100, 100, 100 }, "b", "acacac" },
		{ { 1, 2, 1 }, "a", "bcbbcb" },
		{ { 1, 1, 1 }, "abc", "---" },
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		static struct fixture f[2];
		char got[32] = "";

		for (int k = 0; k < 2; k++) {
			set_up(&f[k], CONF_BALANCE_ROUND_ROBIN, 3, rows[i].weights);
			for (const char *d = rows[i].down; *d; d++)
				f[k].c[*d - 'a'].usable = false;
		}
		for (size_t j = 0; j < strlen(rows[i].want); j++) {
			struct fixture *who = &f[(j * 7 + i) % 3 == 0];
			int at = balancer_turn(&who->b, who->c, j);
			got[j] = at < 0 ? '-' : (char)('a' + at);
		}
		assert_string_equal(got, rows[i].want);
		for (int k = 0; k < 2; k++)
			balancer_deinit(&f[k].b);
	}
}

/* Orders too long to keep are walked by each for itself, and still by weight. */
static void a_very_long_order_keeps_its_shares(void **state)
{
	static struct fixture f;
	static const uint32_t weights[] = { 4093, 4091, 1 };
	unsigned count[3] = { 0 };
	(void)state;

	set_up(&f, CONF_BALANCE_ROUND_ROBIN, 3, weights);
	for (uint64_t j = 0; j < 8185; j++)
		count[balancer_turn(&f.b, f.c, j * 1000)]++;
	assert_int_equal(count[0], 4093);
	assert_int_equal(count[1], 4091);
	assert_int_equal(count[2], 1);
	balancer_deinit(&f.b);
}

static void least_conn_takes_the_least_loaded_for_its_weight(void **state)
{
	static const struct {
		uint32_t weights[3], active[3];
		bool usable[3];
		const char *want;
	} rows[] = {
		{ { 1, 1, 1 }, { 3, 1, 2 }, { true, true, true }, "b" },
		{ { 4, 1, 1 }, { 3, 1, 2 }, { true, true, true }, "a" },
		{ { 1, 1, 1 }, { 3, 1, 2 }, { true, false, true }, "c" },
		{ { 1, 1, 1 }, { 0, 0, 0 }, { true, true, true }, "abcabc" },
		{ { 2, 1, 1 }, { 0, 0, 5 }, { true, true, true }, "abaaba" },
		{ { 1, 1, 1 }, { 0, 0, 0 }, { false, false, false }, "-" },
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		static struct fixture f;
		char got[32] = "";

		set_up(&f, CONF_BALANCE_LEAST_CONN, 3, rows[i].weights);
		for (int j = 0; j < 3; j++) {
			f.c[j].active = rows[i].active[j];
			f.c[j].usable = rows[i].usable[j];
		}
		for (size_t j = 0; j < strlen(rows[i].want); j++) {
			int at = balancer_choose(&f.b, f.c, STR_NONE);
			got[j] = at < 0 ? '-' : (char)('a' + at);
		}
		assert_string_equal(got, rows[i].want);
		balancer_deinit(&f.b);
	}
}

/* Every method gives nobody what is not usable, and finds the only one that is. */
static void the_last_usable_one_gets_everything(void **state)
{
	(void)state;
	for (int policy = CONF_BALANCE_ROUND_ROBIN; policy <= CONF_BALANCE_MAGLEV; policy++) {
		static struct fixture f;

		set_up(&f, (enum conf_balance)policy, 50, NULL);
		for (int i = 0; i < 50; i++)
			f.c[i].usable = i == 37;
		for (unsigned k = 0; k < 200; k++)
			assert_int_equal(choose_key(&f, k), 37);
		f.c[37].usable = false;
		for (unsigned k = 0; k < 20; k++)
			assert_int_equal(choose_key(&f, k), -1);
		balancer_deinit(&f.b);
	}
}

static void shares_follow_weights(void **state)
{
	static const struct {
		enum conf_balance policy;
		double tolerance; /* of the share */
	} rows[] = {
		{ CONF_BALANCE_ROUND_ROBIN, 0.001 }, { CONF_BALANCE_RANDOM, 0.05 }, { CONF_BALANCE_LEAST_CONN, 0.001 },
		{ CONF_BALANCE_FNV, 0.05 },          { CONF_BALANCE_KETAMA, 0.25 }, { CONF_BALANCE_MAGLEV, 0.05 },
	};
	static const uint32_t weights[4] = { 4, 2, 1, 1 };
	const unsigned total = 40000;
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		static struct fixture f;
		unsigned got[4] = { 0 };

		set_up(&f, rows[i].policy, 4, weights);
		for (unsigned k = 0; k < total; k++)
			got[choose_key(&f, k)]++;
		for (int j = 0; j < 4; j++) {
			double want = (double)total * weights[j] / 8;

			if (got[j] < want * (1 - rows[i].tolerance) || got[j] > want * (1 + rows[i].tolerance))
				fail_msg("%s: member %d got %u, want %.0f", conf_balance_name(rows[i].policy), j,
					 got[j], want);
		}
		balancer_deinit(&f.b);
	}
}

static void p2c_prefers_the_less_loaded(void **state)
{
	static struct fixture f;
	unsigned got[4] = { 0 };
	(void)state;

	set_up(&f, CONF_BALANCE_P2C, 4, NULL);
	f.c[0].active = 100;
	for (unsigned k = 0; k < 10000; k++)
		got[choose_key(&f, k)]++;
	/* The most loaded loses against whichever it is paired with; the others share evenly. */
	assert_int_equal(got[0], 0);
	for (int j = 1; j < 4; j++)
		assert_in_range(got[j], 2900, 3800);
	/* Equal loads: no preference beyond chance. */
	f.c[0].active = 0;
	memset(got, 0, sizeof(got));
	for (unsigned k = 0; k < 10000; k++)
		got[choose_key(&f, k)]++;
	for (int j = 0; j < 4; j++)
		assert_in_range(got[j], 2200, 2800);
	balancer_deinit(&f.b);
}

static void hashes_are_stable_and_keys_of_the_healthy_do_not_move(void **state)
{
	static const enum conf_balance policies[] = { CONF_BALANCE_FNV, CONF_BALANCE_KETAMA, CONF_BALANCE_MAGLEV };
	enum { KEYS = 5000, N = 20 };
	(void)state;

	for (size_t p = 0; p < ARRAY_SIZE(policies); p++) {
		static struct fixture f;
		static int before[KEYS];
		unsigned heirs[N] = { 0 }, moved = 0;

		set_up(&f, policies[p], N, NULL);
		for (unsigned k = 0; k < KEYS; k++)
			before[k] = choose_key(&f, k);
		for (unsigned k = 0; k < KEYS; k++)
			assert_int_equal(choose_key(&f, k), before[k]);
		f.c[3].usable = false;
		for (unsigned k = 0; k < KEYS; k++) {
			int now = choose_key(&f, k);

			assert_int_not_equal(now, 3);
			if (before[k] != 3) {
				assert_int_equal(now, before[k]);
			} else {
				heirs[now]++;
				moved++;
			}
		}
		/* What the dead one had is spread, not heaped on one neighbour. */
		for (int i = 0; i < N; i++)
			assert_true(heirs[i] <= moved / 2);
		f.c[3].usable = true;
		for (unsigned k = 0; k < KEYS; k++)
			assert_int_equal(choose_key(&f, k), before[k]);
		balancer_deinit(&f.b);
	}
}

/* The members themselves change: a name resolves to one address less. Few keys of the others may move. */
static void consistent_hashes_survive_removal(void **state)
{
	static const struct {
		enum conf_balance policy;
		double most_moved;
	} rows[] = { { CONF_BALANCE_KETAMA, 0.0 }, { CONF_BALANCE_MAGLEV, 0.06 } };
	enum { KEYS = 20000, N = 20, GONE = 11 };
	(void)state;

	for (size_t p = 0; p < ARRAY_SIZE(rows); p++) {
		static struct fixture f, g;
		unsigned moved = 0;

		set_up(&f, rows[p].policy, N, NULL);
		set_up(&g, rows[p].policy, N - 1, NULL);
		for (int i = GONE; i < N - 1; i++)
			g.names[i] = f.names[i + 1];
		for (unsigned k = 0; k < KEYS; k++) {
			int a = choose_key(&f, k), b = choose_key(&g, k);

			if (a != GONE && !str_eq(f.names[a], g.names[b]))
				moved++;
		}
		if (moved > rows[p].most_moved * (int)KEYS)
			fail_msg("%s: %u of %u keys moved", conf_balance_name(rows[p].policy), moved, KEYS);
		balancer_deinit(&f.b);
		balancer_deinit(&g.b);
	}
}

static void rings_follow_a_changed_weight(void **state)
{
	static const enum conf_balance policies[] = { CONF_BALANCE_KETAMA, CONF_BALANCE_MAGLEV };
	(void)state;

	for (size_t p = 0; p < ARRAY_SIZE(policies); p++) {
		static struct fixture f;
		unsigned before = 0, after = 0;

		set_up(&f, policies[p], 4, NULL);
		for (unsigned k = 0; k < 10000; k++)
			before += choose_key(&f, k) == 2;
		f.c[2].weight = 5;
		for (unsigned k = 0; k < 10000; k++)
			after += choose_key(&f, k) == 2;
		assert_in_range(before, 1900, 3100);
		assert_in_range(after, 5300, 7200);
		balancer_deinit(&f.b);
	}
}

static void hash_without_key_takes_turns(void **state)
{
	static struct fixture f;
	(void)state;

	set_up(&f, CONF_BALANCE_KETAMA, 3, NULL);
	for (int i = 0; i < 6; i++)
		assert_int_equal(balancer_choose(&f.b, f.c, STR_NONE), i % 3);
	balancer_deinit(&f.b);
}

/* Points as Cache::Memcached::Fast's formula gives them, worked out with another CRC-32 (zlib's, from Python). */
static void ketama_places_keys_by_the_known_formula(void **state)
{
	static const struct {
		const char *key, *owner;
	} rows[] = {
		{ "/", "10.0.0.2:8080" },
		{ "/index.html", "10.0.0.1:8080" },
		{ "user-17", "10.0.0.1:8080" },
		{ "user-18", "10.0.0.2:8080" },
		{ "a", "10.0.0.1:8080" },
		{ "zz", "10.0.0.1:8080" },
		{ "192.0.2.7", "10.0.0.1:8080" },
		{ "session=abc", "10.0.0.1:8080" },
		{ "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "cache.example.org" },
		{ "q", "10.0.0.1:8080" },
	};
	static const char *const names[] = { "10.0.0.1:8080", "10.0.0.2:8080", "cache.example.org" };
	static const uint32_t weights[] = { 1, 2, 1 };
	struct str n[3];
	struct balancer_candidate c[3];
	struct balancer b;
	(void)state;

	assert_int_equal(balance_crc32(0, "123456789", 9), 0xcbf43926);
	for (int i = 0; i < 3; i++) {
		n[i] = str_from(names[i]);
		c[i] = (struct balancer_candidate){ .weight = weights[i], .usable = true };
	}
	assert_int_equal(balancer_init(&b, CONF_BALANCE_KETAMA, n, 3, 1), 0);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		assert_string_equal(names[balancer_choose(&b, c, str_from(rows[i].key))], rows[i].owner);
	balancer_deinit(&b);
}

static void ring_of_many_heavy_members_stays_bounded(void **state)
{
	static struct fixture f;
	static uint32_t weights[MAX];
	unsigned got[MAX] = { 0 };
	(void)state;

	for (int i = 0; i < MAX; i++)
		weights[i] = 256;
	set_up(&f, CONF_BALANCE_KETAMA, MAX, weights);
	for (unsigned k = 0; k < 40000; k++)
		got[choose_key(&f, k)]++;
	for (int i = 0; i < MAX; i++)
		assert_in_range(got[i], 100, 320);
	balancer_deinit(&f.b);
}

static void retries_are_a_share_of_requests_and_a_small_rate(void **state)
{
	struct retry_budget r;
	uint64_t now = NS_PER_S;
	unsigned n = 0;
	(void)state;

	retry_budget_init(&r, 20, 10, now);
	while (retry_budget_take(&r, now))
		n++;
	assert_int_equal(n, 100); /* ten seconds of the rate */
	for (int i = 0; i < 9; i++)
		retry_budget_note_request(&r);
	assert_true(retry_budget_take(&r, now));
	assert_false(retry_budget_take(&r, now));
	/* A tenth of a second more is one more, asked for in however small steps. */
	for (n = 0; now < NS_PER_S + NS_PER_S; now += 3 * NS_PER_MS + 7)
		n += retry_budget_take(&r, now);
	assert_in_range(n, 9, 11);
	/* Long idle does not gather more than the cap. */
	now += 1000 * NS_PER_S;
	for (n = 0; retry_budget_take(&r, now); n++)
		;
	assert_int_equal(n, 100);

	retry_budget_init(&r, 0, 0, now);
	retry_budget_note_request(&r);
	assert_false(retry_budget_take(&r, now + 100 * NS_PER_S));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_robin_sequences),
		cmocka_unit_test(balancers_that_share_turns_alternate_as_one),
		cmocka_unit_test(a_very_long_order_keeps_its_shares),
		cmocka_unit_test(least_conn_takes_the_least_loaded_for_its_weight),
		cmocka_unit_test(the_last_usable_one_gets_everything),
		cmocka_unit_test(shares_follow_weights),
		cmocka_unit_test(p2c_prefers_the_less_loaded),
		cmocka_unit_test(hashes_are_stable_and_keys_of_the_healthy_do_not_move),
		cmocka_unit_test(consistent_hashes_survive_removal),
		cmocka_unit_test(rings_follow_a_changed_weight),
		cmocka_unit_test(hash_without_key_takes_turns),
		cmocka_unit_test(ketama_places_keys_by_the_known_formula),
		cmocka_unit_test(ring_of_many_heavy_members_stays_bounded),
		cmocka_unit_test(retries_are_a_share_of_requests_and_a_small_rate),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
