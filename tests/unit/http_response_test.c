/* SPDX-License-Identifier: Apache-2.0 */
/* Which response heads are accepted and where their bodies end; which are refused. */
#include "http_guard.h"

static struct http_field storage[HTTP_FIELDS_MAX];
static const struct http_limits limits = { .head_bytes = 65536, .fields = 128 };

#define OK "HTTP/1.1 200 OK\r\n"

static const struct accept {
	const char *source;
	struct str in;
	enum http_method method;
	int status;
	const char *reason;
	enum http_framing framing;
	uint64_t length;
	bool keep_alive;
	size_t rest;
} accepts[] = {
	{ "RFC 9112 6.3 item 8", STR(OK "\r\nbody"), HTTP_M_GET, 200, "OK", HTTP_BODY_CLOSE, 0, false, 4 },
	{ "RFC 9112 6.3 item 6", STR(OK "Content-Length: 4\r\n\r\nbody"), HTTP_M_GET, 200, "OK", HTTP_BODY_LENGTH, 4, true, 4 },
	{ "RFC 9112 6.3 item 4", STR(OK "Transfer-Encoding: chunked\r\n\r\n"), HTTP_M_GET, 200, "OK", HTTP_BODY_CHUNKED, 0, true, 0 },
	{ "RFC 9112 6.3 item 1 HEAD", STR(OK "Content-Length: 4\r\n\r\n"), HTTP_M_HEAD, 200, "OK", HTTP_BODY_NONE, 4, true, 0 },
	{ "HEAD with chunked", STR(OK "Transfer-Encoding: chunked\r\n\r\n"), HTTP_M_HEAD, 200, "OK", HTTP_BODY_NONE, 0, true, 0 },
	{ "HEAD with nothing", STR(OK "\r\n"), HTTP_M_HEAD, 200, "OK", HTTP_BODY_NONE, 0, true, 0 },
	{ "304 with a length", STR("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"), HTTP_M_GET, 304, "Not Modified",
	  HTTP_BODY_NONE, 9, true, 0 },
	{ "204", STR("HTTP/1.1 204 No Content\r\n\r\n"), HTTP_M_GET, 204, "No Content", HTTP_BODY_NONE, 0, true, 0 },
	{ "204 that says 0", STR("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET, 204, "No Content",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "205 that says 0", STR("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET, 205, "Reset Content",
	  HTTP_BODY_LENGTH, 0, true, 0 },
	{ "100", STR("HTTP/1.1 100 Continue\r\n\r\n" OK), HTTP_M_POST, 100, "Continue", HTTP_BODY_NONE, 0, true, 17 },
	{ "103", STR("HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n"), HTTP_M_GET, 103, "Early Hints", HTTP_BODY_NONE, 0, true, 0 },
	{ "101", STR("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81"), HTTP_M_GET, 101,
	  "Switching Protocols", HTTP_BODY_NONE, 0, false, 1 },
	{ "RFC 9112 4 empty phrase", STR("HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET, 200, "", HTTP_BODY_LENGTH, 0, true, 0 },
	{ "phrase and its space left out", STR("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET, 200, "", HTTP_BODY_LENGTH, 0,
	  true, 0 },
	{ "RFC 9110 15 unknown status", STR("HTTP/1.1 999 No\tWay \xe9\r\nContent-Length: 0\r\n\r\n"), HTTP_M_GET, 999,
	  "No\tWay \xe9", HTTP_BODY_LENGTH, 0, true, 0 },
	{ "1.0 closes", STR("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n"), HTTP_M_GET, 200, "OK", HTTP_BODY_LENGTH, 1, false, 0 },
	{ "1.0 keep-alive", STR("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"), HTTP_M_GET, 200, "OK",
	  HTTP_BODY_LENGTH, 1, true, 0 },
	{ "keep-alive can not outlive a close-delimited body", STR("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"), HTTP_M_GET,
	  200, "OK", HTTP_BODY_CLOSE, 0, false, 0 },
	{ "close", STR(OK "Connection: close\r\nContent-Length: 1\r\n\r\n"), HTTP_M_GET, 200, "OK", HTTP_BODY_LENGTH, 1, false, 0 },
};

static void accepts_what_has_one_reading(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(accepts); i++) {
		const struct accept *t = &accepts[i];
		struct http_verdict v;
		struct http_head h;
		int r;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		r = guard_parse_both(t->source, t->in, (int)t->method, &limits, &h, &v);
		if (r != 0)
			fail_msg("%s: %d %s", t->source, r, v.reason ? v.reason : "");
		if (h.status != t->status || !str_eqz(h.reason, t->reason) || h.framing != t->framing || h.length != t->length ||
		    h.keep_alive != t->keep_alive || h.head_len != t->in.n - t->rest)
			fail_msg("%s: status %d reason '" STR_FMT "' framing %d length %llu keep %d head %zu", t->source, h.status,
				 STR_ARG(h.reason), h.framing, (unsigned long long)h.length, h.keep_alive, h.head_len);
	}
}

static const struct refuse {
	const char *source;
	struct str in;
} refuses[] = {
	{ "HTTP/0.9 answer", STR("<html>") },
	{ "SSH on the port", STR("SSH-2.0-OpenSSH_9.2\r\n") },
	{ "TLS alert on the port", STR("\x15\x03\x03\x00\x02\x02\x16") },
	{ "SMTP on the port", STR("220 mail\r\n") },
	{ "RFC 9113 frames", STR("\0\0\x06\x04\0\0\0\0\0") },
	{ "HTTP/2 status line", STR("HTTP/2.0 200 OK\r\n\r\n") },
	{ "HTTP/2 without minor", STR("HTTP/2 200 OK\r\n\r\n") },
	{ "ICY", STR("ICY 200 OK\r\n\r\n") },
	{ "lower case", STR("http/1.1 200 OK\r\n\r\n") },
	{ "CRLF before it", STR("\r\n" OK "\r\n") },
	{ "rest of another body", STR("x" OK "\r\n") },
	{ "two digits", STR("HTTP/1.1 20 OK\r\n\r\n") },
	{ "four digits", STR("HTTP/1.1 2000 OK\r\n\r\n") },
	{ "status below 100", STR("HTTP/1.1 099 OK\r\n\r\n") },
	{ "status with a sign", STR("HTTP/1.1 +20 OK\r\n\r\n") },
	{ "two spaces", STR("HTTP/1.1  200 OK\r\n\r\n") },
	{ "HTAB", STR("HTTP/1.1\t200 OK\r\n\r\n") },
	{ "bare LF", STR("HTTP/1.1 200 OK\n\n") },
	{ "NUL in the phrase", STR("HTTP/1.1 200 O\0K\r\n\r\n") },
	{ "bare CR in the phrase", STR("HTTP/1.1 200 O\rK\r\n\r\n") },
	{ "RFC 9112 5.1 space before the colon", STR(OK "Content-Length : 5\r\n\r\n") },
	{ "obs-fold", STR(OK "X: a\r\n b\r\nContent-Length: 0\r\n\r\n") },
	{ "empty name", STR(OK ": a\r\nContent-Length: 0\r\n\r\n") },
	{ "NUL in a value", STR(OK "X: \0\r\nContent-Length: 0\r\n\r\n") },
	{ "bare LF in the fields", STR(OK "X: a\nContent-Length: 0\r\n\r\n") },
	{ "TE and CL", STR(OK "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n") },
	{ "differing CLs", STR(OK "Content-Length: 5\r\nContent-Length: 6\r\n\r\n") },
	{ "equal CLs", STR(OK "Content-Length: 5\r\nContent-Length: 5\r\n\r\n") },
	{ "CL list", STR(OK "Content-Length: 5,5\r\n\r\n") },
	{ "CL 2^63", STR(OK "Content-Length: 9223372036854775808\r\n\r\n") },
	{ "TE on 1.0", STR("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") },
	{ "unknown coding", STR(OK "Transfer-Encoding: gzip\r\n\r\n") },
	{ "gzip, chunked", STR(OK "Transfer-Encoding: gzip, chunked\r\n\r\n") },
	{ "chunked twice", STR(OK "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n") },
	{ "RFC 9112 6.1 TE with 204", STR("HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n") },
	{ "RFC 9110 8.6 CL with 204", STR("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n") },
	{ "RFC 9112 6.1 TE with 1xx", STR("HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n") },
	{ "RFC 9110 8.6 CL with 1xx", STR("HTTP/1.1 101 Go\r\nContent-Length: 5\r\n\r\n") },
	{ "RFC 9110 15.3.6 205 with a body", STR("HTTP/1.1 205 Reset\r\nContent-Length: 5\r\n\r\n") },
};

static void refuses_the_rest_with_502(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(refuses); i++) {
		struct http_verdict v;
		struct http_head h;
		int r;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		r = guard_parse_both(refuses[i].source, refuses[i].in, HTTP_M_GET, &limits, &h, &v);
		if (r != HTTP_BAD || v.status != 502)
			fail_msg("%s: %d %d %s", refuses[i].source, r, v.status, v.reason ? v.reason : "");
	}
}

/* A backend that is no HTTP server may never send an end of line: its first wrong byte must do. */
static void a_wrong_first_byte_is_enough(void **state _unused_)
{
	static const char good[] = "HTTP/1.1 200";
	char text[sizeof(good)];

	for (size_t at = 0; at < sizeof(good) - 1; at++) {
		struct http_verdict v;
		struct http_head h;
		size_t scan = 0;

		memcpy(text, good, sizeof(good));
		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		assert_int_equal(http_parse_response(text, at, &scan, &limits, HTTP_M_GET, &h, &v), HTTP_MORE);
		text[at] = '\x01';
		assert_int_equal(http_parse_response(text, at + 1, &scan, &limits, HTTP_M_GET, &h, &v), HTTP_BAD);
	}
}

static void limits_hold_for_backends_too(void **state _unused_)
{
	static const struct http_limits small = { .head_bytes = 64, .fields = 2 };
	static const struct str cases[] = {
		STR(OK "A: 1\r\nB: 2\r\nC: 3\r\n\r\n"),
		STR(OK "A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n"),
		STR("HTTP/1.1 200 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct http_verdict v;
		struct http_head h;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		assert_int_equal(guard_parse_both("limits", cases[i], HTTP_M_GET, &small, &h, &v), HTTP_BAD);
		assert_int_equal(v.status, 502);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accepts_what_has_one_reading),
		cmocka_unit_test(refuses_the_rest_with_502),
		cmocka_unit_test(a_wrong_first_byte_is_enough),
		cmocka_unit_test(limits_hold_for_backends_too),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
