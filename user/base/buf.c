/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fault.h"

/*
 * A thread keeps a few blocks of the sizes that every request takes and gives
 * back; malloc would merge and split them again each time. Capacities are powers
 * of two. Not under ASan, which is to find who uses one too long.
 */
#ifdef __has_feature /* clang: the fuzz targets */
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#define SPARE_MIN 1024u
#define SPARE_CLASSES 5u /* 1 to 16 KiB */
#define SPARE_BLOCKS 16u

#ifdef __SANITIZE_ADDRESS__
static void *block_take(size_t cap)
{
	return malloc(cap);
}

static void block_give(void *p, _unused_ size_t cap)
{
	free(p);
}

void buf_trim(void)
{
}
#else
static _Thread_local struct {
	void *block[SPARE_BLOCKS];
	unsigned n;
} spares[SPARE_CLASSES];

static unsigned spare_class(size_t cap)
{
	return cap < SPARE_MIN ? SPARE_CLASSES : (unsigned)__builtin_ctzl(cap / SPARE_MIN);
}

static void *block_take(size_t cap)
{
	unsigned k = spare_class(cap);

	return k < SPARE_CLASSES && spares[k].n ? spares[k].block[--spares[k].n] : malloc(cap);
}

static void block_give(void *p, size_t cap)
{
	unsigned k = spare_class(cap);

	if (p && k < SPARE_CLASSES && spares[k].n < SPARE_BLOCKS)
		spares[k].block[spares[k].n++] = p;
	else
		free(p);
}

void buf_trim(void)
{
	for (unsigned k = 0; k < SPARE_CLASSES; k++)
		while (spares[k].n)
			free(spares[k].block[--spares[k].n]);
}
#endif

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
	p = block_take(cap);
	if (!p)
		return -ENOMEM;
	if (b->len)
		memcpy(p, b->p + b->start, b->len);
	block_give(b->p, b->cap);
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
	block_give(b->p, b->cap);
	*b = BUF_INIT;
}
