/* SPDX-License-Identifier: Apache-2.0 */
#include "control/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void keep_first(int *err, int r)
{
	if (r < 0 && *err == 0)
		*err = r;
}

void text_printf(struct text *t, const char *fmt, ...)
{
	va_list ap;

	if (t->err)
		return;
	va_start(ap, fmt);
	keep_first(&t->err, buf_vprintf(t->out, fmt, ap));
	va_end(ap);
}

static void json_key(struct text *t, const char *key)
{
	if (t->comma)
		text_printf(t, ",");
	if (key)
		text_printf(t, "\"%s\":", key);
	t->comma = true;
}

void json_open(struct text *t, const char *key, char bracket)
{
	json_key(t, key);
	text_printf(t, "%c", bracket);
	t->comma = false;
}

void json_close(struct text *t, char bracket)
{
	text_printf(t, "%c", bracket);
	t->comma = true;
}

void json_str(struct text *t, const char *key, const char *value)
{
	json_key(t, key);
	text_printf(t, "\"");
	if (!t->err)
		keep_first(&t->err, buf_append_json(t->out, str_from(value)));
	text_printf(t, "\"");
}

void json_u64(struct text *t, const char *key, uint64_t value)
{
	json_key(t, key);
	text_printf(t, "%llu", (unsigned long long)value);
}

void json_bool(struct text *t, const char *key, bool value)
{
	json_key(t, key);
	text_printf(t, "%s", value ? "true" : "false");
}

void json_seconds(struct text *t, const char *key, uint64_t ns)
{
	json_key(t, key);
	text_printf(t, "%llu.%03llu", (unsigned long long)(ns / NS_PER_S), (unsigned long long)(ns % NS_PER_S / NS_PER_MS));
}

void json_time(struct text *t, const char *key, uint64_t realtime_ns)
{
	time_t s = (time_t)(realtime_ns / NS_PER_S);
	char z[32];
	struct tm tm;

	if (realtime_ns == 0 || !gmtime_r(&s, &tm) || strftime(z, sizeof(z), "%Y-%m-%dT%H:%M:%SZ", &tm) == 0) {
		json_key(t, key);
		text_printf(t, "null");
		return;
	}
	json_str(t, key, z);
}

static void cell_put(struct table *t, const char *z)
{
	size_t n = strlen(z), *w = &t->width[t->cells % t->columns];

	keep_first(&t->err, buf_append(&t->text, z, n + 1));
	*w = MAX_OF(*w, n - (t->cells < t->columns && *z == '>'));
	t->cells++;
}

void table_init(struct table *t, const char *const *headings)
{
	*t = (struct table){ 0 };
	while (headings[t->columns])
		t->columns++;
	for (unsigned i = 0; i < t->columns; i++)
		cell_put(t, headings[i]);
}

void table_cell(struct table *t, const char *fmt, ...)
{
	char z[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(z, sizeof(z), fmt, ap);
	va_end(ap);
	cell_put(t, z);
}

void table_write(struct table *t, struct text *out)
{
	const char *z = t->text.p ? buf_data(&t->text) : "";
	bool right[TABLE_COLUMNS_MAX] = { false };

	keep_first(&out->err, t->err);
	for (size_t i = 0; i < t->cells && !out->err; i++) {
		size_t c = i % t->columns;
		bool last = c == t->columns - 1;
		const char *cell = z;

		if (i < t->columns && *cell == '>') {
			right[c] = true;
			cell++;
		}
		/* No blanks at the end of a line. */
		if (last && !right[c])
			text_printf(out, "%s\n", cell);
		else
			text_printf(out, right[c] ? "%*s%s" : "%-*s%s", (int)t->width[c], cell, last ? "\n" : "  ");
		z += strlen(z) + 1;
	}
	buf_deinit(&t->text);
}

const char *human_bytes(char out[static HUMAN_MAX], uint64_t bytes)
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double v = (double)bytes;
	size_t u = 0;

	while (v >= 1024 && u + 1 < ARRAY_SIZE(unit)) {
		v /= 1024;
		u++;
	}
	snprintf(out, HUMAN_MAX, u == 0 ? "%.0f %s" : v < 10 ? "%.2f %s" : "%.1f %s", v, unit[u]);
	return out;
}

const char *human_duration(char out[static HUMAN_MAX], uint64_t ns)
{
	unsigned long long s = ns / NS_PER_S;

	if (ns < NS_PER_MS)
		snprintf(out, HUMAN_MAX, "%llu us", (unsigned long long)(ns / 1000));
	else if (s == 0)
		snprintf(out, HUMAN_MAX, "%.1f ms", (double)ns / 1e6);
	else if (s < 60)
		snprintf(out, HUMAN_MAX, "%llus", s);
	else if (s < 3600)
		snprintf(out, HUMAN_MAX, "%llum %llus", s / 60, s % 60);
	else if (s < 86400)
		snprintf(out, HUMAN_MAX, "%lluh %llum", s / 3600, s % 3600 / 60);
	else
		snprintf(out, HUMAN_MAX, "%llud %lluh", s / 86400, s % 86400 / 3600);
	return out;
}
