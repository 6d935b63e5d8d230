/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A linear growable byte buffer. Data lives in [start, start+len) of p; the
 * free space behind it can be written directly (buf_room, buf_commit).
 * An empty buffer owns no memory after buf_deinit or buf_release_if_empty,
 * so that idle connections cost nothing.
 */
#pragma once
#include <stdarg.h>
#include "base/util.h"

struct buf {
	char *p;
	size_t start, len, cap;
};

#define BUF_INIT ((struct buf){ 0 })

static inline char *buf_data(const struct buf *b)
{
	return b->p + b->start;
}

static inline struct str buf_str(const struct buf *b)
{
	return (struct str){ b->p ? b->p + b->start : "", b->len };
}

/* Bytes that can be written at buf_tail() without growing. */
static inline size_t buf_room(const struct buf *b)
{
	return b->cap - b->start - b->len;
}

static inline char *buf_tail(const struct buf *b)
{
	return b->p + b->start + b->len;
}

static inline void buf_commit(struct buf *b, size_t n)
{
	b->len += n;
}

/* Drops n <= len bytes from the front. */
static inline void buf_consume(struct buf *b, size_t n)
{
	b->start += n;
	b->len -= n;
	if (b->len == 0)
		b->start = 0;
}

/* Makes room for n more bytes, moving or growing. 0 or -ENOMEM (contents unchanged). */
int buf_reserve(struct buf *b, size_t n);
/* 0 or -ENOMEM (nothing appended). */
int buf_append(struct buf *b, const void *p, size_t n);
static inline int buf_append_str(struct buf *b, struct str s)
{
	return buf_append(b, s.p, s.n);
}
int buf_printf(struct buf *b, const char *fmt, ...) _printf_(2, 3);
int buf_vprintf(struct buf *b, const char *fmt, va_list ap);
/* Appends s as the inside of a JSON string (quotes not included), control and non-ASCII-safe. */
int buf_append_json(struct buf *b, struct str s);
void buf_deinit(struct buf *b);
/* Frees what the calling thread keeps to hand out again. */
void buf_trim(void);
/* Frees the memory when there is no data in it. */
static inline void buf_release_if_empty(struct buf *b)
{
	if (b->len == 0 && b->p)
		buf_deinit(b);
}
