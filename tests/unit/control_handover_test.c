/* SPDX-License-Identifier: Apache-2.0 */
/* The process that serves, against new ones that do what they should not: it goes on, says so, and can be asked again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "control/upgrade.h"
#include "control/upgrade_wire.h"

static char path[64];
static struct loop *loop;
static struct upgrade *u;
static unsigned collected, readied, handed_over, failed;

static int on_collect(void *ctx, struct handed *set)
{
	(void)ctx;
	collected++;
	return handed_add(set, STDIN_FILENO, HANDED_PIN_LOCK, 0, "x");
}

static void on_ready(void *ctx)
{
	(void)ctx;
	readied++;
}

static void on_handed_over(void *ctx, pid_t pid)
{
	(void)ctx;
	assert_int_equal(pid, 4711);
	handed_over++;
}

static void on_failed(void *ctx)
{
	(void)ctx;
	failed++;
}

static int set_up_with(uint32_t start_ms)
{
	struct upgrade_hooks hooks = { on_collect, on_ready, on_handed_over, on_failed, NULL, start_ms };
	char err[256] = "";

	collected = readied = handed_over = failed = 0;
	snprintf(path, sizeof(path), "/tmp/sluice-handover-%d", (int)getpid());
	assert_int_equal(loop_new(&loop), 0);
	assert_int_equal(upgrade_new(&u, path, -1, err, sizeof(err)), 0);
	return upgrade_start(u, loop, &hooks);
}

static int set_up(void **state)
{
	(void)state;
	return set_up_with(0);
}

static int set_up_impatient(void **state)
{
	(void)state;
	return set_up_with(1);
}

static int tear_down(void **state)
{
	(void)state;
	upgrade_stop(&u);
	loop_free(loop);
	return access(path, F_OK) == 0;
}

/* What is there to do now. */
static void turns(void)
{
	for (unsigned i = 0; i < 4; i++)
		assert_true(loop_turn(loop, 0) >= 0);
}

static int connect_to_it(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	memcpy(un.sun_path, path, strlen(path) + 1);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	turns();
	return fd;
}

static void expect(int fd, unsigned type)
{
	struct upgrade_message m;
	struct handed set = HANDED_INIT;

	assert_int_equal(upgrade_receive(fd, &m, &set), 0);
	assert_int_equal(m.type, type);
	handed_deinit(&set);
}

static int new_process(void)
{
	int fd = connect_to_it();

	expect(fd, UPGRADE_HERE);
	return fd;
}

static void say(int fd, unsigned type)
{
	struct upgrade_message m = { .type = (uint16_t)type, .pid = 4711 };

	assert_int_equal(upgrade_send(fd, &m, NULL, 0), 0);
	turns();
}

static void expect_end(int fd)
{
	struct upgrade_message m;

	assert_int_equal(upgrade_receive(fd, &m, NULL), 1);
	close(fd);
}

static void ask(int want)
{
	struct buf answer = BUF_INIT;

	assert_int_equal(upgrade_ask(u, &answer), want);
	assert_true(answer.len > 0);
	buf_deinit(&answer);
	turns();
}

/* A whole one, as far as GO or further. */
static int up_to_go(void)
{
	int fd;

	ask(0);
	fd = new_process();
	say(fd, UPGRADE_HELLO);
	expect(fd, UPGRADE_SOCKETS);
	expect(fd, UPGRADE_OFFERED);
	assert_true(upgrade_busy(u));
	say(fd, UPGRADE_READY);
	expect(fd, UPGRADE_GO);
	assert_true(upgrade_committed(u));
	return fd;
}

static void whole(void)
{
	unsigned before = failed;
	int fd = up_to_go();

	assert_int_equal(handed_over, 0);
	say(fd, UPGRADE_SERVING);
	assert_int_equal(handed_over, 1);
	assert_int_equal(failed, before);
	expect_end(fd);
}

static void the_order_of_messages_is_kept(void **state)
{
	(void)state;
	whole();
	assert_int_equal(collected, 1);
	assert_int_equal(readied, 1);
	/* The file is the next one's. */
	assert_int_equal(unlink(path), 0);
}

static void a_new_process_that_is_not_ready_in_time_is_told(void **state)
{
	int fd;

	(void)state;
	ask(0);
	fd = new_process();
	say(fd, UPGRADE_HELLO);
	while (!failed)
		turns();
	expect(fd, UPGRADE_SOCKETS);
	expect(fd, UPGRADE_OFFERED);
	expect(fd, UPGRADE_REFUSED);
	expect_end(fd);
	assert_false(upgrade_busy(u));
	ask(0);
}

static void out_of_order_is_refused(void **state)
{
	static const unsigned early[] = { UPGRADE_READY, UPGRADE_SERVING };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(early); i++) {
		int fd = new_process();

		say(fd, early[i]);
		expect(fd, UPGRADE_REFUSED);
		expect_end(fd);
		assert_int_equal(failed, 0);
	}
	for (unsigned i = 1; i <= 2; i++) {
		int fd;

		ask(0);
		fd = new_process();
		say(fd, UPGRADE_HELLO);
		say(fd, i == 1 ? UPGRADE_SERVING : UPGRADE_HELLO);
		expect(fd, UPGRADE_SOCKETS);
		expect(fd, UPGRADE_OFFERED);
		expect(fd, UPGRADE_REFUSED);
		expect_end(fd);
		assert_int_equal(failed, i);
	}
	whole();
	unlink(path);
}

static void messages_of_a_later_version_are_passed_over(void **state)
{
	int fd;

	(void)state;
	ask(0);
	fd = new_process();
	say(fd, 77);
	say(fd, UPGRADE_HELLO);
	expect(fd, UPGRADE_SOCKETS);
	expect(fd, UPGRADE_OFFERED);
	say(fd, 78);
	say(fd, UPGRADE_READY);
	expect(fd, UPGRADE_GO);
	say(fd, 79);
	say(fd, UPGRADE_SERVING);
	assert_int_equal(handed_over, 1);
	expect_end(fd);
	unlink(path);
}

static void a_second_one_is_refused_and_the_first_goes_on(void **state)
{
	int first, second;

	(void)state;
	first = new_process();
	say(first, UPGRADE_HELLO);
	expect(first, UPGRADE_WAIT);
	second = connect_to_it();
	expect(second, UPGRADE_REFUSED);
	expect_end(second);
	ask(0);
	ask(-EALREADY);
	expect(first, UPGRADE_SOCKETS);
	expect(first, UPGRADE_OFFERED);
	second = connect_to_it();
	expect(second, UPGRADE_REFUSED);
	expect_end(second);
	say(first, UPGRADE_READY);
	expect(first, UPGRADE_GO);
	say(first, UPGRADE_SERVING);
	assert_int_equal(handed_over, 1);
	expect_end(first);
	unlink(path);
}

static void one_that_goes_away_at_any_step_changes_nothing(void **state)
{
	int fd;

	(void)state;
	close(new_process());
	turns();
	fd = new_process();
	say(fd, UPGRADE_HELLO);
	close(fd);
	turns();
	assert_int_equal(failed, 0);
	ask(0);
	fd = new_process();
	say(fd, UPGRADE_HELLO);
	close(fd);
	turns();
	assert_int_equal(failed, 1);
	close(up_to_go());
	turns();
	assert_int_equal(failed, 2);
	assert_int_equal(handed_over, 0);
	whole();
	unlink(path);
}

static void one_that_gives_up_says_why(void **state)
{
	struct upgrade_message m = { .type = UPGRADE_FAILED, .pid = 4711, .text = "no room" };
	int fd;

	(void)state;
	ask(0);
	fd = new_process();
	say(fd, UPGRADE_HELLO);
	assert_int_equal(upgrade_send(fd, &m, NULL, 0), 0);
	turns();
	assert_int_equal(failed, 1);
	close(fd);
	whole();
	unlink(path);
}

static void the_file_is_for_its_owner_alone_and_a_stale_one_is_replaced(void **state)
{
	struct stat st;
	struct upgrade *second = NULL;
	char err[256] = "";

	(void)state;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(upgrade_new(&second, path, -1, err, sizeof(err)), -EADDRINUSE);
	assert_non_null(strstr(err, "-u"));
	upgrade_disown(u);
	upgrade_stop(&u);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(upgrade_new(&u, path, -1, err, sizeof(err)), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(the_order_of_messages_is_kept, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_new_process_that_is_not_ready_in_time_is_told, set_up_impatient, tear_down),
		cmocka_unit_test_setup_teardown(out_of_order_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(messages_of_a_later_version_are_passed_over, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_second_one_is_refused_and_the_first_goes_on, set_up, tear_down),
		cmocka_unit_test_setup_teardown(one_that_goes_away_at_any_step_changes_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(one_that_gives_up_says_why, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_file_is_for_its_owner_alone_and_a_stale_one_is_replaced, set_up, tear_down),
	};

	log_level_max = LOG_LEVEL_ERROR;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
