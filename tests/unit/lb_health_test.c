/* SPDX-License-Identifier: Apache-2.0 */
/* Health checks against real sockets: what takes a backend down, what brings it back, what the table shows. */
#include <pthread.h>
/* Only its certificates are wanted here. */
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tls_fixture.h"
#include "lb_fixture.h"

/* ---- an origin that answers every connection with one text ---- */

struct origin {
	pthread_t thread;
	int fd;
	unsigned port;
	struct tls_ctx *tls;            /* NULL: plain */
	_Atomic(const char *) response; /* NULL: never answers */
	atomic_bool stop;
	atomic_uint seen;
	pthread_mutex_t lock;
	char request[1024]; /* the last one; under lock */
};

static void origin_keep(struct origin *o, const char *text)
{
	pthread_mutex_lock(&o->lock);
	snprintf(o->request, sizeof(o->request), "%s", text);
	pthread_mutex_unlock(&o->lock);
}

static bool origin_wait(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	return poll(&p, 1, WAIT_MS) > 0;
}

static bool origin_handshake(struct tls *t, int fd)
{
	int r;

	while ((r = tls_handshake(t)) > 0)
		if (!origin_wait(fd, r == TLS_WANT_READ ? POLLIN : POLLOUT))
			return false;
	return r == 0;
}

static void origin_answer(struct origin *o, int fd)
{
	const char *response = atomic_load(&o->response);
	char request[1024] = "";
	size_t have = 0;
	struct tls *t = NULL;
	ssize_t n;

	if (o->tls && (tls_new_server(&t, o->tls, fd) < 0 || !origin_handshake(t, fd)))
		goto out;
	while (!strstr(request, "\r\n\r\n") && have < sizeof(request) - 1) {
		n = t ? tls_read(t, request + have, sizeof(request) - 1 - have)
		      : recv(fd, request + have, sizeof(request) - 1 - have, 0);
		if (n == -EAGAIN && origin_wait(fd, POLLIN))
			continue;
		if (n <= 0)
			goto out;
		have += (size_t)n;
		request[have] = 0;
	}
	origin_keep(o, request);
	atomic_fetch_add(&o->seen, 1);
	if (response)
		n = t ? tls_write(t, response, strlen(response)) : send(fd, response, strlen(response), MSG_NOSIGNAL);
	else
		while (recv(fd, request, sizeof(request), 0) > 0)
			;
out:
	tls_free(t);
	close(fd);
}

static void *origin_thread(void *arg)
{
	struct origin *o = arg;

	while (!atomic_load(&o->stop)) {
		int fd = accept(o->fd, NULL, NULL);

		if (fd < 0)
			break;
		origin_answer(o, fd);
	}
	return NULL;
}

static void origin_start(struct origin *o, const char *response, struct tls_ctx *tls)
{
	*o = (struct origin){ .tls = tls };
	pthread_mutex_init(&o->lock, NULL);
	atomic_store(&o->response, response);
	o->fd = port_accepting(&o->port);
	assert_int_equal(pthread_create(&o->thread, NULL, origin_thread, o), 0);
}

static void origin_stop(struct origin *o)
{
	atomic_store(&o->stop, true);
	shutdown(o->fd, SHUT_RDWR);
	pthread_join(o->thread, NULL);
	close(o->fd);
	pthread_mutex_destroy(&o->lock);
}

/* ---- tests ---- */

static void tcp_check_takes_down_and_brings_back(void **state)
{
	struct sluice_health table[4] = { 0 };
	const struct lb_options o = { .slots = table, .slot_count = ARRAY_SIZE(table) };
	unsigned dead, live;
	int dead_fd = port_refusing(&dead), live_fd = port_accepting(&live);
	const struct conf *c = conf_text("version: 1\n"
					 "upstreams:\n"
					 "  one:\n"
					 "    servers: [{address: \"127.0.0.1:%u\"}, {address: \"127.0.0.1:%u\"}]\n"
					 "    health_check: {type: tcp, interval: 20ms, timeout: 5s}\n",
					 dead, live);
	struct upstream_view v;
	struct lb_table *t;
	struct backend *b;
	char text[32], got[64];
	struct lb *lb;
	(void)state;

	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	snprintf(text, sizeof(text), "backend=127.0.0.1:%u", dead);
	log_await("event=backend_down", text);
	snprintf(text, sizeof(text), "one/127.0.0.1:%u", dead);
	assert_int_equal(state_of(lb, text), SLUICE_HEALTH_DOWN);

	/* Nobody is sent there. */
	t = lb_table_get(lb);
	assert_int_equal(upstream_view_init(&v, t->upstream[0], 0), 0);
	for (int i = 0; i < 5; i++) {
		b = upstream_choose(&v, STR_NONE, NULL);
		assert_non_null(b);
		snprintf(got, sizeof(got), "127.0.0.1:%u", live);
		assert_string_equal(b->text, got);
		backend_unref(b);
	}
	assert_int_equal(listen(dead_fd, 8), 0);
	log_await("event=backend_up", text + 4);
	assert_int_equal(state_of(lb, text), SLUICE_HEALTH_UP);

	upstream_view_deinit(&v);
	lb_table_unref(t);
	lb_stop(&lb);
	/* What the process knew stays for the next one. */
	assert_string_equal(table[0].upstream, "one");
	assert_string_equal(table[0].backend, text + 4);
	assert_int_equal(table[0].state, SLUICE_HEALTH_UP);
	assert_true(table[0].checks_failed >= 1);
	assert_true(table[0].checks_ok >= 1);
	assert_true(table[0].last_change_ns > 0);
	assert_int_equal(table[0].weight_conf, 1);
	conf_unref(c);
	close(dead_fd);
	close(live_fd);
}

static void fall_and_rise_count(void **state)
{
	struct sluice_health table[1] = { 0 };
	const struct lb_options o = { .slots = table, .slot_count = 1 };
	struct origin origin;
	const struct conf *c;
	struct lb *lb;
	uint64_t failed;
	(void)state;

	origin_start(&origin, "HTTP/1.1 503 Nope\r\nContent-Length: 0\r\n\r\n", NULL);
	c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
		      "    health_check: {type: http, path: /, interval: 10ms, timeout: 5s, rise: 3, fall: 4}\n",
		      origin.port);
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	log_await("event=backend_down", "reason=\"status 503\"");
	failed = atomic_load(&origin.seen);
	assert_true(failed >= 4);
	atomic_store(&origin.seen, 0);
	atomic_store(&origin.response, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
	log_await("event=backend_up", "backend=127.0.0.1");
	assert_true(atomic_load(&origin.seen) >= 3);
	lb_stop(&lb);
	assert_true(table[0].checks_ok >= 3);
	assert_true(table[0].checks_failed >= 4);
	assert_true(table[0].rise_count >= 3);
	conf_unref(c);
	origin_stop(&origin);
}

#define INTERIM "HTTP/1.1 102 Processing\r\n\r\n"
#define INTERIM_8 INTERIM INTERIM INTERIM INTERIM INTERIM INTERIM INTERIM INTERIM

static void http_answers_are_judged(void **state)
{
	static const struct {
		const char *expect, *response, *reason; /* reason NULL: passes */
	} rows[] = {
		{ "200", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", NULL },
		{ "200", "HTTP/1.1 204 No Content\r\n\r\n", "status 204" },
		{ "200-399", "HTTP/1.0 302 Found\r\n\r\n", NULL },
		{ "200", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", NULL },
		{ "200", INTERIM_8 INTERIM_8 INTERIM_8 INTERIM_8 "HTTP/1.1 200 OK\r\n\r\n", NULL },
		{ "200", INTERIM_8 INTERIM_8 INTERIM_8 INTERIM_8 INTERIM_8, "too many interim responses" },
		{ "200", "SSH-2.0-OpenSSH_9.2\r\n", "not a valid response" },
		{ "200", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "not a valid response" },
		{ "200", "HTTP/1.1 200 OK\r\nServer: x\r\n", "closed before the end" },
		{ "200", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "status 101" },
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct lb_options o = { 0 };
		struct origin origin;
		const struct conf *c;
		struct lb *lb;

		origin_start(&origin, rows[i].response, NULL);
		c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
			      "    health_check: {type: http, path: /ready?x=1, host: check.example, expect_status: "
			      "\"%s\", interval: 1m, timeout: 10s}\n",
			      origin.port, rows[i].expect);
		assert_int_equal(lb_start_with(&lb, c, &o), 0);
		if (rows[i].reason)
			log_await("event=backend_down", rows[i].reason);
		else
			log_await_but("backend_down", "event=backend_first_check", "upstream=one");
		lb_stop(&lb);
		conf_unref(c);
		assert_non_null(strstr(origin.request, "GET /ready?x=1 HTTP/1.1\r\nHost: check.example\r\n"));
		origin_stop(&origin);
	}
}

static void silence_is_a_failure_after_the_timeout(void **state)
{
	const struct lb_options o = { 0 };
	struct origin origin;
	const struct conf *c;
	struct lb *lb;
	(void)state;

	origin_start(&origin, NULL, NULL);
	c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
		      "    health_check: {type: http, path: /, interval: 1m, timeout: 50ms}\n",
		      origin.port);
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	log_await("event=backend_down", "reason=\"response timed out\"");
	lb_stop(&lb);
	conf_unref(c);
	origin_stop(&origin);
}

static void tls_check_verifies(void **state)
{
	static const struct {
		const char *sni, *type, *reason;
	} rows[] = {
		{ "good.example", "tcp", NULL },
		{ "good.example", "http", NULL },
		{ "other.example", "tcp", "wrong_name" },
	};
	struct identity ca;
	struct tls_certificate cert;
	struct tls_server_options so = { .certificates = &cert, .n = 1, .ktls = TLS_KTLS_OFF };
	struct tls_ctx *server;
	char err[256];
	(void)state;

	fixture_begin();
	ca = make_identity(NULL, &(struct leaf_spec){ .cn = "test CA", .ca = true });
	save_identity(&ca, "ca");
	make_saved(&ca, &(struct leaf_spec){ .cn = "good.example", .alt = "DNS:good.example" }, "leaf");
	cert = (struct tls_certificate){ fixture_path("leaf.pem"), fixture_path("leaf.key"), NULL };
	assert_int_equal(tls_ctx_new_server(&server, &so, err, sizeof(err)), 0);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct lb_options o = { 0 };
		struct origin origin;
		const struct conf *c;
		struct lb *lb;

		origin_start(&origin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", server);
		c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
			      "    tls: {sni: %s, ca_file: %s}\n"
			      "    health_check: {type: %s, interval: 1m, timeout: 10s}\n",
			      origin.port, rows[i].sni, fixture_path("ca.pem"), rows[i].type);
		assert_int_equal(lb_start_with(&lb, c, &o), 0);
		if (rows[i].reason)
			log_await("event=backend_down", rows[i].reason);
		else
			log_await_but("backend_down", "event=backend_first_check", "upstream=one");
		lb_stop(&lb);
		conf_unref(c);
		origin_stop(&origin);
	}
	tls_ctx_unref(server);
	free_identity(&ca);
	fixture_end();
}

static void unusable_ca_file_fails_the_check_not_the_start(void **state)
{
	const struct lb_options o = { 0 };
	unsigned port;
	int fd = port_accepting(&port);
	const struct conf *c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
					 "    tls: {sni: a.example, ca_file: /nowhere/ca.pem}\n"
					 "    health_check: {type: tcp, interval: 1m}\n",
					 port);
	struct lb *lb;
	(void)state;

	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	log_await("event=backend_down", "/nowhere/ca.pem");
	lb_stop(&lb);
	conf_unref(c);
	close(fd);
}

/* Without a health_check: requests that can not connect take it down, a connect each second brings it back. */
static void failing_requests_take_down_and_a_probe_brings_back(void **state)
{
	const struct lb_options o = { 0 };
	unsigned port;
	int fd = port_refusing(&port);
	const struct conf *c =
		conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n", port);
	struct backend *b;
	struct lb *lb;
	char name[32];
	(void)state;

	snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	b = find(lb, name);
	/* A success in between starts the count anew; our own shortage does not count. */
	backend_note_connect_failure(b, ECONNREFUSED);
	backend_note_connect_failure(b, ECONNREFUSED);
	backend_note_ok(b);
	for (int i = 0; i < 10; i++)
		backend_note_connect_failure(b, EMFILE);
	backend_note_connect_failure(b, ECONNREFUSED);
	backend_note_connect_failure(b, -ECONNREFUSED);
	assert_true(backend_usable(b));
	backend_note_connect_failure(b, ECONNREFUSED);
	assert_int_equal(__atomic_load_n(&b->health->state, __ATOMIC_RELAXED), SLUICE_HEALTH_DOWN); /* in the table at once */
	assert_false(backend_usable(b));
	log_await("event=backend_down", "requests can not connect: Connection refused");
	assert_int_equal(listen(fd, 8), 0);
	log_await("event=backend_up", name);
	assert_true(backend_usable(b));
	backend_unref(b);
	lb_stop(&lb);
	conf_unref(c);
	close(fd);
}

static void shortage_of_descriptors_takes_nobody_down(void **state)
{
	const struct lb_options o = { 0 };
	unsigned port;
	int fd = port_accepting(&port);
	const struct conf *c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
					 "    health_check: {type: tcp, interval: 20ms}\n",
					 port);
	struct lb *lb;
	char name[32];
	(void)state;

	assert_int_equal(fault_init("socket:1+3"), 0);
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	log_await_but("backend_down", "event=health_check_skipped", "upstream=one");
	log_await_but("backend_down", "event=backend_first_check", "upstream=one");
	snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_int_equal(state_of(lb, name), SLUICE_HEALTH_UP);
	lb_stop(&lb);
	fault_init("");
	conf_unref(c);
	close(fd);
}

/* The operator's fields of the table: seen, logged, obeyed; the daemon's own: put back. */
static void operator_changes_the_table(void **state)
{
	struct sluice_health table[2] = { 0 };
	const struct lb_options o = { .slots = table, .slot_count = 2 };
	unsigned port;
	int fd = port_accepting(&port);
	const struct conf *c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:%u\"}]\n"
					 "    health_check: {type: tcp, interval: 1m}\n",
					 port);
	struct backend *b;
	struct lb *lb;
	char name[32];
	(void)state;

	snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	log_await("event=backend_first_check", name);
	b = find(lb, name);

	__atomic_store_n(&table[0].admin, SLUICE_ADMIN_DRAIN, __ATOMIC_RELAXED);
	assert_false(backend_usable(b));
	log_await("event=backend_admin", "admin=drain weight=1");
	backend_set_weight(b, 9);
	log_await("event=backend_admin", "admin=drain weight=9");
	backend_set_admin(b, SLUICE_ADMIN_ENABLED);
	log_await("event=backend_admin", "admin=enabled weight=9");
	assert_true(backend_usable(b));
	assert_int_equal(backend_weight(b, 1), 9);
	/* Nonsense is put back, and so is what was not the operator's to write. */
	__atomic_store_n(&table[0].admin, 77, __ATOMIC_RELAXED);
	log_await("event=backend_admin", "admin=77");
	assert_int_equal(backend_admin(b), SLUICE_ADMIN_ENABLED);
	backend_unref(b);
	lb_stop(&lb);
	assert_string_equal(table[0].backend, name);
	conf_unref(c);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(tcp_check_takes_down_and_brings_back, log_forget),
		cmocka_unit_test_setup(fall_and_rise_count, log_forget),
		cmocka_unit_test_setup(http_answers_are_judged, log_forget),
		cmocka_unit_test_setup(silence_is_a_failure_after_the_timeout, log_forget),
		cmocka_unit_test_setup(tls_check_verifies, log_forget),
		cmocka_unit_test_setup(unusable_ca_file_fails_the_check_not_the_start, log_forget),
		cmocka_unit_test_setup(failing_requests_take_down_and_a_probe_brings_back, log_forget),
		cmocka_unit_test_setup(shortage_of_descriptors_takes_nobody_down, log_forget),
		cmocka_unit_test_setup(operator_changes_the_table, log_forget),
	};

	log_capture();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
