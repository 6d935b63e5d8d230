/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a response: whole and in pieces agree, and what is written to the client has the same body. */
#include "http_fuzz.h"

static void written_means_the_same(const struct http_head *h, enum http_method method, uint8_t options)
{
	struct http_rewrite_response rw = {
		.client_minor = options & 1, .close = options & 2, .upgrade = options & 4, .via = options & 8 ? STR("1.1 sluice") : STR_NONE,
	};
	struct http_limits wide = { .head_bytes = 65536, .fields = HTTP_FIELDS_MAX };
	static struct http_field storage[HTTP_FIELDS_MAX];
	enum http_framing want = h->framing == HTTP_BODY_CHUNKED && !rw.client_minor ? HTTP_BODY_CLOSE : h->framing;
	struct http_verdict v;
	struct http_head again;
	struct buf out = BUF_INIT;
	size_t scan = 0;

	MUST(http_write_response(&out, h, &rw) == 0);
	http_head_init(&again, storage, HTTP_FIELDS_MAX);
	MUST(http_parse_response(buf_data(&out), out.len, &scan, &wide, method, &again, &v) == 0);
	MUST(again.head_len == out.len && again.framing == want && again.status == h->status);
	if (h->framing != HTTP_BODY_CHUNKED)
		MUST(again.length == h->length);
	if (h->status >= 200)
		MUST(again.keep_alive == !(rw.close || http_response_ends_by_close(h, rw.client_minor)));
	MUST(!http_head_field(&again, HTTP_F_KEEP_ALIVE) && !http_head_field(&again, HTTP_F_PROXY_CONNECTION));
	MUST(!http_head_field(&again, HTTP_F_UPGRADE) || (h->status == 101 && rw.upgrade));
	buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct http_field storage[HTTP_FIELDS_MAX];
	struct http_verdict v = { 0 }, pieces_v = { 0 };
	enum http_method method;
	struct http_head h;
	size_t scan = 0, len;
	uint8_t options;
	char *p;
	int r, pieces = HTTP_MORE;

	if (n < 1)
		return 0;
	options = data[0];
	method = options & 16 ? HTTP_M_HEAD : HTTP_M_GET;
	n--;
	p = malloc(n ? n : 1);
	MUST(p);
	memcpy(p, data + 1, n);
	http_head_init(&h, storage, HTTP_FIELDS_MAX);
	for (size_t have = 0; have <= n && pieces == HTTP_MORE; have += 1 + (options >> 5)) {
		pieces = http_parse_response(p, have, &scan, &fuzz_limits, method, &h, &pieces_v);
		MUST(scan <= have);
	}
	if (pieces == HTTP_MORE)
		pieces = http_parse_response(p, n, &scan, &fuzz_limits, method, &h, &pieces_v);
	len = h.head_len;
	scan = 0;
	r = http_parse_response(p, n, &scan, &fuzz_limits, method, &h, &v);
	MUST(r == 0 || r == HTTP_MORE || r == HTTP_BAD);
	MUST((r == 0) == (pieces == 0));
	if (r == HTTP_BAD)
		MUST(v.status == 502 && v.reason);
	if (pieces == HTTP_BAD)
		MUST(r == HTTP_BAD);
	if (r == 0) {
		MUST(h.head_len == len);
		must_be_sound(&h, p, n);
		MUST(h.status >= 100 && h.status <= 999);
		MUST(h.framing != HTTP_BODY_CLOSE || !h.keep_alive);
		written_means_the_same(&h, method, options);
	}
	free(p);
	return 0;
}
