/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of running upstreams share: configurations from text, ports
 * that refuse or accept, and the log as the event to wait for. The log goes
 * into a FIFO that the test reads; nothing here waits for time to pass, the
 * deadline is only there to end a test that failed.
 */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/sock.h"
#include "lb/lb.h"

#define WAIT_MS 20000

static int log_fifo = -1;
static char log_lines[65536];
static size_t log_have;

static void log_capture(void)
{
	char dir[] = "/tmp/sluice_lb_XXXXXX", path[64];

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/log", dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	log_fifo = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	assert_true(log_fifo >= 0);
	assert_int_equal(log_open(path), 0);
	assert_int_equal(log_set_level("debug"), 0);
	unlink(path);
	rmdir(dir);
	signal(SIGPIPE, SIG_IGN);
}

/* Forgets what was logged so far. As a setup function it keeps the lines of one test out of the next. */
static _unused_ int log_forget(void **state)
{
	(void)state;
	while (read(log_fifo, log_lines, sizeof(log_lines)) > 0)
		;
	log_have = 0;
	return 0;
}

/* The next line of the log, without its end; false when there is none within the time. */
static bool log_next(char *line, size_t cap, int timeout_ms)
{
	for (;;) {
		char *end = memchr(log_lines, '\n', log_have);
		struct pollfd p = { .fd = log_fifo, .events = POLLIN };
		ssize_t n;

		if (end) {
			size_t len = (size_t)(end - log_lines);

			snprintf(line, cap, "%.*s", (int)len, log_lines);
			log_have -= len + 1;
			memmove(log_lines, end + 1, log_have);
			return true;
		}
		if (poll(&p, 1, timeout_ms) <= 0)
			return false;
		n = read(log_fifo, log_lines + log_have, sizeof(log_lines) - log_have);
		if (n > 0)
			log_have += (size_t)n;
	}
}

/* Reads on until a line holds all of the given texts; one that holds `never` on the way is a failure. */
static void log_await_but(const char *never, const char *a, const char *b)
{
	char line[2048];

	while (log_next(line, sizeof(line), WAIT_MS)) {
		if (strstr(line, a) && strstr(line, b))
			return;
		if (never && strstr(line, never))
			fail_msg("waiting for %s %s came: %s", a, b, line);
	}
	fail_msg("no line with %s and %s", a, b);
}

static _unused_ void log_await(const char *a, const char *b)
{
	log_await_but(NULL, a, b);
}

/* A TCP port of 127.0.0.1 that refuses connections and stays ours; listen() on the descriptor makes it accept. */
static int port_refusing(unsigned *port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sock_addr a;

	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(sock_local(fd, &a), 0);
	*port = sock_port(&a);
	return fd;
}

static _unused_ int port_accepting(unsigned *port)
{
	int fd = port_refusing(port);

	assert_int_equal(listen(fd, 64), 0);
	return fd;
}

_printf_(1, 2) static const struct conf *conf_text(const char *fmt, ...)
{
	char text[8192];
	struct buf errors = BUF_INIT;
	struct conf *c = NULL;
	va_list ap;
	int n, r;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	r = conf_load_buffer(&c, "test.yaml", text, (size_t)n, &errors);
	if (r != 0)
		fail_msg("configuration: %.*s", (int)errors.len, errors.p ? buf_data(&errors) : "");
	buf_deinit(&errors);
	return c;
}

static _unused_ struct backend *find(struct lb *lb, const char *name)
{
	struct backend *b = NULL;

	if (lb_find_backend(lb, str_from(name), &b) != 0)
		fail_msg("no backend %s", name);
	return b;
}

static _unused_ uint32_t state_of(struct lb *lb, const char *name)
{
	struct backend *b = find(lb, name);
	uint32_t state = backend_state(b);

	backend_unref(b);
	return state;
}
