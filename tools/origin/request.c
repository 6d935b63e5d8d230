/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a request: forgiving where it can be, because it is a test's origin and
 * the proxy in front of it is the one that must be strict.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include "origin.h"

uint64_t query_num(const struct conn *c, const char *key, uint64_t def)
{
	size_t k = strlen(key);

	for (const char *p = c->query.p, *end = p + c->query.n; p && p < end; p++) {
		if ((size_t)(end - p) > k && !memcmp(p, key, k) && p[k] == '=')
			return strtoull(p + k + 1, NULL, 10);
		p = memchr(p, '&', (size_t)(end - p));
		if (!p)
			break;
	}
	return def;
}

static bool has_token(struct str v, const char *token)
{
	while (v.n) {
		const char *comma = memchr(v.p, ',', v.n);
		struct str t = { v.p, comma ? (size_t)(comma - v.p) : v.n };

		v.p += t.n + (comma != NULL);
		v.n -= t.n + (comma != NULL);
		while (t.n && (t.p[0] == ' ' || t.p[0] == '\t'))
			t.p++, t.n--;
		while (t.n && (t.p[t.n - 1] == ' ' || t.p[t.n - 1] == '\t'))
			t.n--;
		if (str_ieq(t, str_from(token)))
			return true;
	}
	return false;
}

static void take_field(struct conn *c, struct str name, struct str v)
{
	if (str_ieq(name, STR("content-length"))) {
		c->cl_seen = true;
		c->in_left = strtoull(v.p, NULL, 10);
	} else if (str_ieq(name, STR("transfer-encoding"))) {
		c->chunked = has_token(v, "chunked");
	} else if (str_ieq(name, STR("connection"))) {
		c->close = has_token(v, "close") || (c->minor == 0 && !has_token(v, "keep-alive"));
	} else if (str_ieq(name, STR("expect"))) {
		c->expect = has_token(v, "100-continue");
	} else if (str_ieq(name, STR("upgrade"))) {
		c->upgrade = true;
	}
}

bool next_line(struct str *s, struct str *line)
{
	const char *nl = s->n ? memchr(s->p, '\n', s->n) : NULL;

	if (!nl)
		return false;
	*line = (struct str){ s->p, (size_t)(nl - s->p) };
	s->n -= line->n + 1;
	s->p = nl + 1;
	if (line->n && line->p[line->n - 1] == '\r')
		line->n--;
	return true;
}

bool parse_head(struct conn *c)
{
	struct str rest = buf_str(&c->head), line;
	char *q;

	c->close = c->expect = c->upgrade = c->cl_seen = c->chunked = false;
	c->in_left = c->in_total = 0;
	c->after = AFTER_KEEP;
	c->kind = BODY_NONE;
	if (!next_line(&rest, &line) || line.n >= sizeof(c->target) + 32)
		return false;
	char z[sizeof(c->target) + 32];
	memcpy(z, line.p, line.n);
	z[line.n] = 0;
	if (sscanf(z, "%23s %2047s HTTP/1.%d", c->method, c->target, &c->minor) != 3)
		return false;
	c->close = c->minor == 0;
	while (next_line(&rest, &line) && line.n) {
		const char *colon = memchr(line.p, ':', line.n);
		struct str v;

		if (!colon)
			return false;
		v = (struct str){ colon + 1, (size_t)(line.p + line.n - colon - 1) };
		while (v.n && (*v.p == ' ' || *v.p == '\t'))
			v.p++, v.n--;
		take_field(c, (struct str){ line.p, (size_t)(colon - line.p) }, v);
	}
	c->in_st = c->chunked ? IN_SIZE : c->in_left ? IN_LENGTH : IN_DONE;
	q = strchr(c->target, '?');
	c->query = q ? str_from(q + 1) : STR_NONE;
	c->path = (struct str){ c->target, q ? (size_t)(q - c->target) : strlen(c->target) };
	return true;
}

int body_take(struct conn *c, struct str *out)
{
	struct str line, in;

	*out = STR_NONE;
	for (;;) {
		in = buf_str(&c->in);
		switch (c->in_st) {
		case IN_DONE:
			return 2;
		case IN_LENGTH:
		case IN_DATA:
			if (!in.n)
				return 0;
			*out = (struct str){ in.p, (size_t)MIN_OF((uint64_t)in.n, c->in_left) };
			buf_consume(&c->in, out->n);
			c->in_total += out->n;
			c->in_left -= out->n;
			if (!c->in_left)
				c->in_st = c->in_st == IN_LENGTH ? IN_DONE : IN_DATA_END;
			return 1;
		default:
			if (!next_line(&in, &line))
				return in.n > HEAD_MAX ? -1 : 0;
			if (c->in_st == IN_SIZE) {
				if (!line.n || !isxdigit((unsigned char)line.p[0]))
					return -1;
				c->in_left = strtoull(line.p, NULL, 16);
				c->in_st = c->in_left ? IN_DATA : IN_TRAILER;
			} else if (line.n) {
				if (c->in_st == IN_DATA_END)
					return -1;
			} else {
				c->in_st = c->in_st == IN_DATA_END ? IN_SIZE : IN_DONE;
			}
			buf_consume(&c->in, (size_t)(in.p - buf_data(&c->in)));
		}
	}
}
