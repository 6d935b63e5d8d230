/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a chunked body: whole, and in pieces that the input itself
 * chooses with some of the data going round the filter, must give the same
 * bytes; and what comes out must be a chunked body that passes unchanged.
 */
#include "http_fuzz.h"

#define TRAILER_BYTES 512u

struct result {
	int r;
	size_t used, n;
	uint64_t data_total;
	char *out;
};

static struct result filter(const char *in, size_t n, bool framed, uint64_t seed)
{
	struct result res = { .r = HTTP_MORE, .out = malloc(n ? n : 1) };
	struct http_chunked c;
	struct http_verdict v = { 0 };

	MUST(res.out);
	http_chunked_init(&c, framed, TRAILER_BYTES);
	while (res.r == HTTP_MORE && res.used < n) {
		uint64_t round = http_chunked_data_left(&c);
		size_t left = n - res.used, piece = seed ? 1 + (size_t)(rand_next(&seed) % 20) : left, used, kept;
		char *p;

		if (seed && round && rand_next(&seed) % 2) {
			size_t skip = (size_t)MIN_OF(round, (uint64_t)MIN_OF(piece, left));

			memcpy(res.out + res.n, in + res.used, skip);
			http_chunked_advance(&c, skip);
			res.n += skip;
			res.used += skip;
			continue;
		}
		piece = MIN_OF(piece, left);
		p = malloc(piece);
		MUST(p);
		memcpy(p, in + res.used, piece);
		res.r = http_chunked_filter(&c, p, piece, &used, &kept, &v);
		MUST(used <= piece && kept <= used);
		MUST(res.r != HTTP_MORE || used == piece);
		MUST(memcmp(p + used, in + res.used + used, piece - used) == 0);
		if (res.r == HTTP_BAD)
			MUST(kept == 0 && v.status == 400 && v.reason);
		memcpy(res.out + res.n, p, kept);
		res.n += kept;
		res.used += used;
		free(p);
	}
	res.data_total = c.data_total;
	return res;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct result whole, pieces, again;
	const char *in = (const char *)data + 2;
	uint64_t seed;
	bool framed;

	if (n < 2)
		return 0;
	seed = 1 + data[0] * 2654435761u;
	framed = data[1] & 1;
	n -= 2;
	whole = filter(in, n, framed, 0);
	pieces = filter(in, n, framed, seed);
	MUST(whole.r == pieces.r);
	if (whole.r != HTTP_BAD) {
		MUST(whole.used == pieces.used && whole.n == pieces.n && whole.data_total == pieces.data_total);
		MUST(memcmp(whole.out, pieces.out, whole.n) == 0);
		if (!framed)
			MUST(whole.n == whole.data_total);
	}
	if (whole.r != HTTP_BAD && framed) {
		again = filter(whole.out, whole.n, true, 0);
		MUST(again.r == whole.r && again.n == whole.n && again.data_total == whole.data_total);
		MUST(memcmp(again.out, whole.out, whole.n) == 0);
		free(again.out);
	}
	free(whole.out);
	free(pieces.out);
	return 0;
}
