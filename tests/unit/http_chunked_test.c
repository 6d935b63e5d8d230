/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunked filter: what comes out of it, whole, split at every point and at
 * random, with and without framing, and with the kernel taking part of the data.
 */
#include <stdlib.h>
#include "http_guard.h"

#define TRAILER_BYTES 64u

static const struct good {
	const char *source;
	struct str in;
	struct str framed, data;
	size_t rest;
} goods[] = {
	{ "RFC 9112 7.1", STR("4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n"), STR("4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n"), STR("Wikipedia"), 0 },
	{ "empty", STR("0\r\n\r\n"), STR("0\r\n\r\n"), STR(""), 0 },
	{ "pipelined behind it", STR("1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n"), STR("1\r\nx\r\n0\r\n\r\n"), STR("x"), 16 },
	{ "hex in both cases, leading zeros", STR("00a\r\n0123456789\r\n0B\r\n0123456789a\r\n000\r\n\r\n"),
	  STR("00a\r\n0123456789\r\n0B\r\n0123456789a\r\n000\r\n\r\n"), STR("01234567890123456789a"), 0 },
	{ "RFC 9112 7.1.1 extensions go", STR("4;a=b;c=\"d;e\"\r\nWiki\r\n0;last\r\n\r\n"), STR("4\r\nWiki\r\n0\r\n\r\n"), STR("Wiki"), 0 },
	{ "RFC 9112 7.1.2 trailers", STR("1\r\nx\r\n0\r\nExpires: soon\r\nX-Sum:\r\n\r\n"),
	  STR("1\r\nx\r\n0\r\nExpires: soon\r\nX-Sum:\r\n\r\n"), STR("x"), 0 },
	{ "trailer with a name longer than any known", STR("0\r\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA: 1\r\n\r\n"),
	  STR("0\r\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA: 1\r\n\r\n"), STR(""), 0 },
	{ "trailers as large as allowed", STR("0\r\nA: 01234567890123456789012345678901234567890123456789012345678\r\n\r\n"),
	  STR("0\r\nA: 01234567890123456789012345678901234567890123456789012345678\r\n\r\n"), STR(""), 0 },
	{ "CRLF and digits in the data", STR("7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), STR("7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), STR("\r\n0\r\n\r\n"), 0 },
};

static const struct bad {
	const char *source;
	struct str in;
} bads[] = {
	{ "no size", STR("\r\nx") },
	{ "space before the size", STR(" 1\r\nx\r\n0\r\n\r\n") },
	{ "space behind the size", STR("1 \r\nx\r\n0\r\n\r\n") },
	{ "RFC 9112 7.1.1 BWS before an extension", STR("1 ;a\r\nx\r\n0\r\n\r\n") },
	{ "HTAB behind the size", STR("1\t\r\nx\r\n0\r\n\r\n") },
	{ "0x", STR("0x1\r\nx\r\n0\r\n\r\n") },
	{ "sign", STR("+1\r\nx\r\n0\r\n\r\n") },
	{ "minus", STR("-1\r\nx\r\n0\r\n\r\n") },
	{ "underscore", STR("1_0\r\nx\r\n0\r\n\r\n") },
	{ "not hex", STR("g\r\nx\r\n0\r\n\r\n") },
	{ "2^63", STR("8000000000000000\r\n") },
	{ "2^64 + 1", STR("10000000000000001\r\nx\r\n0\r\n\r\n") },
	{ "CVE-2021-40346 in hex", STR("fffffffffffffffff\r\n") },
	{ "extension without name", STR("1;\r\nx\r\n0\r\n\r\n") },
	{ "BWS before an extension's name", STR("1; a\r\nx\r\n0\r\n\r\n") },
	{ "TERM.EXT bare LF in an extension", STR("1;a\nx\r\n0\r\n\r\n") },
	{ "EXT.TERM bare CR in an extension", STR("1;a\rx\r\n0\r\n\r\n") },
	{ "NUL in an extension", STR("1;a\0\r\nx\r\n0\r\n\r\n") },
	{ "bare LF behind the size", STR("1\nx\r\n0\r\n\r\n") },
	{ "bare CR behind the size", STR("1\rx\r\n0\r\n\r\n") },
	{ "bare LF behind the data", STR("1\r\nx\n0\r\n\r\n") },
	{ "bare CR behind the data", STR("1\r\nx\rx0\r\n\r\n") },
	{ "data longer than said", STR("1\r\nxy\r\n0\r\n\r\n") },
	{ "data shorter than said", STR("2\r\nx\r\n0\r\n\r\n") },
	{ "two bytes for the CRLF, whichever", STR("1\r\nxZZ0\r\n\r\n") },
	{ "bare LF ends the body", STR("0\r\n\n") },
	{ "bare LF behind the last size", STR("0\n\r\n") },
	{ "bare CR ends the body", STR("0\r\n\rx") },
	{ "RFC 9112 6.5.1 Content-Length", STR("0\r\nContent-Length: 5\r\n\r\n") },
	{ "Transfer-Encoding", STR("0\r\ntransfer-ENCODING: chunked\r\n\r\n") },
	{ "Host", STR("0\r\nA: b\r\nHost: a\r\n\r\n") },
	{ "Connection", STR("0\r\nConnection: close\r\n\r\n") },
	{ "Trailer", STR("0\r\nTrailer: a\r\n\r\n") },
	{ "Authorization", STR("0\r\nAuthorization: a\r\n\r\n") },
	{ "Set-Cookie", STR("0\r\nSet-Cookie: a\r\n\r\n") },
	{ "Proxy-Authorization, the longest", STR("0\r\nProxy-Authorization: a\r\n\r\n") },
	{ "space before the colon of a trailer", STR("0\r\nContent-Length : 5\r\n\r\n") },
	{ "folded trailer", STR("0\r\nA: b\r\n c\r\n\r\n") },
	{ "trailer without name", STR("0\r\n: b\r\n\r\n") },
	{ "trailer without colon", STR("0\r\nab\r\n\r\n") },
	{ "request line for a trailer", STR("0\r\nGET / HTTP/1.1\r\n\r\n") },
	{ "bare LF in trailers", STR("0\r\nA: b\n\r\n") },
	{ "bare CR in trailers", STR("0\r\nA: b\rc\r\n\r\n") },
	{ "NUL in trailers", STR("0\r\nA: \0\r\n\r\n") },
	{ "trailers too large", STR("0\r\nA: 012345678901234567890123456789012345678901234567890123456789\r\n\r\n") },
};

/* What a run of the filter over pieces of some input gave. */
struct run {
	int r;
	size_t n, consumed;
	char out[65536];
};

/* Feeds pieces of the lengths that next() says (0: all the rest), each flush against the guard page. */
static void run_pieces(struct run *run, struct str in, bool framed, size_t (*next)(void *), void *arg)
{
	struct http_chunked c;
	struct http_verdict v;

	*run = (struct run){ .r = HTTP_MORE };
	http_chunked_init(&c, framed, TRAILER_BYTES);
	while (run->r == HTTP_MORE && run->consumed < in.n) {
		size_t want = next(arg), left = in.n - run->consumed, n = want && want < left ? want : left, used, kept;
		char *p = guard_place(in.p + run->consumed, n);

		run->r = http_chunked_filter(&c, p, n, &used, &kept, &v);
		assert_true(used <= n && kept <= used);
		assert_true(run->r != HTTP_MORE || used == n);
		assert_true(run->r != HTTP_BAD || kept == 0);
		assert_memory_equal(p + used, in.p + run->consumed + used, n - used);
		memcpy(run->out + run->n, p, kept);
		run->n += kept;
		run->consumed += used;
	}
}

static size_t all_the_rest(void *arg _unused_)
{
	return 0;
}

static size_t one(void *arg _unused_)
{
	return 1;
}

/* First this many bytes, then the rest. */
static size_t once(void *arg)
{
	size_t *first = arg, n = *first;

	*first = 0;
	return n;
}

static size_t at_random(void *arg)
{
	return 1 + rand_next(arg) % 9;
}

static void expect(const struct run *run, const struct good *t, bool framed, const char *how)
{
	struct str want = framed ? t->framed : t->data;

	if (run->r != 0 || run->consumed != t->in.n - t->rest || run->n != want.n || memcmp(run->out, want.p, want.n) != 0)
		fail_msg("%s, %s, framed %d: %d, %zu used, '%.*s'", t->source, how, framed, run->r, run->consumed, (int)run->n,
			 run->out);
}

static void output_does_not_depend_on_the_splits(void **state _unused_)
{
	static struct run run;
	uint64_t seed = 1;

	for (size_t i = 0; i < ARRAY_SIZE(goods) * 2; i++) {
		const struct good *t = &goods[i / 2];
		bool framed = i % 2;

		run_pieces(&run, t->in, framed, all_the_rest, NULL);
		expect(&run, t, framed, "whole");
		run_pieces(&run, t->in, framed, one, NULL);
		expect(&run, t, framed, "byte by byte");
		for (size_t at = 1; at < t->in.n; at++) {
			size_t first = at;

			run_pieces(&run, t->in, framed, once, &first);
			expect(&run, t, framed, "split in two");
		}
		for (int k = 0; k < 50; k++) {
			run_pieces(&run, t->in, framed, at_random, &seed);
			expect(&run, t, framed, "at random");
		}
	}
}

static void what_two_could_read_differently_is_refused(void **state _unused_)
{
	static struct run run;

	for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
		run_pieces(&run, bads[i].in, true, all_the_rest, NULL);
		if (run.r != HTTP_BAD)
			fail_msg("%s: %d", bads[i].source, run.r);
		for (size_t at = 1; at < bads[i].in.n; at++) {
			size_t first = at;

			run_pieces(&run, bads[i].in, at % 2, once, &first);
			if (run.r != HTTP_BAD)
				fail_msg("%s, split at %zu: %d", bads[i].source, at, run.r);
		}
	}
}

/* Large random bodies: chunks of any size, extensions here and there, against a model that knows the data. */
static void random_bodies_come_out_right(void **state _unused_)
{
	static struct run run;
	static char in[65536], framed[65536], data[65536];
	uint64_t seed = 42;

	for (int k = 0; k < 200; k++) {
		size_t n = 0, nf = 0, nd = 0;
		unsigned chunks = (unsigned)(rand_next(&seed) % 20);

		for (unsigned i = 0; i < chunks; i++) {
			size_t len = 1 + (size_t)(rand_next(&seed) % (i % 5 ? 40 : 2000));
			bool ext = rand_next(&seed) % 3 == 0;

			n += (size_t)sprintf(in + n, "%zx%s\r\n", len, ext ? ";x=\"y\"" : "");
			nf += (size_t)sprintf(framed + nf, "%zx\r\n", len);
			for (size_t j = 0; j < len; j++)
				in[n++] = framed[nf++] = data[nd++] = (char)rand_next(&seed);
			n += (size_t)sprintf(in + n, "\r\n");
			nf += (size_t)sprintf(framed + nf, "\r\n");
		}
		n += (size_t)sprintf(in + n, "0;e\r\n\r\nNEXT");
		nf += (size_t)sprintf(framed + nf, "0\r\n\r\n");
		for (int f = 0; f < 2; f++) {
			struct good t = { "random", { in, n }, { framed, nf }, { data, nd }, 4 };

			run_pieces(&run, t.in, f, all_the_rest, NULL);
			expect(&run, &t, f, "whole");
			run_pieces(&run, t.in, f, at_random, &seed);
			expect(&run, &t, f, "at random");
		}
	}
}

static void data_may_pass_outside_of_the_filter(void **state _unused_)
{
	struct http_verdict v;
	struct http_chunked c;
	size_t used, kept;
	char head[] = "a\r\n01", tail[] = "9\r\n0\r\n\r\n";

	http_chunked_init(&c, true, 0);
	assert_int_equal(http_chunked_data_left(&c), 0);
	assert_int_equal(http_chunked_filter(&c, head, 5, &used, &kept, &v), HTTP_MORE);
	assert_int_equal(http_chunked_data_left(&c), 8);
	http_chunked_advance(&c, 0);
	http_chunked_advance(&c, 7);
	assert_int_equal(http_chunked_data_left(&c), 1);
	assert_int_equal(http_chunked_filter(&c, tail, 8, &used, &kept, &v), 0);
	assert_int_equal(kept, 8);
	assert_int_equal(c.data_total, 10);
}

static void a_chunk_may_end_outside_of_the_filter(void **state _unused_)
{
	struct http_verdict v;
	struct http_chunked c;
	size_t used, kept;
	char head[] = "7fffffffffffffff\r\n", tail[] = "\r\n0\r\n\r\n";

	http_chunked_init(&c, false, 0);
	assert_int_equal(http_chunked_filter(&c, head, 18, &used, &kept, &v), HTTP_MORE);
	assert_int_equal(http_chunked_data_left(&c), INT64_MAX);
	http_chunked_advance(&c, INT64_MAX);
	assert_int_equal(http_chunked_data_left(&c), 0);
	assert_int_equal(http_chunked_filter(&c, tail, 7, &used, &kept, &v), 0);
	assert_int_equal(kept, 0);
}

/* Moving is what costs: without anything to leave out, the filter must not write. */
static void memory_is_left_alone_when_nothing_is_dropped(void **state _unused_)
{
	static const char body[] = "5\r\nhello\r\n0\r\nA: b\r\n\r\n";
	char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct http_verdict v;
	struct http_chunked c;
	size_t used, kept;

	assert_true(p != MAP_FAILED);
	memcpy(p, body, sizeof(body));
	assert_int_equal(mprotect(p, 4096, PROT_READ), 0);
	http_chunked_init(&c, true, 100);
	assert_int_equal(http_chunked_filter(&c, p, sizeof(body) - 1, &used, &kept, &v), 0);
	assert_int_equal(kept, sizeof(body) - 1);
	munmap(p, 4096);
}

static void chunk_lines_are_bounded(void **state _unused_)
{
	static const char fill[] = { '0', 'e' };

	for (size_t k = 0; k < ARRAY_SIZE(fill); k++) {
		struct http_verdict v;
		struct http_chunked c;
		size_t used, kept;
		char line[300] = "1;";

		memset(line + (k ? 2 : 0), fill[k], sizeof(line) - 2);
		http_chunked_init(&c, true, 0);
		assert_int_equal(http_chunked_filter(&c, line, sizeof(line), &used, &kept, &v), HTTP_BAD);
		assert_int_equal(used, 256);
		assert_int_equal(http_chunked_filter(&c, line, 1, &used, &kept, &v), HTTP_BAD);
	}
}

static void a_refused_body_stays_refused(void **state _unused_)
{
	struct http_verdict v;
	struct http_chunked c;
	size_t used, kept;
	char bad[] = "z", good[] = "0\r\n\r\n";

	http_chunked_init(&c, true, 0);
	assert_int_equal(http_chunked_filter(&c, bad, 1, &used, &kept, &v), HTTP_BAD);
	assert_int_equal(http_chunked_filter(&c, good, 5, &used, &kept, &v), HTTP_BAD);
	assert_int_equal(kept, 0);
	assert_int_equal(used, 0);
}

static void a_complete_body_takes_no_more(void **state _unused_)
{
	struct http_verdict v;
	struct http_chunked c;
	size_t used, kept;
	char body[] = "0\r\n\r\n";

	http_chunked_init(&c, true, 0);
	assert_int_equal(http_chunked_filter(&c, body, 5, &used, &kept, &v), 0);
	assert_int_equal(http_chunked_filter(&c, body, 5, &used, &kept, &v), 0);
	assert_int_equal(used, 0);
	assert_int_equal(kept, 0);
}

/* CVE-2023-39326: one byte of data for hundreds of bytes of extension. */
static void extensions_without_data_do_not_go_on_for_ever(void **state _unused_)
{
	struct http_verdict v;
	struct http_chunked c;
	int r = HTTP_MORE, chunks = 0;

	http_chunked_init(&c, true, 0);
	for (; r == HTTP_MORE && chunks < 1000; chunks++) {
		char chunk[206] = "1;";
		size_t used, kept;

		memset(chunk + 2, 'e', 199);
		memcpy(chunk + 201, "\r\nx\r\n", 5);
		r = http_chunked_filter(&c, chunk, sizeof(chunk), &used, &kept, &v);
	}
	assert_int_equal(r, HTTP_BAD);
	assert_in_range(chunks, 80, 90);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(output_does_not_depend_on_the_splits),
		cmocka_unit_test(what_two_could_read_differently_is_refused),
		cmocka_unit_test(random_bodies_come_out_right),
		cmocka_unit_test(data_may_pass_outside_of_the_filter),
		cmocka_unit_test(a_chunk_may_end_outside_of_the_filter),
		cmocka_unit_test(memory_is_left_alone_when_nothing_is_dropped),
		cmocka_unit_test(chunk_lines_are_bounded),
		cmocka_unit_test(a_refused_body_stays_refused),
		cmocka_unit_test(a_complete_body_takes_no_more),
		cmocka_unit_test(extensions_without_data_do_not_go_on_for_ever),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
