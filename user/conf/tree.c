/* SPDX-License-Identifier: Apache-2.0 */
/*
 * YAML events into a tree. It owns the libyaml parser for the time of one
 * call and is the only file that includes it.
 *
 * The tree is built from events rather than by libyaml's own loader, because
 * only there is it known where an alias stands: aliases are refused, which
 * also keeps the tree no larger than the file. Depth is bounded, so recursion
 * over the tree is too.
 */
#include "conf/tree.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <yaml.h>

#include "base/fault.h"

#define DEPTH_MAX 16
#define CHUNK 8192
#define CHILDREN_MAX 10000 /* of one map or list: looking for duplicates is quadratic */

struct chunk {
	struct chunk *next;
	size_t used, size;
	_Alignas(16) char p[];
};

struct arena {
	struct chunk *chunks;
};

struct arena *arena_new(void)
{
	if (fault_hit(FAULT_ALLOC))
		return NULL;
	return calloc(1, sizeof(struct arena));
}

void arena_free(struct arena *a)
{
	if (!a)
		return;
	while (a->chunks) {
		struct chunk *c = a->chunks;

		a->chunks = c->next;
		free(c);
	}
	free(a);
}

void *arena_alloc(struct arena *a, size_t n)
{
	struct chunk *c = a->chunks;
	void *p;

	if (n > SIZE_MAX / 2)
		return NULL;
	n = (n + 15) & ~(size_t)15;
	if (!c || c->size - c->used < n) {
		size_t size = MAX_OF(n, (size_t)CHUNK);

		if (fault_hit(FAULT_ALLOC))
			return NULL;
		c = calloc(1, sizeof(*c) + size);
		if (!c)
			return NULL;
		c->size = size;
		c->next = a->chunks;
		a->chunks = c;
	}
	p = c->p + c->used;
	c->used += n;
	return p;
}

char *arena_str(struct arena *a, const char *p, size_t n)
{
	char *s = arena_alloc(a, n + 1);

	if (s && n)
		memcpy(s, p, n);
	return s;
}

void report_at(struct report *r, struct conf_pos pos, const char *fmt, ...)
{
	va_list ap;
	int e;

	r->errors++;
	if (r->errors > REPORT_MAX)
		return;
	if (r->errors == REPORT_MAX) {
		if (buf_printf(r->out, "%s: more errors follow, correct these first\n", r->path) < 0)
			r->oom = true;
		return;
	}
	if (pos.line)
		e = buf_printf(r->out, "%s:%u:%u: ", r->path, pos.line, pos.column);
	else
		e = buf_printf(r->out, "%s: ", r->path);
	if (e < 0) {
		r->oom = true;
		return;
	}
	va_start(ap, fmt);
	e = buf_vprintf(r->out, fmt, ap);
	va_end(ap);
	if (e < 0 || buf_append(r->out, "\n", 1) < 0)
		r->oom = true;
}

struct shown shown(const char *p, size_t n)
{
	static const char cut[] = "...\"";
	struct shown out;
	size_t used = 0;

	out.s[used++] = '"';
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)p[i];

		if (used + 4 + sizeof(cut) > SHOWN_MAX) {
			memcpy(out.s + used, cut, sizeof(cut));
			return out;
		}
		/* Bytes of UTF-8 pass as they are; what could fool a terminal (C0, C1) or break the line does not. */
		if (c < 0x20 || c == 0x7f || (c == 0xc2 && i + 1 < n && (unsigned char)p[i + 1] < 0xa0) ||
		    (c >= 0x80 && c < 0xa0 && i > 0 && (unsigned char)p[i - 1] == 0xc2))
			used += (size_t)snprintf(out.s + used, 5, "\\x%02x", c);
		else
			out.s[used++] = (char)c;
	}
	out.s[used++] = '"';
	out.s[used] = '\0';
	return out;
}

bool node_is_null(const struct node *n)
{
	if (n->kind != NODE_SCALAR || !n->plain)
		return false;
	return n->len == 0 || strcmp(n->text, "~") == 0 || strcasecmp(n->text, "null") == 0;
}

const struct node *node_get(const struct node *map, const char *key)
{
	if (map->kind != NODE_MAP)
		return NULL;
	for (const struct node *n = map->first; n; n = n->next)
		if (strcmp(n->key->text, key) == 0)
			return n;
	return NULL;
}

struct node_path node_path(const struct node *n)
{
	const struct node *up[DEPTH_MAX + 2];
	struct node_path out = { "" };
	size_t depth = 0, used = 0;

	for (; n && n->parent && depth < ARRAY_SIZE(up); n = n->parent)
		up[depth++] = n;
	while (depth-- > 0 && used < sizeof(out.s)) {
		int w;

		n = up[depth];
		if (n->key)
			w = snprintf(out.s + used, sizeof(out.s) - used, "%s%.40s", used ? "." : "", n->key->text);
		else
			w = snprintf(out.s + used, sizeof(out.s) - used, "[%u]", n->index);
		used += w > 0 ? (size_t)w : 0;
	}
	for (char *p = out.s; *p; p++)
		if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
			*p = '?';
	return out;
}

struct build {
	yaml_parser_t yaml;
	struct arena *arena;
	struct report *report;
	const char *p;
	size_t n;
};

static struct conf_pos mark_pos(yaml_mark_t m)
{
	return (struct conf_pos){ (uint32_t)m.line + 1, (uint32_t)m.column + 1 };
}

/* The two slips that libyaml's own words do not explain: tabs, and an IPv6 address without quotes. */
static const char *syntax_hint(const struct build *b, yaml_mark_t m)
{
	size_t at = MIN_OF(m.index, b->n), from = at, lines = 0;
	const char *open;

	if (at < b->n && b->p[at] == '\t')
		return ", a tab can not indent: use spaces";
	/* The complaint often comes at the start of the next line, so the one before counts as well. */
	while (from > 0 && (b->p[from - 1] != '\n' || lines++ == 0))
		from--;
	while (at < b->n && b->p[at] != '\n')
		at++;
	open = memmem(b->p + from, at - from, ": [", 3);
	if (open && memmem(open, (size_t)(b->p + at - open), "]:", 2))
		return ", put an IPv6 address in quotes: \"[::]:6188\"";
	return ", check indentation, colons, brackets and quotes here";
}

static int build_syntax(struct build *b)
{
	const yaml_parser_t *y = &b->yaml;
	struct conf_pos pos = mark_pos(y->problem_mark);
	const char *what = y->problem ? y->problem : "unreadable";

	if (y->error == YAML_MEMORY_ERROR)
		return -ENOMEM;
	if (y->error == YAML_READER_ERROR) {
		/* Bytes that are not text have an offset only. */
		pos = (struct conf_pos){ 1, 1 };
		for (size_t i = 0; i < MIN_OF(y->problem_offset, b->n); i++) {
			pos.column++;
			if (b->p[i] == '\n')
				pos = (struct conf_pos){ pos.line + 1, 1 };
		}
		report_at(b->report, pos, "not a text file: %s, save it as UTF-8", what);
	} else {
		report_at(b->report, pos, "not valid YAML: %s%s", what, syntax_hint(b, y->problem_mark));
	}
	return 1;
}

static int build_next(struct build *b, yaml_event_t *e)
{
	return yaml_parser_parse(&b->yaml, e) ? 0 : build_syntax(b);
}

static int build_node(struct build *b, yaml_event_t *e, unsigned depth, struct node **out);

static bool text_equal(const struct node *a, const struct node *b)
{
	return a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
}

static struct node *find_duplicate(const struct node *map, const struct node *key)
{
	for (struct node *n = map->first; n; n = n->next)
		if (text_equal(n->key, key))
			return n;
	return NULL;
}

static void node_append(struct node *to, struct node *n)
{
	n->parent = to;
	n->index = to->count++;
	if (to->last)
		to->last->next = n;
	else
		to->first = n;
	to->last = n;
}

/* Children up to the end event. Duplicate keys are reported and left out, so that the rest is still checked. */
static int build_children(struct build *b, struct node *n, yaml_event_type_t end, unsigned depth)
{
	struct node *key = NULL;

	for (;;) {
		struct node *child, *other;
		yaml_event_t e;
		int r = build_next(b, &e);

		if (r != 0)
			return r;
		if (e.type == end) {
			yaml_event_delete(&e);
			return 0;
		}
		r = build_node(b, &e, depth + 1, &child);
		yaml_event_delete(&e);
		if (r != 0)
			return r;
		if (n->count == CHILDREN_MAX) {
			report_at(b->report, child->pos, "too many entries, at most %u in one map or list", CHILDREN_MAX);
			return 1;
		}
		if (n->kind == NODE_LIST) {
			node_append(n, child);
			continue;
		}
		if (!key) {
			key = child;
			if (key->kind == NODE_SCALAR)
				continue;
			report_at(b->report, key->pos, "a list or map is used as a key, write key: value");
			return 1;
		}
		child->key = key;
		other = find_duplicate(n, key);
		if (other)
			report_at(b->report, key->pos, "duplicate key %s, it is set at line %u already: keep one",
				  shown(key->text, key->len).s, other->key->pos.line);
		else
			node_append(n, child);
		key = NULL;
	}
}

static int build_node(struct build *b, yaml_event_t *e, unsigned depth, struct node **out)
{
	struct conf_pos pos = mark_pos(e->start_mark);
	const yaml_char_t *tag = NULL;
	struct node *n;

	if (e->type == YAML_ALIAS_EVENT) {
		report_at(b->report, pos, "alias *%.40s is not supported, write the value out here",
			  (const char *)e->data.alias.anchor);
		return 1;
	}
	if (depth > DEPTH_MAX) {
		report_at(b->report, pos, "nested too deeply, at most %u levels", DEPTH_MAX);
		return 1;
	}
	n = arena_alloc(b->arena, sizeof(*n));
	if (!n)
		return -ENOMEM;
	n->pos = pos;
	*out = n;
	switch (e->type) {
	case YAML_SCALAR_EVENT:
		n->kind = NODE_SCALAR;
		n->plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
		n->len = e->data.scalar.length;
		n->text = arena_str(b->arena, (const char *)e->data.scalar.value, n->len);
		if (!n->text)
			return -ENOMEM;
		tag = e->data.scalar.tag;
		break;
	case YAML_MAPPING_START_EVENT:
		n->kind = NODE_MAP;
		tag = e->data.mapping_start.tag;
		break;
	default: /* the parser's grammar leaves nothing else here */
		n->kind = NODE_LIST;
		tag = e->data.sequence_start.tag;
		break;
	}
	if (tag) {
		report_at(b->report, pos, "tag %s is not supported, write the value without it",
			  shown((const char *)tag, strlen((const char *)tag)).s);
		return 1;
	}
	if (n->kind == NODE_SCALAR)
		return 0;
	return build_children(b, n, n->kind == NODE_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT, depth);
}

static int build_stream(struct build *b, struct node **root)
{
	for (;;) {
		yaml_event_t e;
		int r = build_next(b, &e);

		if (r != 0)
			return r;
		switch (e.type) {
		case YAML_STREAM_END_EVENT:
			yaml_event_delete(&e);
			return 0;
		case YAML_STREAM_START_EVENT:
		case YAML_DOCUMENT_END_EVENT:
			break;
		case YAML_DOCUMENT_START_EVENT:
			if (!*root)
				break;
			report_at(b->report, mark_pos(e.start_mark),
				  "a second document starts here, only one is allowed: remove the ---");
			r = 1;
			break;
		default:
			r = build_node(b, &e, 0, root);
		}
		yaml_event_delete(&e);
		if (r != 0)
			return r;
	}
}

int tree_build(struct node **root, struct arena *a, const void *p, size_t n, struct report *r)
{
	struct build b = { .arena = a, .report = r, .p = p, .n = n };
	int e;

	*root = NULL;
	/* A byte order mark, which libyaml counts as a column of the first line. */
	if (n >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0) {
		b.p = p = (const char *)p + 3;
		b.n = n -= 3;
	}
	if (!yaml_parser_initialize(&b.yaml))
		return -ENOMEM;
	yaml_parser_set_input_string(&b.yaml, n ? p : (const unsigned char *)"", n);
	yaml_parser_set_encoding(&b.yaml, YAML_UTF8_ENCODING);
	e = build_stream(&b, root);
	yaml_parser_delete(&b.yaml);
	return e;
}
