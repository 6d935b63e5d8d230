/* SPDX-License-Identifier: Apache-2.0 */
/* What goes to the other side, byte for byte, and that it parses to the same framing there. */
#include <errno.h>
#include "base/fault.h"
#include "http_guard.h"

static struct http_field storage[HTTP_FIELDS_MAX];
static const struct http_limits limits = { .head_bytes = 65536, .fields = 128 };

#define ADDS .client_ip = { "192.0.2.7", 9 }, .proto = { "https", 5 }, .via = { "1.1 sluice", 10 }, .xff = true, .xfp = true, .xfh = true

static const struct http_pair sets[] = { { { "X-Set", 5 }, { "new", 3 } }, { { "Content-Length", 14 }, { "9", 1 } } };
static const struct str removes[] = { { "x-gone", 6 }, { "Host", 4 }, { "X-Forwarded-For", 15 } };
static const struct http_edit edit = { sets, 2, removes, 3 };

static const struct request_case {
	const char *name;
	struct str in;
	struct http_rewrite rw;
	const char *out;
} requests[] = {
	{ "plain", STR("GET /a?b HTTP/1.1\r\nHost: h:1\r\nAccept: */*\r\nUser-Agent: t\r\n\r\n"), { .close = false },
	  "GET /a?b HTTP/1.1\r\nHost: h:1\r\nAccept: */*\r\nUser-Agent: t\r\n\r\n" },
	{ "everything added", STR("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), { ADDS },
	  "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: h\r\n"
	  "Via: 1.1 sluice\r\n\r\n" },
	{ "X-Forwarded-For grows, the others are ours",
	  STR("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil\r\n"
	      "X-Forwarded-For: 10.0.0.2\r\nVia: 1.0 fred\r\n\r\n"),
	  { ADDS },
	  "GET / HTTP/1.1\r\nHost: h\r\nVia: 1.0 fred\r\nX-Forwarded-For: 10.0.0.1, 10.0.0.2, 192.0.2.7\r\n"
	  "X-Forwarded-Proto: https\r\nX-Forwarded-Host: h\r\nVia: 1.1 sluice\r\n\r\n" },
	{ "without adding, the client's pass", STR("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: a\r\nX-Forwarded-Proto: b\r\n\r\n"), { .close = false },
	  "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: a\r\nX-Forwarded-Proto: b\r\n\r\n" },
	{ "no address to add", STR("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: a\r\n\r\n"), { .xff = true },
	  "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: a\r\n\r\n" },
	{ "CVE-2022-31813 Connection can not take away what we add",
	  STR("GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Forwarded-For, Via, Host\r\nX-Forwarded-For: spoof\r\n\r\n"), { ADDS },
	  "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: h\r\n"
	  "Via: 1.1 sluice\r\n\r\n" },
	{ "RFC 9112 3.2.2 absolute-form becomes origin-form, Host follows",
	  STR("GET http://real.example/p?q HTTP/1.1\r\nHost: other\r\n\r\n"), { .close = false },
	  "GET /p?q HTTP/1.1\r\nHost: real.example\r\n\r\n" },
	{ "query without a path", STR("GET http://real.example?q HTTP/1.1\r\nHost: other\r\n\r\n"), { .close = false },
	  "GET /?q HTTP/1.1\r\nHost: real.example\r\n\r\n" },
	{ "RFC 9112 3.2.4", STR("OPTIONS http://real.example HTTP/1.1\r\nHost: other\r\n\r\n"), { .close = false },
	  "OPTIONS * HTTP/1.1\r\nHost: real.example\r\n\r\n" },
	{ "configured Host, the client's in X-Forwarded-Host", STR("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
	  { .host = { "backend", 7 }, .xfh = true }, "GET / HTTP/1.1\r\nHost: backend\r\nX-Forwarded-Host: h\r\n\r\n" },
	{ "RFC 9112 3.2 no authority known", STR("GET / HTTP/1.0\r\n\r\n"), { ADDS },
	  "GET / HTTP/1.1\r\nHost: \r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nVia: 1.1 sluice\r\n\r\n" },
	{ "RFC 9110 7.6.1 hop-by-hop fields stay",
	  STR("GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n"
	      "X-End: 2\r\nTE: gzip\r\nUpgrade: x\r\nProxy-Authorization: p\r\n\r\n"),
	  { .close = false }, "GET / HTTP/1.1\r\nHost: h\r\nX-End: 2\r\nProxy-Authorization: p\r\n\r\n" },
	{ "Content-Length named in Connection", STR("POST / HTTP/1.1\r\nHost: h\r\nConnection: Content-Length\r\nContent-Length: 3\r\n\r\n"),
	  { .close = false }, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n" },
	{ "length is written as a number", STR("POST / HTTP/1.1\r\nHost: h\r\ncontent-length:\t007 \r\nX-A:b\r\nX-B: \tc \r\nX-C:\r\n"
	      "X-D:\td\r\nX-E: e \r\nX-F: f\r\n\r\n"), { .close = false },
	  "POST / HTTP/1.1\r\nHost: h\r\nX-A: b\r\nX-B: c\r\nX-C: \r\nX-D: d\r\nX-E: e\r\nX-F: f\r\nContent-Length: 7\r\n\r\n" },
	{ "chunked", STR("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\nTrailer: X-Sum\r\n\r\n"), { .close = false },
	  "POST / HTTP/1.1\r\nHost: h\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" },
	{ "Trailer without chunked", STR("GET / HTTP/1.1\r\nHost: h\r\nTrailer: X-Sum\r\n\r\n"), { .close = false }, "GET / HTTP/1.1\r\nHost: h\r\n\r\n" },
	{ "upgrade asked for and allowed", STR("GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"),
	  { .pass_upgrade = true }, "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" },
	{ "upgrade not allowed", STR("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), { .close = false },
	  "GET / HTTP/1.1\r\nHost: h\r\n\r\n" },
	{ "h2c never",
	  STR("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n"),
	  { .pass_upgrade = true }, "GET / HTTP/1.1\r\nHost: h\r\n\r\n" },
	{ "h2c without naming it", STR("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n"), { .pass_upgrade = true },
	  "GET / HTTP/1.1\r\nHost: h\r\n\r\n" },
	{ "RFC 9110 10.1.4 TE: trailers", STR("GET / HTTP/1.1\r\nHost: h\r\nTE: gzip;q=0.5, trailers\r\nConnection: TE\r\n\r\n"),
	  { .close = true }, "GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n" },
	{ "Expect passes", STR("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"), { .close = false },
	  "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n" },
	{ "Expect was answered", STR("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"),
	  { .drop_expect = true }, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n" },
	{ "Expect of a 1.0 client", STR("POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"), { .close = false },
	  "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n" },
	{ "RFC 9110 7.6.2 Max-Forwards counts down", STR("OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 10\r\n\r\n"), { .close = false },
	  "OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 9\r\n\r\n" },
	{ "edits, but not of Host and framing", STR("GET / HTTP/1.1\r\nHost: h\r\nX-Set: old\r\nX-Gone: 1\r\nx-set: older\r\nX-Forwarded-For: a\r\n\r\n"),
	  { .edit = &edit }, "GET / HTTP/1.1\r\nHost: h\r\nX-Set: new\r\n\r\n" },
};

static void requests_are_rewritten(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
		const struct request_case *t = &requests[i];
		struct http_verdict v = { 0 };
		struct http_head h, again;
		struct http_field storage2[64];
		struct buf out = BUF_INIT;
		size_t scan = 0;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		http_head_init(&again, storage2, 64);
		if (http_parse_request(guard_place(t->in.p, t->in.n), t->in.n, &scan, &limits, &h, &v) != 0)
			fail_msg("%s: %s", t->name, v.reason ? v.reason : "incomplete");
		assert_int_equal(buf_append(&out, "before", 6), 0);
		assert_int_equal(http_write_request(&out, &h, &t->rw), 0);
		buf_consume(&out, 6);
		if (!str_eqz(buf_str(&out), t->out))
			fail_msg("%s:\n" STR_FMT, t->name, STR_ARG(buf_str(&out)));
		if (h.host.n) {
			assert_int_equal(http_parse_request(buf_data(&out), out.len, &scan, &limits, &again, &v), 0);
			assert_int_equal(again.framing, h.framing);
			assert_int_equal(again.length, h.length);
			assert_int_equal(again.head_len, out.len);
		}
		buf_deinit(&out);
	}
}

static const struct response_case {
	const char *name;
	struct str in;
	enum http_method method;
	struct http_rewrite_response rw;
	const char *out;
} responses[] = {
	{ "plain", STR("HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 3\r\nServer: s\r\n\r\n"), HTTP_M_GET, { .client_minor = 1 },
	  "HTTP/1.1 200 OK\r\nDate: d\r\nServer: s\r\nContent-Length: 3\r\n\r\n" },
	{ "1.0 backend, via, close", STR("HTTP/1.0 404 \r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET,
	  { .client_minor = 1, .close = true, .via = { "1.0 sluice", 10 } },
	  "HTTP/1.1 404 \r\nContent-Length: 0\r\nVia: 1.0 sluice\r\nConnection: close\r\n\r\n" },
	{ "RFC 9110 7.6.1 hop-by-hop fields stay",
	  STR("HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n"
	      "Upgrade: h2c\r\nContent-Length: 0\r\n\r\n"),
	  HTTP_M_GET, { .client_minor = 1 }, "HTTP/1.1 200 OK\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n" },
	{ "chunked to 1.1", STR("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"), HTTP_M_GET, { .client_minor = 1 },
	  "HTTP/1.1 200 OK\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n" },
	{ "RFC 9112 6.1 never chunked to 1.0", STR("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"), HTTP_M_GET,
	  { .client_minor = 0 }, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" },
	{ "keep-alive of a 1.0 client", STR("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"), HTTP_M_GET, { .client_minor = 0 },
	  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n" },
	{ "close-delimited says so", STR("HTTP/1.1 200 OK\r\n\r\n"), HTTP_M_GET, { .client_minor = 1 },
	  "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" },
	{ "HEAD keeps the length", STR("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"), HTTP_M_HEAD, { .client_minor = 1 },
	  "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" },
	{ "HEAD of a chunked one", STR("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), HTTP_M_HEAD, { .client_minor = 0 },
	  "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n" },
	{ "304 keeps the length", STR("HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n"), HTTP_M_GET, { .client_minor = 1 },
	  "HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n" },
	{ "RFC 9110 8.6 none with 204", STR("HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET, { .client_minor = 1 },
	  "HTTP/1.1 204 No\r\n\r\n" },
	{ "interim as it is", STR("HTTP/1.1 103 Early Hints\r\nLink: l\r\nConnection: close\r\nX-Set: backend\r\n\r\n"), HTTP_M_GET,
	  { .client_minor = 1, .close = true, .via = { "1.1 sluice", 10 }, .edit = &edit },
	  "HTTP/1.1 103 Early Hints\r\nLink: l\r\nX-Set: backend\r\n\r\n" },
	{ "tunnel asked for", STR("HTTP/1.1 101 Go\r\nupgrade: websocket\r\nconnection: upgrade\r\nSec-WebSocket-Accept: a\r\n\r\n"),
	  HTTP_M_GET, { .client_minor = 1, .upgrade = true },
	  "HTTP/1.1 101 Go\r\nSec-WebSocket-Accept: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" },
	{ "tunnel nobody asked for", STR("HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), HTTP_M_GET,
	  { .client_minor = 1 }, "HTTP/1.1 101 Go\r\n\r\n" },
	{ "edits", STR("HTTP/1.1 200 OK\r\nX-Gone: 1\r\nX-Set: 2\r\nContent-Length: 1\r\n\r\n"), HTTP_M_GET, { .client_minor = 1, .edit = &edit },
	  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Set: new\r\n\r\n" },
};

static void responses_are_rewritten(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(responses); i++) {
		const struct response_case *t = &responses[i];
		struct http_verdict v = { 0 };
		struct http_head h;
		struct buf out = BUF_INIT;
		size_t scan = 0;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		if (http_parse_response(guard_place(t->in.p, t->in.n), t->in.n, &scan, &limits, t->method, &h, &v) != 0)
			fail_msg("%s: %s", t->name, v.reason ? v.reason : "incomplete");
		assert_int_equal(http_write_response(&out, &h, &t->rw), 0);
		if (!str_eqz(buf_str(&out), t->out))
			fail_msg("%s:\n" STR_FMT, t->name, STR_ARG(buf_str(&out)));
		buf_deinit(&out);
	}
}

static void errors_are_whole_responses(void **state _unused_)
{
	static const struct {
		int status;
		const char *reason;
		bool close, head;
		const char *out;
	} cases[] = {
		{ 502, "no backend", false, false,
		  "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 24\r\n\r\nBad Gateway: no backend\n" },
		{ 404, NULL, true, false,
		  "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 10\r\nConnection: close\r\n\r\nNot Found\n" },
		{ 503, "x", false, true,
		  "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 23\r\n\r\n" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct buf out = BUF_INIT;

		assert_int_equal(http_write_error(&out, cases[i].status, cases[i].reason, cases[i].close, cases[i].head), 0);
		if (!str_eqz(buf_str(&out), cases[i].out))
			fail_msg(STR_FMT, STR_ARG(buf_str(&out)));
		buf_deinit(&out);
	}
}

/* RFC 9110 15.5.6 */
static void a_405_says_what_is_allowed(void **state _unused_)
{
	struct buf out = BUF_INIT;

	assert_int_equal(http_write_error(&out, 405, NULL, true, true), 0);
	assert_non_null(memmem(buf_data(&out), out.len, "\r\nAllow: GET, HEAD, ", 20));
	buf_deinit(&out);
}

static void without_memory_nothing_is_appended(void **state _unused_)
{
	static const char in[] = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
	struct http_rewrite rw = { 0 };
	struct http_verdict v;
	struct http_head h;
	struct buf out = BUF_INIT;
	size_t scan = 0;

	http_head_init(&h, storage, HTTP_FIELDS_MAX);
	assert_int_equal(http_parse_request(in, sizeof(in) - 1, &scan, &limits, &h, &v), 0);
	assert_int_equal(fault_init("alloc:1"), 0);
	assert_int_equal(http_write_request(&out, &h, &rw), -ENOMEM);
	assert_int_equal(out.len, 0);
	assert_int_equal(fault_init("alloc:1"), 0);
	assert_int_equal(http_write_error(&out, 500, NULL, false, false), -ENOMEM);
	assert_int_equal(out.len, 0);
	buf_deinit(&out);
}

static void only_idempotent_methods_are_tried_again(void **state _unused_)
{
	assert_true(http_method_is_idempotent(HTTP_M_GET));
	assert_true(http_method_is_idempotent(HTTP_M_PUT));
	assert_true(http_method_is_idempotent(HTTP_M_DELETE));
	assert_false(http_method_is_idempotent(HTTP_M_POST));
	assert_false(http_method_is_idempotent(HTTP_M_PATCH));
	assert_false(http_method_is_idempotent(HTTP_M_OTHER));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_are_rewritten),
		cmocka_unit_test(responses_are_rewritten),
		cmocka_unit_test(errors_are_whole_responses),
		cmocka_unit_test(a_405_says_what_is_allowed),
		cmocka_unit_test(without_memory_nothing_is_appended),
		cmocka_unit_test(only_idempotent_methods_are_tried_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
