/* SPDX-License-Identifier: Apache-2.0 */
/* How flows end: by the source's end, by errors on either side, by being given up; and what is refused. */
#include "kern_rig.h"

static void pair_up(struct rig_pair *src, struct rig_pair *dst, int client_buffer)
{
	rig_connect(src, 0, 31);
	rig_connect(dst, client_buffer, 0);
	rig_insert(dst, FLOW_TARGET);
	rig_insert(src, FLOW_SOURCE);
}

/* Lets the flow run, with the hints epoll would give, until it tells or the time is over. */
static enum flow_result settle(struct rig_flow *r, struct rig_pair *src, struct rig_pair *dst, bool read)
{
	uint64_t deadline = now_ns() + 5 * NS_PER_S;

	while (r->told == FLOW_WAIT && now_ns() < deadline) {
		if (read && dst->far >= 0)
			rig_take(dst, src->salt, 0, SIZE_MAX);
		rig_hint(r);
		rig_turn(1);
	}
	return r->told;
}

static void until_eof_ends_with_the_source(void **state)
{
	static const uint64_t sizes[] = { 0, 1, 70000, 3000000 };
	static struct rig_pair src, dst;
	static struct rig_flow r;

	(void)state;
	RIG_NEEDED();
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		pair_up(&src, &dst, 0);
		rig_arm(&r, &src, &dst, FLOW_UNTIL_EOF);
		uint64_t deadline = now_ns() + RIG_LIMIT_NS;
		while (src.sent < sizes[i] && now_ns() < deadline) {
			rig_feed(&src, sizes[i], 65536, SIZE_MAX);
			rig_take(&dst, src.salt, 0, SIZE_MAX);
			rig_turn(0);
		}
		shutdown(src.far, SHUT_WR);
		assert_int_equal(settle(&r, &src, &dst, true), FLOW_DONE);
		rig_rest(&dst, src.salt, 0, sizes[i]);
		rig_hangup(&src);
		rig_hangup(&dst);
	}
}

static void early_end_is_told_as_such(void **state)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;

	(void)state;
	RIG_NEEDED();
	pair_up(&src, &dst, 0);
	rig_arm(&r, &src, &dst, 1000000);
	rig_feed(&src, 400000, 65536, SIZE_MAX);
	shutdown(src.far, SHUT_WR);
	uint64_t deadline = now_ns() + 5 * NS_PER_S;
	while (src.sent < 400000 && now_ns() < deadline) {
		rig_feed(&src, 400000, 65536, SIZE_MAX);
		rig_turn(1);
	}
	assert_int_equal(settle(&r, &src, &dst, true), FLOW_EOF);
	assert_false(flow_running(&r.flow));
	rig_hangup(&src);
	rig_hangup(&dst);
}

static void reset_of_the_source_is_its_error(void **state)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;

	(void)state;
	RIG_NEEDED();
	pair_up(&src, &dst, 0);
	rig_arm(&r, &src, &dst, 1000000);
	rig_feed(&src, 100000, 65536, SIZE_MAX);
	rig_turn(1);
	rig_reset(&src.far);
	assert_int_equal(settle(&r, &src, &dst, true), FLOW_SRC_ERROR);
	assert_int_equal(r.flow.error, ECONNRESET);
	rig_hangup(&src);
	rig_hangup(&dst);
}

static void reset_of_the_target_is_its_error(void **state)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;

	(void)state;
	RIG_NEEDED();
	for (int stalled = 0; stalled < 2; stalled++) {
		pair_up(&src, &dst, stalled ? 4096 : 0);
		rig_arm(&r, &src, &dst, 50000000);
		for (int i = 0; i < 20; i++) {
			rig_feed(&src, 50000000, 65536, 1 << 20);
			if (!stalled)
				rig_take(&dst, src.salt, 0, SIZE_MAX);
			rig_turn(1);
		}
		rig_reset(&dst.far);
		uint64_t deadline = now_ns() + 5 * NS_PER_S;
		while (r.told == FLOW_WAIT && now_ns() < deadline) {
			rig_feed(&src, 50000000, 65536, 1 << 20);
			rig_hint(&r);
			rig_turn(1);
		}
		assert_int_equal(r.told, FLOW_DST_ERROR);
		rig_hangup(&src);
		rig_hangup(&dst);
	}
}

/* What the kernel took over for the target arrives although the source's socket is gone. */
static void closing_the_source_loses_nothing_moved(void **state)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;
	uint64_t body = 700000, deadline = now_ns() + 5 * NS_PER_S;

	(void)state;
	RIG_NEEDED();
	for (int round = 0; round < 20; round++) {
		pair_up(&src, &dst, 0);
		rig_arm(&r, &src, &dst, body);
		while (!r.moved && r.told == FLOW_WAIT && now_ns() < deadline) {
			rig_feed(&src, body, 65536, SIZE_MAX);
			rig_turn(0);
		}
		/* FLOW_MOVED, or done already: the source goes. */
		rig_hangup(&src);
		while (r.told == FLOW_WAIT && now_ns() < deadline) {
			rig_take(&dst, 31, 0, SIZE_MAX);
			rig_turn(1);
		}
		assert_int_equal(r.told, FLOW_DONE);
		rig_rest(&dst, 31, 0, body);
		rig_hangup(&dst);
	}
}

/* A target that is given up in the middle: the source lives on, and the next target gets its own bytes only. */
static void next_target_gets_nothing_of_the_last(void **state)
{
	static struct rig_pair src, dst, next;
	static struct rig_flow r;

	(void)state;
	RIG_NEEDED();
	pair_up(&src, &dst, 4096);
	rig_arm(&r, &src, &dst, 30000000);
	for (int i = 0; i < 30; i++) {
		rig_feed(&src, 30000000, 65536, 1 << 20);
		rig_turn(1);
	}
	assert_int_equal(r.told, FLOW_WAIT);
	(void)flow_disarm(&r.flow);
	assert_false(flow_running(&r.flow));
	rig_hangup(&src);
	rig_reset(&dst.near);
	rig_hangup(&dst);
	/* Same slots, most likely the same descriptors. */
	rig_connect(&src, 0, 32);
	rig_connect(&next, 0, 0);
	rig_insert(&next, FLOW_TARGET);
	rig_insert(&src, FLOW_SOURCE);
	rig_arm(&r, &src, &next, 500000);
	assert_int_equal(rig_run(&r, &src, &next, 500000, 65536, SIZE_MAX, 0), FLOW_DONE);
	rig_rest(&next, 32, 0, 500000);
	rig_hangup(&src);
	rig_hangup(&next);
}

static void disarm_tells_what_is_under_way(void **state)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;
	char c;

	(void)state;
	RIG_NEEDED();
	/* Nothing came yet: both sockets are as if nothing had been. */
	pair_up(&src, &dst, 0);
	rig_arm(&r, &src, &dst, 1000);
	assert_int_equal(flow_disarm(&r.flow), 0);
	assert_int_equal(flow_disarm(&r.flow), 0);
	rig_feed(&src, 1, 1, 1);
	struct pollfd p = { .fd = src.near, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 1000), 1);
	assert_int_equal(recv(src.near, &c, 1, 0), 1);
	rig_hangup(&src);
	rig_hangup(&dst);
}

static void refusals_have_reasons(void **state)
{
	static struct rig_pair src, dst, third;
	static struct rig_flow r, r2 = { .flow.callback = rig_told };
	struct flow_sock fs = FLOW_SOCK_INIT;
	int u[2];

	(void)state;
	RIG_NEEDED();
	pair_up(&src, &dst, 0);
	rig_arm(&r, &src, &dst, 1000);
	/* A socket is source of one flow and target of one. */
	assert_int_equal(flow_arm(&r2.flow, rig_group, &src.fs, &dst.fs, 10), FLOW_NOT_NOW);
	assert_int_equal(src.fs.refusal, FLOW_REFUSED_BUSY);
	(void)flow_disarm(&r.flow);
	/* No TCP. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, u), 0);
	assert_int_equal(flow_sock_insert(rig_group, &fs, u[0], FLOW_TARGET), FLOW_NOT_NOW);
	assert_int_equal(fs.refusal, FLOW_REFUSED_KERNEL);
	close(u[0]);
	close(u[1]);
	/* The peer is done sending. */
	rig_connect(&third, 0, 1);
	shutdown(third.far, SHUT_WR);
	struct pollfd p = { .fd = third.near, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 1000), 1);
	assert_int_equal(flow_sock_insert(rig_group, &third.fs, third.near, FLOW_SOURCE), FLOW_NOT_NOW);
	assert_int_equal(third.fs.refusal, FLOW_REFUSED_STATE);
	rig_hangup(&third);
	rig_hangup(&src);
	rig_hangup(&dst);
}

static void full_table_refuses_and_recovers(void **state)
{
	static struct rig_pair p[5];

	(void)state;
	RIG_NEEDED();
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 5; i++)
			rig_connect(&p[i], 0, 1);
		for (int i = 0; i < 4; i++)
			rig_insert(&p[i], FLOW_SOURCE);
		assert_int_equal(flow_sock_insert(rig_group, &p[4].fs, p[4].near, FLOW_SOURCE), FLOW_NOT_NOW);
		assert_int_equal(p[4].fs.refusal, FLOW_REFUSED_FULL);
		for (int i = 0; i < 5; i++)
			rig_hangup(&p[i]);
	}
}

static void windows_shrink_with_the_budget(void **state)
{
	static struct rig_pair src[3], dst[3];
	static struct rig_flow r[3];
	uint64_t bound = 256 << 10;

	(void)state;
	RIG_NEEDED();
	kern_set_bounds(rig_kern, 1 << 20, bound);
	for (int i = 0; i < 3; i++) {
		pair_up(&src[i], &dst[i], 4096);
		rig_arm(&r[i], &src[i], &dst[i], 20000000);
		assert_int_equal(r[i].told, FLOW_WAIT);
	}
	for (int n = 0; n < 30; n++) {
		for (int i = 0; i < 3; i++)
			rig_feed(&src[i], 20000000, 65536, 1 << 20);
		rig_turn(1);
	}
	for (int i = 0; i < 3; i++) {
		struct flow_progress p;
		flow_progress(&r[i].flow, &p);
		/* A share of the budget, and one buffer more. */
		assert_true(p.outstanding <= bound / 3 + (80 << 10));
		assert_true(p.spills > 0);
	}
	/* And no room for a fifth. */
	kern_set_bounds(rig_kern, 1 << 20, 3 * (64 << 10));
	static struct rig_pair s4, d4;
	static struct rig_flow r4;
	pair_up(&s4, &d4, 0);
	rig_arm(&r4, &s4, &d4, 1000);
	assert_int_equal(r4.told, FLOW_NOT_NOW);
	assert_int_equal(s4.fs.refusal, FLOW_REFUSED_MEMORY);
	kern_set_bounds(rig_kern, 0, 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(rig_run(&r[i], &src[i], &dst[i], 20000000, 65536, SIZE_MAX, 0), FLOW_DONE);
	for (int i = 0; i < 3; i++) {
		rig_rest(&dst[i], src[i].salt, 0, 20000000);
		rig_hangup(&src[i]);
		rig_hangup(&dst[i]);
	}
	rig_hangup(&s4);
	rig_hangup(&d4);
}

/*
 * A socket that is source and target: its peer's end arrives while redirected bytes still wait for its worker. Passed, the
 * empty buffer of that end would wait behind them and stop the worker for good.
 */
static void an_end_does_not_stop_what_is_under_way_to_it(void **state)
{
	const uint64_t total = 400000;
	static struct rig_pair src, dst;
	static struct rig_flow r, back;
	struct flow_progress p;
	int one = 1, none = 0;

	(void)state;
	RIG_NEEDED();
	rig_connect(&src, 0, 37);
	rig_connect(&dst, 32768, 0);
	rig_insert(&dst, FLOW_TARGET | FLOW_SOURCE);
	rig_insert(&src, FLOW_SOURCE | FLOW_TARGET);
	/* The worker finds no room behind the first unsent byte, which the program does not know of. */
	assert_int_equal(setsockopt(dst.near, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &one, sizeof(one)), 0);
	rig_arm(&back, &dst, &src, FLOW_UNTIL_EOF);
	rig_arm(&r, &src, &dst, total);
	uint64_t deadline = now_ns() + RIG_LIMIT_NS;
	while (src.sent < total / 2 && now_ns() < deadline) {
		rig_feed(&src, total / 2, 65536, SIZE_MAX);
		rig_turn(1);
	}
	flow_progress(&r.flow, &p);
	assert_true(p.outstanding > 0);
	shutdown(dst.far, SHUT_WR);
	rig_turn(10);
	assert_int_equal(setsockopt(dst.near, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &none, sizeof(none)), 0);
	assert_int_equal(rig_run(&r, &src, &dst, total, 65536, SIZE_MAX, 0), FLOW_DONE);
	rig_rest(&dst, src.salt, 0, total);
	rig_hint(&back);
	assert_int_equal(back.told, FLOW_DONE);
	rig_hangup(&src);
	rig_hangup(&dst);
}

static int setup(void **state)
{
	struct kern_options o = { .workers = 1, .lock_fd = -1, .max_flows = 4 };

	(void)state;
	log_set_level("error");
	return rig_open(&o);
}

static int teardown(void **state)
{
	(void)state;
	if (rig_kern)
		rig_close();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(until_eof_ends_with_the_source),
		RIG_TEST(early_end_is_told_as_such),
		RIG_TEST(reset_of_the_source_is_its_error),
		RIG_TEST(reset_of_the_target_is_its_error),
		RIG_TEST(an_end_does_not_stop_what_is_under_way_to_it),
		RIG_TEST(closing_the_source_loses_nothing_moved),
		RIG_TEST(next_target_gets_nothing_of_the_last),
		RIG_TEST(disarm_tells_what_is_under_way),
		RIG_TEST(refusals_have_reasons),
		RIG_TEST(full_table_refuses_and_recovers),
		RIG_TEST(windows_shrink_with_the_budget),
	};
	return cmocka_run_group_tests_name("kern_end", tests, setup, teardown);
}
