/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies moved by the kernel: the bytes are right, their number is exact, and a slow reader is bounded. */
#include "kern_rig.h"

/* One body over fresh connections; `early` of it arrives before the arming, `behind` follows it. */
static void move_one(uint64_t body, uint64_t early, uint64_t behind, size_t chunk, size_t bite)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;
	char buf[256], want[256];
	ssize_t n = 0;

	rig_connect(&src, 0, body + early + 1);
	rig_connect(&dst, 0, 0);
	rig_insert(&dst, FLOW_TARGET);
	rig_insert(&src, FLOW_SOURCE);
	rig_feed(&src, MIN_OF(early, body + behind), chunk, SIZE_MAX);
	rig_arm(&r, &src, &dst, body);
	assert_int_equal(rig_run(&r, &src, &dst, body + behind, chunk, bite, 0), FLOW_DONE);
	rig_feed(&src, body + behind, chunk, SIZE_MAX);
	rig_rest(&dst, src.salt, 0, body);
	/* What is behind the body is the source's, every byte of it. */
	for (uint64_t at = 0; at < behind; at += (uint64_t)n) {
		struct pollfd p = { .fd = src.near, .events = POLLIN };
		(void)poll(&p, 1, 1000);
		n = recv(src.near, buf, sizeof(buf), 0);
		assert_true(n > 0);
		rig_fill(want, (size_t)n, body + at, src.salt);
		assert_memory_equal(buf, want, (size_t)n);
	}
	assert_int_equal(recv(src.near, buf, 1, 0), -1);
	rig_hangup(&src);
	rig_hangup(&dst);
}

static void length_is_exact(void **state)
{
	static const uint64_t sizes[] = { 0, 1, 2, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 1 << 20, (1 << 20) + 1, 5000001 };
	static const uint64_t behind[] = { 0, 1, 200 };

	(void)state;
	RIG_NEEDED();
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		for (size_t j = 0; j < ARRAY_SIZE(behind); j++) {
			move_one(sizes[i], 0, behind[j], 65536, SIZE_MAX);
			move_one(sizes[i], 1000, behind[j], 1460, SIZE_MAX);
			move_one(sizes[i], sizes[i] + behind[j], behind[j], 40000, 30000);
		}
}

static void bytes_are_redirected(void **state)
{
	uint64_t before, pumped;

	(void)state;
	RIG_NEEDED();
	before = rig_counters()->verdict_redirect_bytes;
	pumped = rig_counters()->flow_pump_bytes;
	move_one(64 << 20, 0, 0, 65536, SIZE_MAX);
	before = rig_counters()->verdict_redirect_bytes - before;
	pumped = rig_counters()->flow_pump_bytes - pumped;
	assert_int_equal(before + pumped, 64 << 20);
	assert_true(before > (64 << 20) / 8);
}

static uint64_t mem_available_kib(void)
{
	char line[128];
	uint64_t kib = 0;
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %lu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib;
}

/* A client that stops reading holds the sender, not the memory; when it goes on, all arrives. */
static void stalled_reader_is_bounded(void **state)
{
	uint64_t body = 200 << 20, held, before, after, redirected = rig_kern ? rig_counters()->verdict_redirect_bytes : 0;
	static struct rig_pair src, dst;
	static struct rig_flow r;

	(void)state;
	RIG_NEEDED();
	rig_connect(&src, 0, 7);
	rig_connect(&dst, 64 << 10, 0);
	rig_insert(&dst, FLOW_TARGET);
	rig_insert(&src, FLOW_SOURCE);
	before = mem_available_kib();
	rig_arm(&r, &src, &dst, body);
	/* Until nothing more goes in: ten looks of 20 ms without progress. */
	for (int idle = 0; idle < 10; idle++) {
		uint64_t was = src.sent;
		rig_feed(&src, body, 65536, SIZE_MAX);
		rig_turn(20);
		if (src.sent != was)
			idle = 0;
	}
	held = src.sent;
	after = mem_available_kib();
	/* The window (1 MiB), a buffer over it, and the buffers of three sockets, one of them autotuned to 4 MiB. */
	assert_true(held < 10 << 20);
	assert_true(before < after || before - after < 64 << 10);
	assert_true(r.flow.spills > 0);
	assert_int_equal(rig_run(&r, &src, &dst, body, 65536, SIZE_MAX, 0), FLOW_DONE);
	rig_rest(&dst, src.salt, 0, body);
	/* Back from the brake the kernel moves again. */
	assert_true(rig_counters()->verdict_redirect_bytes - redirected > body / 8);
	rig_hangup(&src);
	rig_hangup(&dst);
}

/* Many small buffers take far more memory than they hold bytes: the window counts the memory. */
static void tiny_buffers_count_as_memory(void **state)
{
	uint64_t body = 64 << 20;
	static struct rig_pair src, dst;
	static struct rig_flow r;
	struct flow_progress p;

	(void)state;
	RIG_NEEDED();
	rig_connect(&src, 0, 9);
	rig_connect(&dst, 4096, 0);
	rig_insert(&dst, FLOW_TARGET);
	rig_insert(&src, FLOW_SOURCE);
	rig_arm(&r, &src, &dst, body);
	for (int i = 0; i < 30000; i++)
		rig_feed(&src, body, 7, 7);
	rig_turn(5);
	flow_progress(&r.flow, &p);
	assert_true(p.outstanding <= 1 << 20);
	assert_int_equal(rig_run(&r, &src, &dst, body, 65536, SIZE_MAX, 0), FLOW_DONE);
	rig_rest(&dst, src.salt, 0, body);
	rig_hangup(&src);
	rig_hangup(&dst);
}

/* One source serves many bodies for changing targets, as a kept-alive backend connection does. */
static void source_is_armed_again_for_another_target(void **state)
{
	static struct rig_pair src, dst[3];
	uint64_t start = 0, seed = 11;

	(void)state;
	RIG_NEEDED();
	rig_connect(&src, 0, 5);
	rig_insert(&src, FLOW_SOURCE);
	for (size_t i = 0; i < 3; i++) {
		rig_connect(&dst[i], 0, 0);
		rig_insert(&dst[i], FLOW_TARGET);
	}
	for (int i = 0; i < 60; i++) {
		struct rig_pair *d = &dst[i % 3];
		uint64_t body = 1 + rand_next(&seed) % 400000;
		static struct rig_flow r;
		char head[16];
		d->got = 0;
		/* A head that user space reads itself, then the body, partly there already. */
		rig_feed(&src, start + 16 + body / 3, 65536, SIZE_MAX);
		while (recv(src.near, head, 16, MSG_PEEK) < 16)
			;
		assert_int_equal(recv(src.near, head, 16, 0), 16);
		start += 16;
		rig_arm(&r, &src, d, body);
		assert_int_equal(rig_run(&r, &src, d, start + body, 65536, SIZE_MAX, start), FLOW_DONE);
		rig_rest(d, src.salt, start, body);
		start += body;
	}
	rig_hangup(&src);
	for (size_t i = 0; i < 3; i++)
		rig_hangup(&dst[i]);
}

/* Both directions of a tunnel at once, each socket source and target. */
static void both_directions_run_at_once(void **state)
{
	uint64_t body = 40 << 20, seed = 3, deadline;
	static struct rig_pair a, b;
	static struct rig_flow ab, ba;

	(void)state;
	RIG_NEEDED();
	rig_connect(&a, 0, 21);
	rig_connect(&b, 0, 22);
	rig_insert(&a, FLOW_TARGET | FLOW_SOURCE);
	rig_insert(&b, FLOW_TARGET | FLOW_SOURCE);
	rig_arm(&ab, &a, &b, FLOW_UNTIL_EOF);
	rig_arm(&ba, &b, &a, FLOW_UNTIL_EOF);
	deadline = now_ns() + RIG_LIMIT_NS;
	while ((a.got < body || b.got < body) && now_ns() < deadline) {
		rig_feed(&a, body, 1 + rand_next(&seed) % 65536, rand_next(&seed) % 300000);
		rig_feed(&b, body, 1 + rand_next(&seed) % 65536, rand_next(&seed) % 300000);
		rig_take(&b, a.salt, 0, rand_next(&seed) % 400000);
		rig_take(&a, b.salt, 0, rand_next(&seed) % 400000);
		rig_turn(0);
	}
	assert_int_equal(a.got, body);
	assert_int_equal(b.got, body);
	shutdown(a.far, SHUT_WR);
	shutdown(b.far, SHUT_WR);
	while ((ab.told == FLOW_WAIT || ba.told == FLOW_WAIT) && now_ns() < deadline) {
		rig_hint(&ab);
		rig_hint(&ba);
		rig_turn(1);
	}
	assert_int_equal(ab.told, FLOW_DONE);
	assert_int_equal(ba.told, FLOW_DONE);
	rig_hangup(&a);
	rig_hangup(&b);
}

/* Anything in any order; SLUICE_SEED repeats a run. */
static void random_transfers_are_exact(void **state)
{
	const char *given = getenv("SLUICE_SEED"), *count = getenv("SLUICE_ROUNDS");
	uint64_t seed = given ? strtoull(given, NULL, 0) : now_ns() | 1;
	int rounds = count ? atoi(count) : 1500;

	(void)state;
	RIG_NEEDED();
	print_message("SLUICE_SEED=%llu\n", (unsigned long long)seed);
	for (int i = 0; i < rounds; i++) {
		uint64_t body = rand_next(&seed) % (rand_next(&seed) % 8 == 0 ? 3000000 : 150000);
		uint64_t early = rand_next(&seed) % 3 ? 0 : rand_next(&seed) % (body + 10);
		uint64_t behind = rand_next(&seed) % 3 ? 0 : rand_next(&seed) % 3000;
		size_t chunk = 1 + rand_next(&seed) % (rand_next(&seed) % 2 ? 65536 : 3000);
		size_t bite = rand_next(&seed) % 3 ? SIZE_MAX : 1 + rand_next(&seed) % 100000;
		move_one(body, early, behind, chunk, bite);
	}
}

static int setup(void **state)
{
	struct kern_options o = { .workers = 1, .lock_fd = -1, .max_flows = 64 };

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
		RIG_TEST(length_is_exact),
		RIG_TEST(bytes_are_redirected),
		RIG_TEST(stalled_reader_is_bounded),
		RIG_TEST(tiny_buffers_count_as_memory),
		RIG_TEST(source_is_armed_again_for_another_target),
		RIG_TEST(both_directions_run_at_once),
		RIG_TEST(random_transfers_are_exact),
	};
	return cmocka_run_group_tests_name("kern_flow", tests, setup, teardown);
}
