/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A control room to test: real configuration, load balancing, loop and
 * sockets; the proxy and the kernel are stood in for by what follows. One
 * test program includes this once.
 */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control/control_inner.h"
#include "io/sock.h"

#define PATIENCE (10 * NS_PER_S)

struct fixture {
	char dir[64];
	struct conf *conf;
	struct lb *lb;
	struct loop *loop;
	struct control *control;
	char sock[96], other_sock[96];
};

static struct fixture fix;
static bool stub_draining;
static struct sluice_counters stub_counters;

/* ---- in place of the proxy and the kernel ---- */

unsigned proxy_workers(const struct proxy *p _unused_)
{
	return 2;
}
unsigned proxy_sessions(const struct proxy *p _unused_)
{
	return 7;
}
unsigned proxy_idle_upstreams(const struct proxy *p _unused_)
{
	return 3;
}
const struct conf *proxy_conf(const struct proxy *p _unused_)
{
	return fix.conf;
}
struct kern *proxy_kern(const struct proxy *p _unused_)
{
	return (struct kern *)&stub_counters;
}
struct lb *proxy_lb(const struct proxy *p _unused_)
{
	return fix.lb;
}
bool proxy_draining(const struct proxy *p _unused_)
{
	return stub_draining;
}
const char *proxy_listener_text(const struct proxy *p _unused_, unsigned i _unused_)
{
	return "127.0.0.1:6188";
}
void proxy_listener_counts(const struct proxy *p _unused_, unsigned i _unused_, unsigned *open, uint64_t *accepted)
{
	*open = 7;
	*accepted = 70;
}
const struct kern_features *kern_features(const struct kern *k _unused_)
{
	static const struct kern_features none = { .reason_sockmap = "no CAP_BPF" };

	return &none;
}
void kern_counters_sum(struct kern *k _unused_, struct sluice_counters *out)
{
	*out = stub_counters;
}
uint64_t kern_outstanding(struct kern *k _unused_)
{
	return 4096;
}
struct sluice_health *kern_health(struct kern *k _unused_, unsigned *n)
{
	*n = 0;
	return NULL;
}

/* ---- set up ---- */

static _unused_ struct conf *fixture_conf(const char *http, const char *socket)
{
	struct buf text = BUF_INIT, errors = BUF_INIT;
	struct conf *c;

	assert_int_equal(buf_printf(&text,
				    "version: 1\n"
				    "admin: {http: \"%s\", socket: %s}\n"
				    "listeners:\n"
				    "  - address: 127.0.0.1:6188\n"
				    "    routes: [{upstream: one}]\n"
				    "upstreams:\n"
				    "  one:\n"
				    "    servers:\n"
				    "      - {address: \"127.0.0.1:9\", weight: 3}\n"
				    "      - {address: \"127.0.0.2:9\"}\n"
				    "  two:\n"
				    "    servers:\n"
				    "      - {address: \"127.0.0.2:9\"}\n",
				    http, socket),
			 0);
	if (conf_load_buffer(&c, "test.yaml", buf_data(&text), text.len, &errors) != 0)
		fail_msg("%.*s", (int)errors.len, buf_data(&errors));
	buf_deinit(&text);
	buf_deinit(&errors);
	return c;
}

static _unused_ int fixture_setup(void **state _unused_)
{
	char err[256] = "";

	memset(&fix, 0, sizeof(fix));
	memset(&stub_counters, 0, sizeof(stub_counters));
	stub_draining = false;
	strcpy(fix.dir, "/tmp/sluice-control-XXXXXX");
	assert_non_null(mkdtemp(fix.dir));
	snprintf(fix.sock, sizeof(fix.sock), "%s/admin.sock", fix.dir);
	snprintf(fix.other_sock, sizeof(fix.other_sock), "%s/other.sock", fix.dir);
	fix.conf = fixture_conf("127.0.0.1:0", fix.sock);
	assert_int_equal(loop_new(&fix.loop), 0);
	assert_int_equal(lb_start(&fix.lb, fix.conf, NULL), 0);
	if (control_open(&fix.control, fix.conf, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	assert_int_equal(control_start(fix.control, fix.loop, NULL), 0);
	return 0;
}

static _unused_ int fixture_teardown(void **state _unused_)
{
	control_stop(&fix.control);
	loop_turn(fix.loop, 0);
	lb_stop(&fix.lb);
	loop_free(fix.loop);
	conf_unref(fix.conf);
	unlink(fix.sock);
	unlink(fix.other_sock);
	assert_int_equal(rmdir(fix.dir), 0);
	return 0;
}

/* ---- a client in the same thread: the loop turns while it waits ---- */

static _unused_ int client_connect(const char *address)
{
	struct sock_addr a;
	bool in_progress;
	int fd;

	assert_int_equal(sock_parse(&a, address), 0);
	fd = sock_connect(&a, &in_progress);
	assert_true(fd >= 0);
	return fd;
}

static _unused_ int client_socket(const char *path)
{
	char z[128];

	snprintf(z, sizeof(z), "unix:%s", path);
	return client_connect(z);
}

static _unused_ void client_send(int fd, const char *p, size_t n)
{
	uint64_t until = now_ns() + PATIENCE;

	while (n) {
		ssize_t r = send(fd, p, n, MSG_NOSIGNAL);

		if (r > 0) {
			p += r;
			n -= (size_t)r;
			continue;
		}
		assert_true(now_ns() < until);
		loop_turn(fix.loop, 1);
	}
}

/* More bytes into b. False: the peer ended. */
static _unused_ bool client_more(int fd, struct buf *b)
{
	uint64_t until = now_ns() + PATIENCE;

	for (;;) {
		ssize_t r;

		assert_int_equal(buf_reserve(b, 65536), 0);
		r = recv(fd, buf_tail(b), 65536, 0);
		if (r > 0) {
			buf_commit(b, (size_t)r);
			return true;
		}
		if (r == 0 || (errno != EAGAIN && errno != ENOTCONN))
			return false;
		assert_true(now_ns() < until);
		loop_turn(fix.loop, 1);
	}
}

/* Everything up to the end of the connection, NUL-terminated; the caller frees. */
static _unused_ char *client_rest(int fd)
{
	struct buf b = BUF_INIT;

	while (client_more(fd, &b))
		;
	assert_int_equal(buf_append(&b, "", 1), 0);
	close(fd);
	return b.p + b.start;
}

/* One line to the control socket, the whole answer. */
static _unused_ char *client_say(const char *line)
{
	int fd = client_socket(fix.sock);

	client_send(fd, line, strlen(line));
	return client_rest(fd);
}

#define assert_has(text, part)                                                    \
	do {                                                                      \
		if (!strstr(text, part))                                          \
			fail_msg("no \"%s\" in:\n%s", part, text);                \
	} while (0)
#define assert_begins(text, part)                                                 \
	do {                                                                      \
		if (strncmp(text, part, strlen(part)) != 0)                       \
			fail_msg("does not begin with \"%s\":\n%s", part, text);  \
	} while (0)
