/* SPDX-License-Identifier: Apache-2.0 */
/* What the service manager hears, over path and abstract sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/names.h"
#include "control/notify.h"

static int manager = -1;
static char heard_text[1024];

/* name as in $NOTIFY_SOCKET */
static void manager_listen(const char *name)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	size_t n = strlen(name);

	memcpy(a.sun_path, name, n);
	if (name[0] == '@')
		a.sun_path[0] = 0;
	manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(manager, (struct sockaddr *)&a,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (name[0] == '/'))),
			 0);
	setenv("NOTIFY_SOCKET", name, 1);
	notify_init();
}

static const char *heard(void)
{
	ssize_t n = recv(manager, heard_text, sizeof(heard_text) - 1, 0);

	if (n < 0)
		return NULL;
	heard_text[n] = 0;
	return heard_text;
}

static int silence(void **state _unused_)
{
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	unsetenv("WATCHDOG_PID");
	if (manager >= 0)
		close(manager);
	manager = -1;
	notify_init();
	return 0;
}

static void states_are_told(void **state _unused_)
{
	char name[2][64];

	snprintf(name[0], sizeof(name[0]), "/tmp/sluice-notify-%d", (int)getpid());
	snprintf(name[1], sizeof(name[1]), "@sluice-notify-%d", (int)getpid());
	for (int i = 0; i < 2; i++) {
		unsigned long long usec, before = now_ns() / 1000;

		manager_listen(name[i]);
		notify_ready(NULL);
		assert_string_equal(heard(), "READY=1");
		notify_ready("serving\non 1");
		assert_string_equal(heard(), "READY=1\nSTATUS=serving on 1");
		notify_reloading();
		assert_int_equal(sscanf(heard(), "RELOADING=1\nMONOTONIC_USEC=%llu", &usec), 1);
		assert_in_range(usec, before, now_ns() / 1000);
		notify_stopping();
		assert_string_equal(heard(), "STOPPING=1");
		notify_status("%d of %s", 3, "a\nREADY=1");
		assert_string_equal(heard(), "STATUS=3 of a READY=1");
		notify_main_pid(77);
		assert_string_equal(heard(), "MAINPID=77");
		assert_null(heard());
		unlink(name[i]);
		silence(NULL);
	}
}

static void without_a_manager_nothing_happens(void **state _unused_)
{
	static const char *const wrong[] = { "", "@", "relative", "/tmp/sluice-nobody-listens-here" };

	notify_ready("x");
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		setenv("NOTIFY_SOCKET", wrong[i], 1);
		setenv("WATCHDOG_USEC", i < 3 ? "1000" : "", 1);
		notify_init();
		notify_ready("x");
		notify_watchdog();
		assert_int_equal(notify_watchdog_interval(), 0);
	}
}

static void the_watchdog_is_fed_at_half_its_time(void **state _unused_)
{
	char name[64], pid[16];

	snprintf(name, sizeof(name), "@sluice-watchdog-%d", (int)getpid());
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("WATCHDOG_USEC", "3000000", 1);
	setenv("WATCHDOG_PID", pid, 1);
	manager_listen(name);
	assert_true(notify_watchdog_interval() == 1500 * NS_PER_MS);
	notify_watchdog();
	assert_string_equal(heard(), "WATCHDOG=1");
	setenv("WATCHDOG_PID", "1", 1); /* meant for another process */
	notify_init();
	assert_int_equal(notify_watchdog_interval(), 0);
	notify_watchdog();
	assert_null(heard());
}

static void names_have_distances(void **state _unused_)
{
	static const struct {
		const char *a, *b;
		size_t d;
	} rows[] = {
		{ "", "", 0 },		  { "", "abc", 3 },	  { "drain", "drain", 0 },
		{ "drian", "drain", 2 },  { "drai", "drain", 1 }, { "weigth", "weight", 2 },
		{ "kitten", "sitting", 3 },
	};
	char big[NAME_MAX_BYTES + 2];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_int_equal(name_distance(rows[i].a, rows[i].b), rows[i].d);
		assert_int_equal(name_distance(rows[i].b, rows[i].a), rows[i].d);
	}
	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = 0;
	assert_true(name_distance(big, "x") == SIZE_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(states_are_told, silence),
		cmocka_unit_test_teardown(without_a_manager_nothing_happens, silence),
		cmocka_unit_test_teardown(the_watchdog_is_fed_at_half_its_time, silence),
		cmocka_unit_test(names_have_distances),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
