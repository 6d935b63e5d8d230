/* SPDX-License-Identifier: Apache-2.0 */
/* What two processes say at an upgrade: it arrives whole, and junk is refused without losing a descriptor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control/upgrade_wire.h"

static int pair[2];

static int open_pair(void **state)
{
	(void)state;
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
}

static int close_pair(void **state)
{
	(void)state;
	close(pair[0]);
	close(pair[1]);
	return 0;
}

static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void text_and_numbers_arrive(void **state)
{
	struct upgrade_message in = { .type = UPGRADE_REFUSED, .pid = 4711, .count = 3, .text = "no, because", .program = "1.2.3" };
	struct upgrade_message out;

	(void)state;
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), -EAGAIN);
	assert_int_equal(upgrade_send(pair[0], &in, NULL, 0), 0);
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), 0);
	assert_int_equal(out.type, UPGRADE_REFUSED);
	assert_int_equal(out.version, UPGRADE_VERSION);
	assert_int_equal(out.pid, 4711);
	assert_int_equal(out.count, 3);
	assert_string_equal(out.text, "no, because");
	assert_string_equal(out.program, "1.2.3");
	close(pair[0]);
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), 1);
	pair[0] = dup(pair[1]);
}

/* A last word is heard though its sender never read what we sent. */
static void a_refusal_is_read_after_a_reset(void **state)
{
	struct upgrade_message hello = { .type = UPGRADE_HELLO }, no = { .type = UPGRADE_REFUSED, .text = "busy" }, out;

	(void)state;
	assert_int_equal(upgrade_send(pair[1], &hello, NULL, 0), 0);
	assert_int_equal(upgrade_send(pair[0], &no, NULL, 0), 0);
	close(pair[0]);
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), 0);
	assert_string_equal(out.text, "busy");
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), 1);
	pair[0] = dup(pair[1]);
}

static void sockets_arrive_in_batches_with_their_names(void **state)
{
	struct upgrade_message m = { .type = UPGRADE_SOCKETS }, out;
	struct handed set = HANDED_INIT, got = HANDED_INIT;
	unsigned before;

	(void)state;
	for (unsigned i = 0; i < 150; i++) {
		char name[32];

		snprintf(name, sizeof(name), "127.0.0.1:%u", i);
		assert_int_equal(handed_add(&set, dup(0), HANDED_LISTENER, i % 2, name), 0);
	}
	before = count_fds();
	for (size_t at = 0; at < set.n; at += UPGRADE_BATCH) {
		size_t n = MIN_OF(set.n - at, UPGRADE_BATCH);

		assert_int_equal(upgrade_send(pair[0], &m, set.v + at, n), 0);
		assert_int_equal(upgrade_receive(pair[1], &out, &got), 0);
	}
	assert_int_equal(got.n, 150);
	assert_int_equal(count_fds(), before + 150);
	for (unsigned i = 0; i < 150; i++) {
		assert_string_equal(got.v[i].name, set.v[i].name);
		assert_int_equal(got.v[i].kind, HANDED_LISTENER);
		assert_int_equal(got.v[i].flags, i % 2);
		assert_true(got.v[i].fd >= 0);
	}
	handed_deinit(&got);
	assert_int_equal(count_fds(), before);
	handed_deinit(&set);
}

static void sockets_that_are_not_wanted_are_closed(void **state)
{
	struct upgrade_message m = { .type = UPGRADE_SOCKETS }, out;
	struct handed_fd v = { .fd = 0, .kind = HANDED_LISTENER, .name = "x" };
	unsigned before = count_fds();

	(void)state;
	assert_int_equal(upgrade_send(pair[0], &m, &v, 1), 0);
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), -EPROTO);
	assert_int_equal(count_fds(), before);
}

/* header: magic "sluc", version, type; attribute: type, length. */
#define HEADER "sluc\1\0\1\0"

static void junk_is_refused_and_what_is_new_is_passed_over(void **state)
{
	static const struct {
		const char *name, *bytes;
		size_t n;
		int want;
	} cases[] = {
		{ "one byte", "x", 1, -EPROTO },
		{ "other magic", "SLUC\1\0\1\0", 8, -EPROTO },
		{ "version 0", "sluc\0\0\1\0", 8, -EPROTO },
		{ "a later version", "sluc\7\0\1\0", 8, 0 },
		{ "an unknown message", "sluc\1\0\377\0", 8, 0 },
		{ "nothing but a header", HEADER, 8, 0 },
		{ "half an attribute", HEADER "\1\0", 10, -EPROTO },
		{ "an attribute beyond the end", HEADER "\3\0\377\377xx", 14, -EPROTO },
		{ "a pid of two bytes", HEADER "\1\0\2\0xx\0\0", 16, -EPROTO },
		{ "an unknown attribute", HEADER "\143\0\4\0abcd", 16, 0 },
		{ "one that must be known", HEADER "\143\200\4\0abcd", 16, -EPROTO },
		{ "a socket without a descriptor", HEADER "\5\0\4\0\1\0\0\0", 16, -EPROTO },
		{ "a socket cut short", HEADER "\5\0\2\0\1\0\0\0", 16, -EPROTO },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct upgrade_message out;
		struct handed set = HANDED_INIT;
		int r;

		assert_int_equal(send(pair[0], cases[i].bytes, cases[i].n, 0), cases[i].n);
		r = upgrade_receive(pair[1], &out, &set);
		if (r != cases[i].want)
			fail_msg("%s: %d, not %d", cases[i].name, r, cases[i].want);
		assert_int_equal(set.n, 0);
		handed_deinit(&set);
	}
}

static void control_characters_do_not_reach_the_log(void **state)
{
	struct upgrade_message in = { .type = UPGRADE_FAILED, .text = "a\nlevel=error\033[2J" }, out;

	(void)state;
	assert_int_equal(upgrade_send(pair[0], &in, NULL, 0), 0);
	assert_int_equal(upgrade_receive(pair[1], &out, NULL), 0);
	assert_string_equal(out.text, "a level=error [2J");
}

static void listeners_are_found_by_address_or_by_name(void **state)
{
	struct sock_addr any = { 0 }, bound, other;
	struct handed set = HANDED_INIT;
	unsigned flags = 0;
	int fd;

	(void)state;
	assert_int_equal(sock_parse(&any, "127.0.0.1:0"), 0);
	for (unsigned i = 0; i < 3; i++) {
		fd = sock_listen(&any, 1, false);
		assert_true(fd >= 0);
		assert_int_equal(handed_add(&set, fd, HANDED_LISTENER, i, i == 1 ? "127.0.0.1:0" : ""), 0);
		if (i == 2)
			assert_int_equal(sock_local(fd, &bound), 0);
	}
	assert_int_equal(sock_parse(&other, "127.0.0.1:1"), 0);
	assert_int_equal(handed_take_listener(&set, &other, "127.0.0.1:1", &flags), -1);
	fd = handed_take_listener(&set, &bound, "no such name", &flags);
	assert_true(fd >= 0);
	assert_int_equal(flags, 2);
	close(fd);
	fd = handed_take_listener(&set, &any, "127.0.0.1:0", &flags);
	assert_true(fd >= 0);
	assert_int_equal(flags, 1);
	close(fd);
	assert_int_equal(handed_take_listener(&set, &any, "127.0.0.1:0", &flags), -1);
	assert_int_equal(handed_take(&set, HANDED_PIN_LOCK, NULL), -1);
	handed_deinit(&set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(text_and_numbers_arrive, open_pair, close_pair),
		cmocka_unit_test_setup_teardown(a_refusal_is_read_after_a_reset, open_pair, close_pair),
		cmocka_unit_test_setup_teardown(sockets_arrive_in_batches_with_their_names, open_pair, close_pair),
		cmocka_unit_test_setup_teardown(sockets_that_are_not_wanted_are_closed, open_pair, close_pair),
		cmocka_unit_test_setup_teardown(junk_is_refused_and_what_is_new_is_passed_over, open_pair, close_pair),
		cmocka_unit_test_setup_teardown(control_characters_do_not_reach_the_log, open_pair, close_pair),
		cmocka_unit_test(listeners_are_found_by_address_or_by_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
