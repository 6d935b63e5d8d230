/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets of heads share: the checks that hold for every accepted head. */
#pragma once
#include <stdlib.h>
#include "http/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MUST(cond)               \
	do {                     \
		if (!(cond))     \
			abort(); \
	} while (0)

static const struct http_limits fuzz_limits = { .head_bytes = 4096, .fields = 40 };

static inline void must_be_inside(struct str s, const char *p, size_t n)
{
	if (s.n && !(s.p >= p && s.p + s.n <= p + n))
		MUST(str_eq(s, STR("/")) || str_eq(s, STR("*")));
}

/* No byte of a view may end a line or a string where another parser reads it. */
static inline void must_be_one_line(struct str s)
{
	for (size_t i = 0; i < s.n; i++)
		MUST(s.p[i] != '\r' && s.p[i] != '\n' && s.p[i] != '\0');
}

static inline void must_be_sound(const struct http_head *h, const char *p, size_t n)
{
	struct str views[] = { h->method, h->target, h->scheme, h->authority, h->path, h->host, h->upgrade, h->reason };

	MUST(h->head_len <= n && h->head_len <= fuzz_limits.head_bytes && h->nfields <= fuzz_limits.fields);
	MUST(h->head_len >= 4 && memcmp(p + h->head_len - 4, "\r\n\r\n", 4) == 0);
	MUST(h->length <= INT64_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(views); i++) {
		must_be_inside(views[i], p, h->head_len);
		must_be_one_line(views[i]);
	}
	for (unsigned i = 0; i < h->nfields; i++) {
		MUST(h->fields[i].name.n > 0);
		must_be_inside(h->fields[i].name, p, h->head_len);
		must_be_inside(h->fields[i].value, p, h->head_len);
		must_be_one_line(h->fields[i].value);
	}
}
