/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing text for operators: lines, JSON, tables. A writer remembers the
 * first failure (only -ENOMEM there is) and does nothing more after it, so
 * that who writes a page looks once, at the end.
 */
#pragma once
#include "base/buf.h"

struct text {
	struct buf *out;
	int err;
	bool comma; /* JSON: something precedes in this object or array */
};

#define TEXT_INIT(b) ((struct text){ .out = (b) })

void text_printf(struct text *t, const char *fmt, ...) _printf_(2, 3);

/* JSON. key NULL: an element of an array. */
void json_open(struct text *t, const char *key, char bracket); /* '{' or '[' */
void json_close(struct text *t, char bracket);		       /* '}' or ']' */
void json_str(struct text *t, const char *key, const char *value);
void json_u64(struct text *t, const char *key, uint64_t value);
void json_bool(struct text *t, const char *key, bool value);
void json_seconds(struct text *t, const char *key, uint64_t ns); /* a number with three decimals */
/* Realtime ns as "2026-01-31T12:00:00Z"; 0: null. */
void json_time(struct text *t, const char *key, uint64_t realtime_ns);

/*
 * A table for people: cells are collected row by row, the widths follow from
 * them. A heading that begins with '>' aligns its column to the right.
 */
#define TABLE_COLUMNS_MAX 12
struct table {
	unsigned columns;
	size_t cells, width[TABLE_COLUMNS_MAX];
	struct buf text; /* NUL-terminated cells */
	int err;
};
/* Headings end with NULL. */
void table_init(struct table *t, const char *const *headings);
void table_cell(struct table *t, const char *fmt, ...) _printf_(2, 3);
/* Writes it out and frees what it holds. */
void table_write(struct table *t, struct text *out);

/* For people, into out, which is returned: "1.50 GiB", "3d 4h", "12.3 ms". */
#define HUMAN_MAX 32
const char *human_bytes(char out[static HUMAN_MAX], uint64_t bytes);
const char *human_duration(char out[static HUMAN_MAX], uint64_t ns);
