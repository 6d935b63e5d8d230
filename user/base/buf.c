/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fault.h"

int buf_reserve(struct buf *b, size_t n)
{
	size_t cap;
	char *p;

	if (buf_room(b) >= n)
		return 0;
	if (n > SIZE_MAX / 4 - b->len)
		return -ENOMEM;
	if (b->cap - b->len >= n && b->start > b->len) { /* moving is cheap: less data than gap */
		memmove(b->p, b->p + b->start, b->len);
		b->start = 0;
		return 0;
	}
	cap = b->cap ? b->cap : 256;
	while (cap < b->len + n)
		cap *= 2;
	if (fault_hit(FAULT_ALLOC))
		return -ENOMEM;
	p = malloc(cap);
	if (!p)
		return -ENOMEM;
	if (b->len)
		memcpy(p, b->p + b->start, b->len);
	free(b->p);
	b->p = p;
	b->start = 0;
	b->cap = cap;
	return 0;
}

int buf_append(struct buf *b, const void *p, size_t n)
{
	int r;

	if (n == 0)
		return 0;
	r = buf_reserve(b, n);
	if (r < 0)
		return r;
	memcpy(buf_tail(b), p, n);
	b->len += n;
	return 0;
}

int buf_vprintf(struct buf *b, const char *fmt, va_list ap)
{
	va_list again;
	int n, r;

	va_copy(again, ap);
	n = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	if (n < 0)
		return -EINVAL;
	r = buf_reserve(b, (size_t)n + 1);
	if (r < 0)
		return r;
	vsnprintf(buf_tail(b), (size_t)n + 1, fmt, ap);
	b->len += (size_t)n;
	return 0;
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = buf_vprintf(b, fmt, ap);
	va_end(ap);
	return r;
}

int buf_append_json(struct buf *b, struct str s)
{
	for (size_t i = 0; i < s.n; i++) {
		unsigned char c = (unsigned char)s.p[i];
		int r;

		if (c == '"' || c == '\\') {
			char e[2] = { '\\', (char)c };
			r = buf_append(b, e, 2);
		} else if (c < 0x20 || c >= 0x7f) {
			r = buf_printf(b, "\\u%04x", c);
		} else {
			r = buf_append(b, &s.p[i], 1);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

void buf_deinit(struct buf *b)
{
	free(b->p);
	*b = BUF_INIT;
}
