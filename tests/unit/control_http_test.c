/* SPDX-License-Identifier: Apache-2.0 */
/* The admin HTTP door: pages, methods, keep-alive, bounds, and what it does with junk. */
#include <netinet/tcp.h>

#include "control_fixture.h"

static char *get(const char *request)
{
	int fd = client_connect(control_http_text(fix.control));

	client_send(fd, request, strlen(request));
	return client_rest(fd);
}

/* Reads one answer with Content-Length off a connection that stays open; what is behind it stays in b. */
static char *one_answer(int fd, struct buf *b, bool head)
{
	for (;;) {
		const char *end = b->len ? memmem(buf_data(b), b->len, "\r\n\r\n", 4) : NULL;
		const char *cl = end ? memmem(buf_data(b), b->len, "Content-Length: ", 16) : NULL;
		size_t n = end ? (size_t)(end + 4 - buf_data(b)) : 0;

		if (cl && !head)
			n += strtoul(cl + 16, NULL, 10);
		if (n && b->len >= n) {
			char *z = str_dup((struct str){ buf_data(b), n });

			buf_consume(b, n);
			return z;
		}
		assert_true(client_more(fd, b));
	}
}

static void pages_answer(void **state _unused_)
{
	static const struct {
		const char *request, *first, *has;
	} rows[] = {
		{ "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\nok\n" },
		{ "GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "Connection: close\r\n" },
		{ "GET /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "text/plain; version=0.0.4" },
		{ "GET /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\nsluice_active_connections 7\n" },
		{ "GET /metrics?x=1 HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n",
		  "sluice_backend_weight{upstream=\"one\",backend=\"127.0.0.1:9\"} 3\n" },
		{ "GET /status HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "application/json" },
		{ "GET /status HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\"sockmap_reason\":\"no CAP_BPF\"" },
		{ "GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "</html>" },
		{ "GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "Content-Security-Policy: default-src 'none'" },
		{ "GET /nothing HTTP/1.0\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", "/metrics" },
		{ "GET /metricsx HTTP/1.0\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", "" },
		{ "DELETE /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed\r\n", "Allow: GET, HEAD\r\n" },
		{ "POST /status HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 400 ", "no body" },
		{ "GET /status HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 ", "close" },
		{ "GET /status HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ", "Connection: close\r\n" },
		{ "GET /status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "HTTP/1.1 400 ", "" },
		{ "GET  /status HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 400 ", "" },
		{ "junk\r\n\r\n", "HTTP/1.1 400 ", "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		char *z = get(rows[i].request);

		assert_begins(z, rows[i].first);
		assert_has(z, rows[i].has);
		free(z);
	}
}

static void health_page_says_draining(void **state _unused_)
{
	char *z;

	stub_draining = true;
	z = get("GET /healthz HTTP/1.0\r\n\r\n");
	assert_begins(z, "HTTP/1.1 503 ");
	assert_has(z, "\r\n\r\ndraining\n");
	free(z);
}

static void head_is_get_without_the_body(void **state _unused_)
{
	struct buf b = BUF_INIT;
	int fd = client_connect(control_http_text(fix.control));
	const char *two = "HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
	char *head, *full;

	client_send(fd, two, strlen(two));
	head = one_answer(fd, &b, true);
	full = one_answer(fd, &b, false);
	assert_has(head, "Content-Length: 3\r\n");
	assert_null(strstr(head, "ok\n"));
	assert_has(full, "\r\n\r\nok\n");
	assert_null(strstr(full, "Connection: close"));
	free(head);
	free(full);
	buf_deinit(&b);
	close(fd);
}

static void a_connection_serves_requests_in_pieces_and_in_a_row(void **state _unused_)
{
	struct buf b = BUF_INIT;
	const char *one = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
	int fd = client_connect(control_http_text(fix.control));

	for (int i = 0; i < 3; i++) {
		char *z;

		for (const char *p = one; *p; p++) {
			client_send(fd, p, 1);
			loop_turn(fix.loop, 0);
		}
		z = one_answer(fd, &b, false);
		assert_begins(z, "HTTP/1.1 200 OK\r\n");
		free(z);
	}
	buf_deinit(&b);
	close(fd);
}

static void a_connection_ends_after_its_share_of_requests(void **state _unused_)
{
	struct buf b = BUF_INIT;
	const char *one = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
	int fd = client_connect(control_http_text(fix.control));
	unsigned n = 0;

	for (bool last = false; !last; n++) {
		char *z;

		client_send(fd, one, strlen(one));
		z = one_answer(fd, &b, false);
		last = strstr(z, "Connection: close\r\n") != NULL;
		free(z);
		assert_true(n < DOOR_REQUESTS_MAX);
	}
	assert_int_equal(n, DOOR_REQUESTS_MAX);
	assert_false(client_more(fd, &b));
	buf_deinit(&b);
	close(fd);
}

static void an_endless_head_is_refused(void **state _unused_)
{
	char big[16384] = "GET / HTTP/1.1\r\nHost: a\r\nX: ", *z;
	int fd = client_connect(control_http_text(fix.control));

	memset(big + strlen(big), 'x', sizeof(big) - strlen(big));
	client_send(fd, big, sizeof(big));
	z = client_rest(fd);
	assert_begins(z, "HTTP/1.1 431 ");
	free(z);
}

/* Many pipelined pages are far more than socket buffers hold; the client takes nothing until all are asked for. */
static void a_slow_reader_gets_everything(void **state _unused_)
{
	struct buf b = BUF_INIT;
	struct sock_addr a;
	struct peer *p;
	const char *one = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
	int small = 4096, one_by_one = 1, fd, n = 900;
	uint64_t until = now_ns() + PATIENCE;
	bool in_progress;

	assert_int_equal(sock_parse(&a, control_http_text(fix.control)), 0);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one_by_one, sizeof(one_by_one));
	in_progress = connect(fd, &a.sa, a.len) < 0;
	assert_true(!in_progress || errno == EINPROGRESS);
	for (int i = 0; i < n; i++) {
		client_send(fd, one, strlen(one));
		loop_turn(fix.loop, 0);
	}
	/* The test is worth something only when the answers do not fit: the door must come to wait for room. */
	p = list_entry(fix.control->http_door.peers.next, struct peer, link);
	while (p->state != PEER_WRITE && now_ns() < until)
		loop_turn(fix.loop, 1);
	assert_int_equal(p->state, PEER_WRITE);
	for (int i = 0; i < n; i++) {
		char *z = one_answer(fd, &b, false);

		assert_begins(z, "HTTP/1.1 200 OK\r\n");
		assert_string_equal(z + strlen(z) - 8, "</html>\n");
		free(z);
	}
	assert_int_equal(b.len, 0);
	buf_deinit(&b);
	close(fd);
}

static void connections_are_bounded_and_idle_ones_give_way(void **state _unused_)
{
	int fd[80];
	unsigned max = http_service.peers_max;
	const char *one = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
	struct buf b = BUF_INIT;

	/* All in the middle of a request: nobody can be sent away, so the next is not let in. */
	for (unsigned i = 0; i < max; i++) {
		fd[i] = client_connect(control_http_text(fix.control));
		client_send(fd[i], one, 10);
		loop_turn(fix.loop, 0);
	}
	for (int i = 0; i < 10; i++)
		loop_turn(fix.loop, 0);
	assert_int_equal(fix.control->http_door.n, max);
	fd[max] = client_connect(control_http_text(fix.control));
	assert_false(client_more(fd[max], &b));
	close(fd[max]);
	/* The first has its answer and is idle: it gives way. */
	client_send(fd[0], one + 10, strlen(one) - 10);
	free(one_answer(fd[0], &b, false));
	fd[max] = client_connect(control_http_text(fix.control));
	client_send(fd[max], one, strlen(one));
	free(one_answer(fd[max], &b, false));
	assert_false(client_more(fd[0], &b));
	assert_int_equal(fix.control->http_door.n, max);
	for (unsigned i = 0; i <= max; i++)
		close(fd[i]);
	buf_deinit(&b);
}

static void peers_that_go_away_are_forgotten(void **state _unused_)
{
	int fd = client_connect(control_http_text(fix.control));
	uint64_t until = now_ns() + PATIENCE;

	client_send(fd, "GET", 3);
	while (fix.control->http_door.n == 0 && now_ns() < until)
		loop_turn(fix.loop, 1);
	assert_int_equal(fix.control->http_door.n, 1);
	sock_abort_on_close(fd);
	close(fd);
	while (fix.control->http_door.n && now_ns() < until)
		loop_turn(fix.loop, 1);
	assert_int_equal(fix.control->http_door.n, 0);
}

static void a_request_that_does_not_end_runs_into_its_time(void **state _unused_)
{
	int fd = client_connect(control_http_text(fix.control));
	uint64_t until = now_ns() + PATIENCE, begun;
	struct peer *p;

	client_send(fd, "GET", 3);
	while (fix.control->http_door.n == 0 && now_ns() < until)
		loop_turn(fix.loop, 1);
	p = list_entry(fix.control->http_door.peers.next, struct peer, link);
	begun = p->timer.deadline;
	assert_in_range(begun, loop_now(fix.loop), loop_now(fix.loop) + DOOR_TIMEOUT);
	/* More bytes of the same request do not prolong it. */
	client_send(fd, " ", 1);
	loop_turn(fix.loop, 5);
	assert_true(p->timer.deadline == begun);
	p->timer.cb(&p->timer);
	loop_turn(fix.loop, 0);
	assert_int_equal(fix.control->http_door.n, 0);
	close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(pages_answer),
		T(health_page_says_draining),
		T(head_is_get_without_the_body),
		T(a_connection_serves_requests_in_pieces_and_in_a_row),
		T(a_connection_ends_after_its_share_of_requests),
		T(an_endless_head_is_refused),
		T(a_slow_reader_gets_everything),
		T(connections_are_bounded_and_idle_ones_give_way),
		T(peers_that_go_away_are_forgotten),
		T(a_request_that_does_not_end_runs_into_its_time),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
