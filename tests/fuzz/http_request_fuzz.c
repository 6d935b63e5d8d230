/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a request: whole and in pieces agree, and what is written upstream has the same one reading. */
#include "http_fuzz.h"

static void written_means_the_same(const struct http_head *h, uint8_t options)
{
	struct http_rewrite rw = {
		.client_ip = STR("192.0.2.1"), .proto = STR("http"), .via = STR("1.1 sluice"), .host = options & 1 ? STR("b") : STR_NONE,
		.xff = options & 2, .xfp = options & 4, .xfh = options & 8, .pass_upgrade = options & 16, .close = options & 32,
		.drop_expect = options & 64,
	};
	struct http_limits wide = { .head_bytes = 65536, .fields = HTTP_FIELDS_MAX };
	static struct http_field storage[HTTP_FIELDS_MAX];
	struct http_verdict v;
	struct http_head again;
	struct buf out = BUF_INIT;
	size_t scan = 0;

	MUST(http_write_request(&out, h, &rw) == 0);
	http_head_init(&again, storage, HTTP_FIELDS_MAX);
	/* A 1.0 request may have no host at all; then the empty Host is what RFC 9112 3.2 asks for, and what we refuse. */
	if (h->host.n || rw.host.n) {
		MUST(http_parse_request(buf_data(&out), out.len, &scan, &wide, &again, &v) == 0);
		MUST(again.head_len == out.len && again.framing == h->framing && again.length == h->length);
		MUST(str_eq(again.method, h->method) && str_eq(again.host, rw.host.n ? rw.host : h->host));
		MUST(again.keep_alive == !rw.close && again.minor == 1);
		MUST(str_eq(again.upgrade, rw.pass_upgrade ? h->upgrade : STR_NONE) || (!h->upgrade.n && !again.upgrade.n));
		MUST(again.expect_continue == false || h->expect_continue);
		MUST(again.te_trailers == h->te_trailers);
		MUST(!http_head_field(&again, HTTP_F_HTTP2_SETTINGS) && !http_head_field(&again, HTTP_F_KEEP_ALIVE));
	}
	buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct http_field storage[HTTP_FIELDS_MAX];
	struct http_verdict v = { 0 }, pieces_v = { 0 };
	struct http_head h;
	size_t scan = 0, len;
	uint8_t options;
	char *p;
	int r, pieces = HTTP_MORE;

	if (n < 1)
		return 0;
	options = data[0];
	n--;
	/* A copy of its own size, so that the sanitizer sees a byte too far. */
	p = malloc(n ? n : 1);
	MUST(p);
	memcpy(p, data + 1, n);
	http_head_init(&h, storage, HTTP_FIELDS_MAX);
	for (size_t have = 0; have <= n && pieces == HTTP_MORE; have += 1 + options % 7u) {
		pieces = http_parse_request(p, have, &scan, &fuzz_limits, &h, &pieces_v);
		MUST(scan <= have);
	}
	if (pieces == HTTP_MORE)
		pieces = http_parse_request(p, n, &scan, &fuzz_limits, &h, &pieces_v);
	len = h.head_len;
	scan = 0;
	r = http_parse_request(p, n, &scan, &fuzz_limits, &h, &v);
	MUST(r == 0 || r == HTTP_MORE || r == HTTP_BAD);
	MUST((r == 0) == (pieces == 0));
	if (r == HTTP_BAD)
		MUST(v.status >= 400 && v.status <= 505 && v.reason);
	if (pieces == HTTP_BAD)
		MUST(r == HTTP_BAD);
	if (r == 0) {
		MUST(h.head_len == len);
		must_be_sound(&h, p, n);
		MUST(h.framing != HTTP_BODY_CLOSE && h.method.n > 0 && h.target.n > 0);
		written_means_the_same(&h, options);
	}
	free(p);
	return 0;
}
