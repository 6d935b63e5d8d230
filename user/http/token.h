/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The alphabet of HTTP/1.x, inside the room only: which byte may stand where,
 * and spans over such bytes. One table, one bit per class.
 */
#pragma once
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#include "http/http.h"

enum {
	CH_TOKEN = 1,	/* RFC 9110 5.6.2 tchar */
	CH_VALUE = 2,	/* inside a field value or reason phrase: HTAB, SP, VCHAR, obs-text */
	CH_TARGET = 4,	/* inside a request target: VCHAR without '#' */
	CH_REGNAME = 8, /* a host name's bytes: unreserved, sub-delims without ',', '%' */
	CH_HEX = 16,
	CH_DIGIT = 32,
};

extern const uint8_t http_char[256];

static inline bool ch_is(char c, int class)
{
	return http_char[(uint8_t)c] & class;
}

/* Length of the longest prefix of p[0..n) made of that class. */
static inline size_t span_of(const char *p, size_t n, int class)
{
	size_t i = 0;

	while (i < n && ch_is(p[i], class))
		i++;
	return i;
}

/* span_of(…, CH_VALUE), sixteen bytes at a time: field values are most of a head. */
static inline size_t span_value(const char *p, size_t n)
{
	size_t i = 0;
#if defined(__SSE2__)
	const __m128i ctl_max = _mm_set1_epi8(0x1f), del = _mm_set1_epi8(0x7f);

	while (n - i >= 16) {
		__m128i v = _mm_loadu_si128((const __m128i *)(const void *)(p + i));
		__m128i bad = _mm_or_si128(_mm_cmpeq_epi8(_mm_min_epu8(v, ctl_max), v), _mm_cmpeq_epi8(v, del));
		unsigned mask = (unsigned)_mm_movemask_epi8(bad);

		if (!mask) {
			i += 16;
			continue;
		}
		i += (unsigned)__builtin_ctz(mask);
		if (p[i] != '\t')
			return i;
		i++;
	}
#endif
	return i + span_of(p + i, n - i, CH_VALUE);
}

/*
 * The id that a gateway in the manner of CGI (RFC 3875 4.1.18) gives a name:
 * '_' and '-' are the same to it.
 */
enum http_field_id field_id_of_gateway(struct str name);

static inline bool is_ows(char c)
{
	return c == ' ' || c == '\t';
}

static inline struct str str_trim_ows(struct str s)
{
	while (s.n && is_ows(s.p[0]))
		s.p++, s.n--;
	while (s.n && is_ows(s.p[s.n - 1]))
		s.n--;
	return s;
}

/* Takes the next element of a comma-separated list, trimmed, perhaps empty. False at the end. */
static inline bool list_next(struct str *rest, struct str *item)
{
	const char *comma;

	if (!rest->p)
		return false;
	comma = rest->n ? memchr(rest->p, ',', rest->n) : NULL;
	if (comma) {
		*item = (struct str){ rest->p, (size_t)(comma - rest->p) };
		rest->n -= item->n + 1;
		rest->p = comma + 1;
	} else {
		*item = *rest;
		*rest = STR_NONE;
	}
	*item = str_trim_ows(*item);
	return true;
}

/* 1*DIGIT below 2^63. False otherwise. */
bool parse_decimal(struct str s, uint64_t *out);

enum http_method http_method_id(struct str method);
