/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of parsers: bytes placed so that they end where a page begins that
 * nobody may touch. Reading one byte too far is a crash, in every build.
 */
#pragma once
#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include "http/http.h"

#define GUARD_BYTES (128u * 1024u)

/* The copy is good until the next call. */
static inline char *guard_place(const char *bytes, size_t n)
{
	static char *area;

	if (!area) {
		area = mmap(NULL, GUARD_BYTES + (size_t)getpagesize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_true(area != MAP_FAILED);
		assert_int_equal(mprotect(area + GUARD_BYTES, (size_t)getpagesize(), PROT_NONE), 0);
	}
	assert_true(n <= GUARD_BYTES);
	if (n)
		memcpy(area + GUARD_BYTES - n, bytes, n);
	return area + GUARD_BYTES - n;
}

/* Parses p[0..n) as a request (method < 0) or as the response to that method. */
static inline int guard_parse(const char *p, size_t n, int method, size_t *scan, const struct http_limits *limits,
			      struct http_head *head, struct http_verdict *v)
{
	return method < 0 ? http_parse_request(p, n, scan, limits, head, v) :
			    http_parse_response(p, n, scan, limits, (enum http_method)method, head, v);
}

/*
 * Parses whole and byte by byte, both against the guard page, and wants the
 * same from both. Returns what the parser did; the head points into the guard area.
 */
static inline int guard_parse_both(const char *name, struct str in, int method, const struct http_limits *limits,
				   struct http_head *head, struct http_verdict *v)
{
	struct http_verdict slow_v = { 0 };
	size_t scan = 0, slow_len = 0, slow_scan = 0;
	int r, slow = HTTP_MORE;

	for (size_t n = 0; n <= in.n && slow == HTTP_MORE; n++) {
		slow = guard_parse(guard_place(in.p, n), n, method, &slow_scan, limits, head, &slow_v);
		slow_len = head->head_len;
		if (slow == 0 && slow_len != n)
			fail_msg("%s: complete after %zu bytes, but says %zu", name, n, slow_len);
	}
	*v = (struct http_verdict){ 0 };
	r = guard_parse(guard_place(in.p, in.n), in.n, method, &scan, limits, head, v);
	if (r != slow || v->status != slow_v.status || (r == 0 && head->head_len != slow_len))
		fail_msg("%s: whole gives %d %d %s, byte by byte %d %d %s", name, r, v->status, v->reason ? v->reason : "",
			 slow, slow_v.status, slow_v.reason ? slow_v.reason : "");
	if (r == HTTP_BAD)
		assert_non_null(v->reason);
	return r;
}
