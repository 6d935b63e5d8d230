/* SPDX-License-Identifier: Apache-2.0 */
/* Which request heads are accepted and what they mean; which are refused, with what, and who says so. */
#include "http_guard.h"

static struct http_field storage[HTTP_FIELDS_MAX];
static const struct http_limits limits = { .head_bytes = 65536, .fields = 128 };

#define H "Host: a.example\r\n"
#define GET "GET / HTTP/1.1\r\n"

static const struct accept {
	const char *source;
	struct str in;
	enum http_method method;
	const char *path, *host;
	enum http_framing framing;
	uint64_t length;
	bool keep_alive;
	size_t rest; /* bytes of `in` behind the head */
} accepts[] = {
	{ "RFC 9112 3.2.1 origin-form", STR("GET /where?q=now HTTP/1.1\r\nHost: www.example.org\r\n\r\n"), HTTP_M_GET,
	  "/where?q=now", "www.example.org", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 3.2.2 absolute-form", STR("GET http://www.example.org/pub/x HTTP/1.1\r\nHost: www.example.org\r\n\r\n"),
	  HTTP_M_GET, "/pub/x", "www.example.org", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 3.2.2 authority wins over Host", STR("GET HTTP://real.example:81/ HTTP/1.1\r\nHost: other\r\n\r\n"),
	  HTTP_M_GET, "/", "real.example:81", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 3.2.1 empty path is /", STR("GET http://a.example HTTP/1.1\r\n" H "\r\n"), HTTP_M_GET, "/", "a.example",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9110 4.2.3 empty path with a query", STR("GET http://a.example?x=1 HTTP/1.1\r\n" H "\r\n"), HTTP_M_GET, "?x=1",
	  "a.example", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 3.2.4 asterisk-form", STR("OPTIONS * HTTP/1.1\r\nHost: www.example.org:8001\r\n\r\n"), HTTP_M_OPTIONS, "*",
	  "www.example.org:8001", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 3.2.4 absolute OPTIONS without path", STR("OPTIONS http://www.example.org:8001 HTTP/1.1\r\nHost: x\r\n\r\n"),
	  HTTP_M_OPTIONS, "*", "www.example.org:8001", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 2.2 a CRLF too many before it", STR("\r\n\r\n" GET H "\r\n"), HTTP_M_GET, "/", "a.example", HTTP_BODY_NONE, 0,
	  true, 0 },
	{ "RFC 9112 9.3 close", STR(GET H "Connection: Foo , CLOSE\r\n\r\n"), HTTP_M_GET, "/", "a.example", HTTP_BODY_NONE, 0,
	  false, 0 },
	{ "RFC 9112 9.3 1.0 closes", STR("GET / HTTP/1.0\r\n\r\n"), HTTP_M_GET, "/", "", HTTP_BODY_NONE, 0, false, 0 },
	{ "RFC 9112 9.3 1.0 keep-alive", STR("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), HTTP_M_GET, "/", "",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9112 9.3 close beats keep-alive", STR(GET H "Connection: keep-alive\r\nConnection: close\r\n\r\n"), HTTP_M_GET, "/",
	  "a.example", HTTP_BODY_NONE, 0, false, 0 },
	{ "RFC 9110 2.5 higher minor version", STR("GET / HTTP/1.9\r\n" H "\r\n"), HTTP_M_GET, "/", "a.example", HTTP_BODY_NONE, 0,
	  true, 0 },
	{ "RFC 9112 6.2", STR("POST / HTTP/1.1\r\n" H "Content-Length: 5\r\n\r\nhello"), HTTP_M_POST, "/", "a.example",
	  HTTP_BODY_LENGTH, 5, true, 5 },
	{ "RFC 9112 6.2 length 0", STR("POST / HTTP/1.1\r\n" H "Content-Length:0\r\n\r\nGET"), HTTP_M_POST, "/", "a.example",
	  HTTP_BODY_LENGTH, 0, true, 3 },
	{ "largest length", STR("PUT / HTTP/1.1\r\n" H "content-LENGTH: \t 9223372036854775807 \t\r\n\r\n"), HTTP_M_PUT, "/",
	  "a.example", HTTP_BODY_LENGTH, INT64_MAX, true, 0 },
	{ "RFC 9112 6.1", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n"), HTTP_M_POST, "/", "a.example",
	  HTTP_BODY_CHUNKED, 0, true, 5 },
	{ "RFC 9110 9.1 any token", STR("!#$%&'*+-.^_`|~09Az / HTTP/1.1\r\n" H "\r\n"), HTTP_M_OTHER, "/", "a.example",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9110 9.1 methods are case-sensitive", STR("get / HTTP/1.1\r\n" H "\r\n"), HTTP_M_OTHER, "/", "a.example",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 3986 3.2.2 IPv6", STR("PATCH / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n"), HTTP_M_PATCH, "/",
	  "[2001:db8::1]:8080", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 3986 3.2.3 empty port", STR("DELETE / HTTP/1.1\r\nHost: a_b.example:\r\n\r\n"), HTTP_M_DELETE, "/", "a_b.example:",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9110 5.5 obs-text and HTAB in a value", STR(GET H "X: \xc3\xa9\tabcdefghijklmnopqrstuvwxyz\xff\r\n\r\n"), HTTP_M_GET, "/",
	  "a.example", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9110 5.5 empty value", STR(GET "X:\r\nY: \r\n" H "\r\n"), HTTP_M_GET, "/", "a.example", HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9110 7.6.2 Max-Forwards on GET means nothing", STR(GET H "Max-Forwards: x\r\n\r\n"), HTTP_M_GET, "/", "a.example",
	  HTTP_BODY_NONE, 0, true, 0 },
	{ "RFC 9110 10.1.1 expectations in 1.0", STR("POST / HTTP/1.0\r\nExpect: nonsense\r\nContent-Length: 1\r\n\r\nx"),
	  HTTP_M_POST, "/", "", HTTP_BODY_LENGTH, 1, false, 1 },
};

static void accepts_what_has_one_reading(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(accepts); i++) {
		const struct accept *t = &accepts[i];
		struct http_verdict v;
		struct http_head h;
		int r;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		r = guard_parse_both(t->source, t->in, -1, &limits, &h, &v);
		if (r != 0)
			fail_msg("%s: %d %s", t->source, r, v.reason ? v.reason : "");
		if (h.method_id != t->method || !str_eqz(h.path, t->path) || !str_eqz(h.host, t->host) || h.framing != t->framing ||
		    h.length != t->length || h.keep_alive != t->keep_alive || h.head_len != t->in.n - t->rest)
			fail_msg("%s: method %d path " STR_FMT " host " STR_FMT " framing %d length %llu keep %d head %zu", t->source,
				 h.method_id, STR_ARG(h.path), STR_ARG(h.host), h.framing, (unsigned long long)h.length,
				 h.keep_alive, h.head_len);
	}
}

static const struct refuse {
	const char *source;
	struct str in;
	int status;
} refuses[] = {
	/* the request line */
	{ "HTTP/0.9", STR("GET /\r\n"), 400 },
	{ "HTTP/0.9 spelled out", STR("GET / HTTP/0.9\r\n" H "\r\n"), 505 },
	{ "RFC 9113 3.4 preface", STR("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505 },
	{ "RFC 9112 2.3 version has one digit", STR("GET / HTTP/1.10\r\n" H "\r\n"), 400 },
	{ "RFC 9112 2.3 version has a dot", STR("GET / HTTP/2\r\n" H "\r\n"), 400 },
	{ "RFC 9112 2.3 HTTP is in capitals", STR("GET / http/1.1\r\n" H "\r\n"), 400 },
	{ "space behind the version", STR("GET / HTTP/1.1 \r\n" H "\r\n"), 400 },
	{ "two spaces before the target", STR("GET  / HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "two spaces before the version", STR("GET /  HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "HTAB for a space", STR("GET\t/ HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "leading space", STR(" GET / HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "space in the target", STR("GET /a b HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "no method", STR("/ HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "method is no token", STR("G{T / HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "method longer than any", STR("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n" H "\r\n"), 501 },
	{ "three CRLFs before it", STR("\r\n\r\n\r\n" GET H "\r\n"), 400 },
	{ "LF before it", STR("\n" GET H "\r\n"), 400 },
	{ "CR before it", STR("\r" GET H "\r\n"), 400 },
	{ "TLS on a plain port", STR("\x16\x03\x01\x02\x00\x01\x00\x01"), 400 },
	{ "bare LF ends the request line", STR("GET / HTTP/1.1\n" H "\r\n"), 400 },
	{ "bare CR in the request line", STR("GET / HTTP/1.1\rX\r\n" H "\r\n"), 400 },
	{ "CVE-2023-45539 fragment", STR("GET /a#b HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "NUL in the target", STR("GET /\0 HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "DEL in the target", STR("GET /\x7f HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "bytes above 127 in the target", STR("GET /\xc3\xa9 HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "target is no form", STR("GET a HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "asterisk is for OPTIONS", STR("GET * HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "unknown scheme", STR("GET ftp://a/ HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "RFC 9110 4.2.1 empty authority", STR("GET http:///x HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "scheme alone", STR("GET http:// HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "RFC 9110 4.2.4 userinfo", STR("GET http://u@a.example/ HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "backslash in the authority", STR("GET http://a\\b/ HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "CONNECT", STR("CONNECT a.example:443 HTTP/1.1\r\n" H "\r\n"), 405 },

	/* Host */
	{ "RFC 9112 3.2 no Host", STR(GET "\r\n"), 400 },
	{ "RFC 9112 3.2 no Host with absolute-form", STR("GET http://a/ HTTP/1.1\r\n\r\n"), 400 },
	{ "RFC 9112 3.2 two Hosts", STR(GET H H "\r\n"), 400 },
	{ "RFC 9112 3.2 two Hosts on 1.0", STR("GET / HTTP/1.0\r\n" H "hOST: b\r\n\r\n"), 400 },
	{ "empty Host", STR(GET "Host:\r\n\r\n"), 400 },
	{ "Host with a path", STR(GET "Host: a/b\r\n\r\n"), 400 },
	{ "Host with userinfo", STR(GET "Host: u@a\r\n\r\n"), 400 },
	{ "Host with a space", STR(GET "Host: a b\r\n\r\n"), 400 },
	{ "Host list", STR(GET "Host: a,b\r\n\r\n"), 400 },
	{ "Host with a bad port", STR(GET "Host: a:8x\r\n\r\n"), 400 },
	{ "Host with a port too large", STR(GET "Host: a:65536\r\n\r\n"), 400 },
	{ "Host with two ports", STR(GET "Host: a:1:2\r\n\r\n"), 400 },
	{ "Host of a port only", STR(GET "Host: :80\r\n\r\n"), 400 },
	{ "Host with a bad escape", STR(GET "Host: a%g0\r\n\r\n"), 400 },
	{ "IPv6 not closed", STR(GET "Host: [::1\r\n\r\n"), 400 },
	{ "IPv6 not one", STR(GET "Host: [::1::2]\r\n\r\n"), 400 },
	{ "IPv6 with something behind", STR(GET "Host: [::1]x\r\n\r\n"), 400 },
	{ "IPv6 empty", STR(GET "Host: []\r\n\r\n"), 400 },
	{ "bad Host beside absolute-form", STR("GET http://a/ HTTP/1.1\r\nHost: b@c\r\n\r\n"), 400 },

	/* names that a gateway in the manner of CGI takes for others */
	{ "RFC 3875 4.1.18 Content_Length", STR("POST / HTTP/1.1\r\n" H "Content_Length: 7\r\n\r\n"), 400 },
	{ "RFC 3875 4.1.18 Transfer_Encoding", STR("POST / HTTP/1.1\r\n" H "TRANSFER_ENCODING: chunked\r\n\r\n"), 400 },
	{ "RFC 3875 4.1.18 X_Forwarded-For", STR(GET H "X_Forwarded-For: 192.0.2.1\r\n\r\n"), 400 },
	{ "RFC 3875 4.1.18 X-Forwarded_Host", STR(GET H "x-forwarded_host: b\r\n\r\n"), 400 },

	/* field lines */
	{ "RFC 9112 5.1 space before the colon", STR(GET H "Content-Length : 5\r\n\r\n"), 400 },
	{ "HTAB before the colon", STR(GET H "Transfer-Encoding\t: chunked\r\n\r\n"), 400 },
	{ "RFC 9112 5.2 obs-fold", STR(GET H "X: a\r\n b\r\n\r\n"), 400 },
	{ "obs-fold with HTAB", STR(GET H "X: a\r\n\tb\r\n\r\n"), 400 },
	{ "folded first line", STR(GET " X: a\r\n" H "\r\n"), 400 },
	{ "folded Transfer-Encoding", STR(GET H "Transfer-Encoding:\r\n chunked\r\n\r\n"), 400 },
	{ "CVE-2023-25725 empty name", STR(GET H ": x\r\n\r\n"), 400 },
	{ "no colon", STR(GET H "garbage\r\n\r\n"), 400 },
	{ "name with a bracket", STR(GET H "X[]: y\r\n\r\n"), 400 },
	{ "name with NUL", STR(GET H "X\0: y\r\n\r\n"), 400 },
	{ "name with obs-text", STR(GET H "X\xe9: y\r\n\r\n"), 400 },
	{ "RFC 9110 5.5 NUL in a value", STR(GET H "X: a\0b\r\n\r\n"), 400 },
	{ "RFC 9110 5.5 CTL in a value", STR(GET H "X: abcdefghijklmnopqrstuvw\x0b\r\n\r\n"), 400 },
	{ "DEL early in a value", STR(GET H "X: ab\x7f" "cdefghijklmnopqrstuvwxyz\r\n\r\n"), 400 },
	{ "CTL early in a value", STR(GET H "X: ab\x1f" "cdefghijklmnopqrstuvwxyz\r\n\r\n"), 400 },
	{ "DEL in a value", STR(GET H "X: abcdefghijklmnopqrstuvwxyz\x7f\r\n\r\n"), 400 },
	{ "RFC 9112 2.2 bare CR in a value", STR(GET H "X: a\rTransfer-Encoding: chunked\r\n\r\n"), 400 },
	{ "bare LF ends a line", STR(GET H "X: a\nY: b\r\n\r\n"), 400 },
	{ "bare LF ends the head", STR(GET H "\n"), 400 },
	{ "CR CR LF", STR(GET H "X: a\r\r\n\r\n"), 400 },
	{ "bare CR ends the head", STR(GET H "\rX"), 400 },

	/* framing */
	{ "RFC 9112 6.1 TE and CL", STR("POST / HTTP/1.1\r\n" H "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"), 400 },
	{ "TE and CL, the other way", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n"), 400 },
	{ "RFC 9112 6.3 differing CLs", STR("POST / HTTP/1.1\r\n" H "Content-Length: 5\r\nContent-Length: 6\r\n\r\n"), 400 },
	{ "equal CLs", STR("POST / HTTP/1.1\r\n" H "Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), 400 },
	{ "CL list", STR("POST / HTTP/1.1\r\n" H "Content-Length: 5, 5\r\n\r\n"), 400 },
	{ "CVE-2023-40225 empty CL", STR("POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\n"), 400 },
	{ "CL with a sign", STR("POST / HTTP/1.1\r\n" H "Content-Length: +5\r\n\r\n"), 400 },
	{ "negative CL", STR("POST / HTTP/1.1\r\n" H "Content-Length: -5\r\n\r\n"), 400 },
	{ "hexadecimal CL", STR("POST / HTTP/1.1\r\n" H "Content-Length: 0x5\r\n\r\n"), 400 },
	{ "CL with an underscore", STR("POST / HTTP/1.1\r\n" H "Content-Length: 1_0\r\n\r\n"), 400 },
	{ "CL with a fraction", STR("POST / HTTP/1.1\r\n" H "Content-Length: 5.0\r\n\r\n"), 400 },
	{ "CL with a space inside", STR("POST / HTTP/1.1\r\n" H "Content-Length: 1 0\r\n\r\n"), 400 },
	{ "CL 2^63", STR("POST / HTTP/1.1\r\n" H "Content-Length: 9223372036854775808\r\n\r\n"), 400 },
	{ "CL 2^64", STR("POST / HTTP/1.1\r\n" H "Content-Length: 18446744073709551616\r\n\r\n"), 400 },
	{ "CL 2^64 + 5", STR("POST / HTTP/1.1\r\n" H "Content-Length: 18446744073709551621\r\n\r\n"), 400 },
	{ "bad CL beside chunked", STR("POST / HTTP/1.1\r\n" H "Content-Length: abc\r\nTransfer-Encoding: chunked\r\n\r\n"), 400 },
	{ "RFC 9112 6.1 TE on 1.0", STR("POST / HTTP/1.0\r\n" H "Transfer-Encoding: chunked\r\n\r\n"), 400 },
	{ "RFC 9112 6.1 unknown coding", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip\r\n\r\n"), 501 },
	{ "gzip before chunked", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n"), 501 },
	{ "TE.TE xchunked", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n"), 501 },
	{ "TE.TE quoted", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: \"chunked\"\r\n\r\n"), 501 },
	{ "TE identity", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: identity\r\n\r\n"), 501 },
	{ "RFC 9112 6.3 chunked not last", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, gzip\r\n\r\n"), 400 },
	{ "TE.TE chunked, identity", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, identity\r\n\r\n"), 400 },
	{ "RFC 9112 7.1 chunked twice", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, chunked\r\n\r\n"), 400 },
	{ "chunked in two lines", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"), 400 },
	{ "TE.TE second line", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n\r\n"), 400 },
	{ "RFC 9112 7.1 chunked with parameters", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked;q=1\r\n\r\n"), 400 },
	{ "empty TE", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n\r\n"), 400 },
	{ "empty element before chunked", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: ,chunked\r\n\r\n"), 400 },
	{ "empty element behind chunked", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked,\r\n\r\n"), 400 },
	{ "VT before chunked", STR("POST / HTTP/1.1\r\n" H "Transfer-Encoding: \x0b" "chunked\r\n\r\n"), 400 },
	{ "RFC 9110 9.3.8 TRACE with a body", STR("TRACE / HTTP/1.1\r\n" H "Content-Length: 1\r\n\r\nx"), 400 },

	/* the rest */
	{ "RFC 9110 10.1.1 unknown expectation", STR(GET H "Expect: 200-ok\r\n\r\n"), 417 },
	{ "two expectations", STR(GET H "Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n"), 417 },
	{ "RFC 9110 7.6.2 bad Max-Forwards", STR("OPTIONS * HTTP/1.1\r\n" H "Max-Forwards: -1\r\n\r\n"), 400 },
};

static void refuses_what_two_could_read_differently(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(refuses); i++) {
		struct http_verdict v;
		struct http_head h;
		int r;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		r = guard_parse_both(refuses[i].source, refuses[i].in, -1, &limits, &h, &v);
		if (r != HTTP_BAD || v.status != refuses[i].status)
			fail_msg("%s: %d %d %s", refuses[i].source, r, v.status, v.reason ? v.reason : "");
	}
}

/* A head of `lines` fields padded to n bytes in all. */
static struct str head_of(size_t n, unsigned lines, char *out)
{
	size_t at = (size_t)sprintf(out, GET H);

	for (unsigned i = 1; i < lines; i++)
		at += (size_t)sprintf(out + at, "F%u: x\r\n", i);
	if (n > at + 6) {
		memcpy(out + at, "P: ", 3);
		memset(out + at + 3, 'p', n - at - 7);
		memcpy(out + n - 4, "\r\n", 2);
		at = n - 2;
	}
	memcpy(out + at, "\r\n", 2);
	return (struct str){ out, at + 2 };
}

static void limits_hold_while_and_after_reading(void **state _unused_)
{
	static char text[8192];
	static const struct {
		size_t bytes;
		unsigned lines;
		struct http_limits limits;
		int status; /* 0: accepted */
	} cases[] = {
		{ 1000, 1, { 1000, 10 }, 0 },  { 1001, 1, { 1000, 10 }, 431 }, { 5000, 1, { 1000, 10 }, 431 },
		{ 0, 10, { 4096, 10 }, 0 },    { 0, 11, { 4096, 10 }, 431 },   { 0, 256, { 8192, 1000 }, 0 },
		{ 0, 257, { 8192, 1000 }, 431 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct str in = head_of(cases[i].bytes, cases[i].lines, text);
		struct http_verdict v;
		struct http_head h;
		int r;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		r = guard_parse_both("limit", in, -1, &cases[i].limits, &h, &v);
		if (r != (cases[i].status ? HTTP_BAD : 0) || (r && v.status != cases[i].status))
			fail_msg("case %zu: %d %d %s", i, r, v.status, v.reason ? v.reason : "");
	}
}

static void a_start_line_without_end_is_414(void **state _unused_)
{
	static char text[3000];
	struct http_limits small = { 2048, 10 };
	struct http_verdict v;
	struct http_head h;

	memset(text, 'a', sizeof(text));
	memcpy(text, "GET /", 5);
	http_head_init(&h, storage, HTTP_FIELDS_MAX);
	assert_int_equal(guard_parse_both("414", (struct str){ text, sizeof(text) }, -1, &small, &h, &v), HTTP_BAD);
	assert_int_equal(v.status, 414);
}

static void connection_options_are_bounded(void **state _unused_)
{
	static char text[4096];
	struct http_verdict v;
	struct http_head h;
	size_t at = (size_t)sprintf(text, GET H "Connection: ");

	for (int i = 0; i < 65; i++)
		at += (size_t)sprintf(text + at, "o%d,", i);
	at += (size_t)sprintf(text + at, "\r\n\r\n");
	http_head_init(&h, storage, HTTP_FIELDS_MAX);
	assert_int_equal(guard_parse_both("options", (struct str){ text, at }, -1, &limits, &h, &v), HTTP_BAD);
	assert_int_equal(v.status, 431);
}

/* What of Upgrade is left for a tunnel: RFC 9110 7.8; h2c never. */
static void upgrade_needs_the_option_and_is_never_h2c(void **state _unused_)
{
	static const struct {
		struct str in;
		const char *upgrade;
	} cases[] = {
		{ STR(GET H "Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), "websocket" },
		{ STR(GET H "Connection: keep-alive, upgrade\r\nUpgrade: a/1, b\r\n\r\n"), "a/1, b" },
		{ STR(GET H "Upgrade: websocket\r\n\r\n"), "" },
		{ STR(GET H "Connection: upgrade\r\n\r\n"), "" },
		{ STR("GET / HTTP/1.0\r\n" H "Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), "" },
		{ STR(GET H "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n\r\n"), "" },
		{ STR(GET H "Upgrade: websocket, H2C\r\nConnection: Upgrade\r\n\r\n"), "" },
		{ STR(GET H "Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"), "" },
		{ STR(GET H "Upgrade:\r\nConnection: Upgrade\r\n\r\n"), "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct http_verdict v;
		struct http_head h;

		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		assert_int_equal(guard_parse_both("upgrade", cases[i].in, -1, &limits, &h, &v), 0);
		if (!str_eqz(h.upgrade, cases[i].upgrade))
			fail_msg("case %zu: '" STR_FMT "'", i, STR_ARG(h.upgrade));
	}
}

static void fields_are_found_and_marked(void **state _unused_)
{
	static const struct str in = STR(GET H "Connection: x-secret, Content-Length, host\r\nX-SECRET: 1\r\nX-Open: 2\r\n"
					     "content-length: 3\r\nTE: deflate, trailers\r\nExpect: 100-Continue\r\n\r\n");
	struct http_verdict v;
	struct http_head h;

	http_head_init(&h, storage, HTTP_FIELDS_MAX);
	assert_int_equal(guard_parse_both("fields", in, -1, &limits, &h, &v), 0);
	assert_int_equal(h.nfields, 7);
	assert_true(http_head_field_named(&h, STR("x-Secret"))->hop);
	assert_false(http_head_field_named(&h, STR("X-Open"))->hop);
	assert_false(http_head_field(&h, HTTP_F_HOST)->hop);
	assert_false(http_head_field(&h, HTTP_F_CONTENT_LENGTH)->hop);
	assert_true(http_head_field(&h, HTTP_F_CONNECTION)->hop);
	assert_null(http_head_field(&h, HTTP_F_VIA));
	assert_null(http_head_field_named(&h, STR("absent")));
	assert_true(h.te_trailers);
	assert_true(h.expect_continue);
}

/* Without this, whoever never ends a line is waited for until a timeout. */
static void junk_in_an_unfinished_line_is_refused_when_it_comes(void **state _unused_)
{
	static const struct str cases[] = { STR("\x01"), STR("\0"), STR("\rx"), STR("\x7f"), STR("abc\x02") };

	for (size_t i = 0; i < ARRAY_SIZE(cases) * 2; i++) {
		static const char start[] = GET H "Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
		bool bytewise = i % 2;
		struct str junk = cases[i / 2];
		char text[sizeof(start) + 8];
		struct http_verdict v = { 0 };
		struct http_head h;
		size_t scan = 0, n = sizeof(start) - 1;
		int r;

		memcpy(text, start, n);
		memcpy(text + n, junk.p, junk.n);
		http_head_init(&h, storage, HTTP_FIELDS_MAX);
		r = http_parse_request(text, n, &scan, &limits, &h, &v);
		assert_int_equal(r, HTTP_MORE);
		for (size_t k = bytewise ? 1 : junk.n; k <= junk.n && r == HTTP_MORE; k++)
			r = http_parse_request(text, n + k, &scan, &limits, &h, &v);
		if (r != HTTP_BAD || v.status != 400)
			fail_msg("case %zu: %d %d", i, r, v.status);
	}
}

static void hosts_are_told_from_what_looks_like_them(void **state _unused_)
{
	static const struct {
		struct str host;
		bool valid;
	} cases[] = {
		{ STR("a"), true }, { STR("a.b-c_d~e:80"), true }, { STR("%41.example"), true }, { STR("192.0.2.1"), true },
		{ STR("[::]"), true }, { STR("[::ffff:192.0.2.1]:1"), true }, { STR(""), false }, { STR("[::1\0]"), false },
		{ STR("[fe80::1%25eth0]"), false }, { STR("[v1.a]"), false }, { STR("a:-1"), false }, { STR("a%4"), false },
		{ STR("\xc3\xa9"), false }, { STR("a?b"), false }, { STR("a:000080"), false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		if (http_host_is_valid(cases[i].host) != cases[i].valid)
			fail_msg("'" STR_FMT "'", STR_ARG(cases[i].host));
}

static void field_names_are_known_in_any_case(void **state _unused_)
{
	static const struct {
		struct str name;
		enum http_field_id id;
	} cases[] = {
		{ STR("Host"), HTTP_F_HOST }, { STR("CONNECTION"), HTTP_F_CONNECTION }, { STR("content-length"), HTTP_F_CONTENT_LENGTH },
		{ STR("Transfer-Encoding"), HTTP_F_TRANSFER_ENCODING }, { STR("Keep-Alive"), HTTP_F_KEEP_ALIVE },
		{ STR("proxy-Connection"), HTTP_F_PROXY_CONNECTION }, { STR("UPGRADE"), HTTP_F_UPGRADE },
		{ STR("HTTP2-Settings"), HTTP_F_HTTP2_SETTINGS }, { STR("TE"), HTTP_F_TE }, { STR("Trailer"), HTTP_F_TRAILER },
		{ STR("Expect"), HTTP_F_EXPECT }, { STR("Max-Forwards"), HTTP_F_MAX_FORWARDS }, { STR("Via"), HTTP_F_VIA },
		{ STR("X-Forwarded-For"), HTTP_F_X_FORWARDED_FOR }, { STR("X-Forwarded-Proto"), HTTP_F_X_FORWARDED_PROTO },
		{ STR("X-Forwarded-Host"), HTTP_F_X_FORWARDED_HOST }, { STR("Cookie"), HTTP_F_COOKIE },
		{ STR("User-Agent"), HTTP_F_USER_AGENT }, { STR("Referer"), HTTP_F_REFERER }, { STR("Date"), HTTP_F_DATE },
		{ STR("Server"), HTTP_F_SERVER }, { STR("Content-Type"), HTTP_F_CONTENT_TYPE },
		{ STR("Content-Encoding"), HTTP_F_CONTENT_ENCODING }, { STR("Authorization"), HTTP_F_AUTHORIZATION },
		{ STR("Proxy-Authorization"), HTTP_F_PROXY_AUTHORIZATION }, { STR("Proxy-Authenticate"), HTTP_F_PROXY_AUTHENTICATE },
		{ STR("Set-Cookie"), HTTP_F_SET_COOKIE }, { STR("Content_Length"), HTTP_F_OTHER }, { STR("Hosts"), HTTP_F_OTHER },
		{ STR("Transfer-Encodinh"), HTTP_F_OTHER }, { STR("x"), HTTP_F_OTHER }, { STR("Content-Lengt~"), HTTP_F_OTHER },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		if (http_field_id(cases[i].name) != cases[i].id)
			fail_msg(STR_FMT ": %d", STR_ARG(cases[i].name), http_field_id(cases[i].name));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(accepts_what_has_one_reading),
		cmocka_unit_test(refuses_what_two_could_read_differently),
		cmocka_unit_test(limits_hold_while_and_after_reading),
		cmocka_unit_test(a_start_line_without_end_is_414),
		cmocka_unit_test(connection_options_are_bounded),
		cmocka_unit_test(upgrade_needs_the_option_and_is_never_h2c),
		cmocka_unit_test(fields_are_found_and_marked),
		cmocka_unit_test(junk_in_an_unfinished_line_is_refused_when_it_comes),
		cmocka_unit_test(hosts_are_told_from_what_looks_like_them),
		cmocka_unit_test(field_names_are_known_in_any_case),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
