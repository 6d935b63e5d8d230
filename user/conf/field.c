/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading by table. Every setter leaves the default where it is when the
 * value is wrong, reports, and returns: the walk goes on, so that one run
 * shows all mistakes.
 */
#include "conf/field.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define TEXT_MAX 4095
#define WANT_MAX 200

static const char *const kind_names[] = {
	[NODE_SCALAR] = "a single value",
	[NODE_MAP] = "a map",
	[NODE_LIST] = "a list",
};

void field_fault(struct parse *p, const struct node *v, const char *fmt, ...)
{
	struct node_path path = node_path(v);
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	report_at(p->report, v->pos, "%s%s%s", path.s, path.s[0] ? ": " : "", text);
}

void *field_alloc(struct parse *p, size_t n)
{
	void *m = arena_alloc(p->keep, n);

	if (!m)
		p->report->oom = true;
	return m;
}

char *field_lower(struct parse *p, struct str s)
{
	char *z = arena_str(p->keep, s.p, s.n);

	if (!z)
		p->report->oom = true;
	for (char *c = z; c && *c; c++)
		if (*c >= 'A' && *c <= 'Z')
			*c = (char)(*c - 'A' + 'a');
	return z;
}

static struct str node_str(const struct node *n)
{
	return (struct str){ n->text, n->len };
}

/* "a, b and c" of all keys or words; cut when there are more than fit. */
static void join_names(char *out, size_t cap, const char *const *names)
{
	size_t used = 0;

	out[0] = '\0';
	for (size_t i = 0; names[i] && used < cap; i++) {
		int w = snprintf(out + used, cap - used, "%s%s", i ? ", " : "", names[i]);

		used += w > 0 ? (size_t)w : 0;
	}
}

static void join_keys(char *out, size_t cap, const struct field *fields)
{
	const char *names[64];
	size_t n = 0;

	for (const struct field *f = fields; f->key && n + 1 < ARRAY_SIZE(names); f++)
		names[n++] = f->key;
	names[n] = NULL;
	join_names(out, cap, names);
}

static void unknown_key(struct parse *p, const struct node *v, const struct field *fields)
{
	struct node_path in = node_path(v->parent);
	struct shown key = shown(v->key->text, v->key->len);
	const char *near = NULL;
	char keys[400];

	for (const struct field *f = fields; f->key; f++)
		near = value_nearest(node_str(v->key), near, f->key);
	if (near) {
		report_at(p->report, v->key->pos, "%s%sunknown key %s, did you mean \"%s\"?", in.s, in.s[0] ? ": " : "",
			  key.s, near);
		return;
	}
	join_keys(keys, sizeof(keys), fields);
	report_at(p->report, v->key->pos, "%s%sunknown key %s, known here: %s", in.s, in.s[0] ? ": " : "", key.s, keys);
}

static const struct field *find_field(const struct field *fields, const struct node *key)
{
	for (const struct field *f = fields; f->key; f++)
		if (str_eqz(node_str(key), f->key))
			return f;
	return NULL;
}

bool field_map(struct parse *p, const struct node *v, void *base, const struct field *fields)
{
	if (v->kind != NODE_MAP) {
		char keys[400];

		join_keys(keys, sizeof(keys), fields);
		field_fault(p, v, "is %s, write a map with keys of: %s", node_is_null(v) ? "empty" : kind_names[v->kind],
			    keys);
		return false;
	}
	for (const struct node *c = v->first; c; c = c->next) {
		const struct field *f = find_field(fields, c->key);

		if (f)
			f->set(p, c, (char *)base + f->offset, f);
		else
			unknown_key(p, c, fields);
	}
	for (const struct field *f = fields; f->key; f++)
		if (f->need && !node_get(v, f->key))
			field_fault(p, v, "\"%s\" is missing, add %s", f->key, f->need);
	return true;
}

bool field_list(struct parse *p, const struct node *v, const char *want)
{
	if (v->kind == NODE_LIST && v->count)
		return true;
	field_fault(p, v, "is %s, write %s", v->kind == NODE_LIST || node_is_null(v) ? "empty" : kind_names[v->kind],
		    want);
	return false;
}

bool field_text(struct parse *p, const struct node *v, const char *want, struct str *out)
{
	if (v->kind != NODE_SCALAR || node_is_null(v)) {
		field_fault(p, v, "is %s, write %s", v->kind == NODE_SCALAR ? "empty" : kind_names[v->kind], want);
		return false;
	}
	for (size_t i = 0; i < v->len; i++) {
		if ((unsigned char)v->text[i] >= 0x20 && v->text[i] != 0x7f)
			continue;
		field_fault(p, v, "%s has a control character in it, write %s", shown(v->text, v->len).s, want);
		return false;
	}
	*out = node_str(v);
	return true;
}

int field_word(struct parse *p, const struct node *v, const char *const *names)
{
	const char *near = NULL;
	char all[WANT_MAX], want[WANT_MAX + 16];
	struct str s;

	join_names(all, sizeof(all), names);
	snprintf(want, sizeof(want), "one of: %s", all);
	if (!field_text(p, v, want, &s))
		return -1;
	for (int i = 0; names[i]; i++) {
		if (str_eqz(s, names[i]))
			return i;
		near = value_nearest(s, near, names[i]);
	}
	if (near)
		field_fault(p, v, "%s is unknown, did you mean \"%s\"? Allowed: %s", shown(s.p, s.n).s, near, all);
	else
		field_fault(p, v, "%s is unknown, write %s", shown(s.p, s.n).s, want);
	return -1;
}

void set_map(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	field_map(p, v, dst, f->fields);
}

void set_bool(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct str s;

	(void)f;
	if (!field_text(p, v, "true or false", &s))
		return;
	if (value_bool(s, dst) < 0)
		field_fault(p, v, "%s is neither true nor false, write one of them", shown(s.p, s.n).s);
}

enum number_kind { NUMBER_COUNT, NUMBER_SIZE, NUMBER_TIME, NUMBER_SECONDS };

struct number_text {
	char s[32];
};

/* A bound in the largest unit that shows it exactly. */
static struct number_text number_text(enum number_kind kind, uint64_t v)
{
	static const struct {
		const char *name;
		uint64_t factor;
	} sizes[] = { { "TiB", 1ull << 40 }, { "GiB", 1ull << 30 }, { "MiB", 1ull << 20 }, { "KiB", 1ull << 10 } },
	  times[] = { { "d", 86400000 }, { "h", 3600000 }, { "m", 60000 }, { "s", 1000 } };
	struct number_text out;

	if (v && (kind == NUMBER_SIZE || kind == NUMBER_TIME)) {
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			uint64_t factor = kind == NUMBER_SIZE ? sizes[i].factor : times[i].factor;

			if (v % factor)
				continue;
			snprintf(out.s, sizeof(out.s), "%" PRIu64 "%s", v / factor,
				 kind == NUMBER_SIZE ? sizes[i].name : times[i].name);
			return out;
		}
	}
	snprintf(out.s, sizeof(out.s), "%" PRIu64 "%s", v, kind == NUMBER_TIME ? "ms" : "");
	return out;
}

/* Reads a number of that kind within f's bounds; false when reported. */
static bool number(struct parse *p, const struct node *v, const struct field *f, enum number_kind kind, uint64_t *out)
{
	static const struct {
		const char *want, *example;
		int (*read)(struct str, uint64_t *);
	} kinds[] = {
		[NUMBER_COUNT] = { "a whole number", "", value_u64 },
		[NUMBER_SIZE] = { "a size", " such as 64KiB, 1MiB or 1GiB", value_size },
		[NUMBER_TIME] = { "a time", " such as 250ms, 15s, 2m or 1h", value_duration },
		[NUMBER_SECONDS] = { "a number of seconds", " without a unit", value_u64 },
	};
	char want[WANT_MAX], range[80] = "";
	struct shown read;
	uint64_t value, plain;
	struct str s;
	int r;

	if (f->max == UINT64_MAX && f->min)
		snprintf(range, sizeof(range), " of at least %s", number_text(kind, f->min).s);
	else if (f->max != UINT64_MAX)
		snprintf(range, sizeof(range), " from %s to %s", number_text(kind, f->min).s,
			 number_text(kind, f->max).s);
	snprintf(want, sizeof(want), "%s%s%s", kinds[kind].want, range, kinds[kind].example);
	if (!field_text(p, v, want, &s))
		return false;
	read = shown(s.p, s.n);
	r = kinds[kind].read(s, &value);
	if (r == 0 && value >= f->min && value <= f->max) {
		*out = value;
		return true;
	}
	if (kind == NUMBER_TIME && value_u64(s, &plain) == 0)
		field_fault(p, v, "%s has no unit, write %s", read.s, want);
	else if (r == 0 || r == -ERANGE)
		field_fault(p, v, "%s is out of range, write %s", read.s, want);
	else
		field_fault(p, v, "%s is not %s, write %s", read.s, kinds[kind].want, want);
	return false;
}

void set_u16(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint64_t n;

	if (number(p, v, f, NUMBER_COUNT, &n))
		*(uint16_t *)dst = (uint16_t)n;
}

void set_u32(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint64_t n;

	if (number(p, v, f, NUMBER_COUNT, &n))
		*(uint32_t *)dst = (uint32_t)n;
}

void set_size(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint64_t n;

	if (number(p, v, f, NUMBER_SIZE, &n))
		*(uint64_t *)dst = n;
}

void set_size32(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint64_t n;

	if (number(p, v, f, NUMBER_SIZE, &n))
		*(uint32_t *)dst = (uint32_t)n;
}

void set_time(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint64_t n;

	if (number(p, v, f, NUMBER_TIME, &n))
		*(uint32_t *)dst = (uint32_t)n;
}

void set_seconds(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint64_t n;

	if (number(p, v, f, NUMBER_SECONDS, &n))
		*(uint32_t *)dst = (uint32_t)(n * 1000);
}

void set_enum(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	int i = field_word(p, v, f->names);

	if (i >= 0)
		*(unsigned *)dst = (unsigned)i;
}

void set_word(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	int i = field_word(p, v, f->names);

	if (i >= 0)
		*(const char **)dst = f->names[i];
}

void field_note_outside(struct parse *p, const struct node *v, enum outside_kind kind, const char *text)
{
	struct node_path path = node_path(v);
	struct conf_outside *o = field_alloc(p, sizeof(*o));
	char *label = arena_str(p->keep, path.s, strlen(path.s));

	if (!o || !label) {
		p->report->oom = true;
		return;
	}
	*o = (struct conf_outside){ .kind = kind, .text = text, .label = label, .pos = v->pos };
	*p->outside_tail = o;
	p->outside_tail = &o->next;
}

void set_text(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	const char *want = f->want ? f->want : "a path";
	size_t max = f->max ? (size_t)f->max : TEXT_MAX;
	struct str s;
	char *copy;

	if (!field_text(p, v, want, &s))
		return;
	if (s.n == 0) {
		field_fault(p, v, "is empty, write %s, or leave the key out", want);
		return;
	}
	if (s.n > max) {
		field_fault(p, v, "has %zu bytes, write at most %zu", s.n, max);
		return;
	}
	copy = arena_str(p->keep, s.p, s.n);
	if (!copy) {
		p->report->oom = true;
		return;
	}
	*(const char **)dst = copy;
	if (f->outside != OUTSIDE_NONE)
		field_note_outside(p, v, f->outside, copy);
}
