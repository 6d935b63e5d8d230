/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Heads: the lines, the limits, and what the fields of both kinds of message
 * mean for framing and for the connection.
 *
 * A head mostly arrives whole, so it is parsed in one pass without looking for
 * its end first. When it turns out incomplete nothing is kept; the next call
 * looks at the new bytes only and parses again when they end a line (there are
 * at most limits->fields of those) or while the start line is still short.
 */
#include "http/head.h"

/* Up to here every call parses, so that a wrong byte is found when it comes. */
#define EAGER_BYTES 64u
/* Options in Connection fields; each is compared with every field name. */
#define CONNECTION_OPTIONS_MAX 64u

/* By their nature for one connection only (RFC 9110 7.6.1), and the framing, which writers make anew. */
static const bool hop_by_hop[_HTTP_F_MAX] = {
	[HTTP_F_CONNECTION] = true,	  [HTTP_F_KEEP_ALIVE] = true, [HTTP_F_PROXY_CONNECTION] = true,
	[HTTP_F_TRANSFER_ENCODING] = true, [HTTP_F_UPGRADE] = true,    [HTTP_F_HTTP2_SETTINGS] = true,
	[HTTP_F_TE] = true,
};

void http_head_init(struct http_head *head, struct http_field *storage, unsigned cap)
{
	*head = (struct http_head){ .fields = storage, .fields_cap = MIN_OF(cap, HTTP_FIELDS_MAX) };
}

const struct http_field *http_head_field(const struct http_head *head, enum http_field_id id)
{
	for (unsigned i = 0; i < head->nfields; i++)
		if (head->fields[i].id == id)
			return &head->fields[i];
	return NULL;
}

const struct http_field *http_head_field_named(const struct http_head *head, struct str name)
{
	for (unsigned i = 0; i < head->nfields; i++)
		if (str_ieq(head->fields[i].name, name))
			return &head->fields[i];
	return NULL;
}

int head_take_crlf(struct cursor *c, struct http_verdict *v)
{
	if (c->p == c->end)
		return HTTP_MORE;
	if (*c->p == '\n')
		return head_bad(v, 400, "bare LF");
	if (*c->p != '\r')
		return head_bad(v, 400, "control character in the head");
	if (c->end - c->p < 2)
		return HTTP_MORE;
	if (c->p[1] != '\n')
		return head_bad(v, 400, "bare CR");
	c->p += 2;
	return 0;
}

static int take_field(struct cursor *c, struct http_field *f, struct http_verdict *v)
{
	size_t n = (size_t)(c->end - c->p), name_n = span_of(c->p, n, CH_TOKEN), skip;
	struct str value;

	if (name_n == n)
		return HTTP_MORE;
	if (c->p[name_n] != ':') {
		if (is_ows(c->p[name_n]))
			return head_bad(v, 400, name_n ? "whitespace before the colon" : "folded field line");
		return head_bad(v, 400, "bad character in a field name");
	}
	if (name_n == 0)
		return head_bad(v, 400, "empty field name");
	f->name = (struct str){ c->p, name_n };

	c->p += name_n + 1;
	n -= name_n + 1;
	for (skip = 0; skip < n && is_ows(c->p[skip]); skip++)
		;
	value = (struct str){ c->p + skip, span_value(c->p + skip, n - skip) };
	c->p = value.p + value.n;
	while (value.n && is_ows(value.p[value.n - 1]))
		value.n--;
	f->value = value;
	f->id = (uint8_t)http_field_id(f->name);
	f->hop = hop_by_hop[f->id];
	return head_take_crlf(c, v);
}

int head_take_fields(struct cursor *c, unsigned fields_max, struct http_head *head, struct field_index *ix,
		     struct http_verdict *v)
{
	*ix = (struct field_index){ 0 };
	for (head->nfields = 0;; head->nfields++) {
		struct http_field *f;
		int r;

		if (c->p == c->end)
			return HTTP_MORE;
		if (*c->p == '\r' || *c->p == '\n')
			return head_take_crlf(c, v);
		if (head->nfields == fields_max)
			return head_bad(v, 431, "too many fields");
		f = &head->fields[head->nfields];
		r = take_field(c, f, v);
		if (r)
			return r;
		if (ix->count[f->id]++ == 0)
			ix->first[f->id] = (uint16_t)head->nfields;
	}
}

static void mark_named(struct http_head *head, struct str name)
{
	for (unsigned i = 0; i < head->nfields; i++) {
		struct http_field *f = &head->fields[i];

		/* Dropping these two would change whom the message is for and where it ends. */
		if (f->id == HTTP_F_HOST || f->id == HTTP_F_CONTENT_LENGTH)
			continue;
		if (str_ieq(f->name, name))
			f->hop = true;
	}
}

static int read_options(struct http_head *head, struct connection_options *o, struct http_verdict *v)
{
	unsigned seen = 0;

	for (unsigned i = 0; i < head->nfields; i++) {
		struct str rest = head->fields[i].value, item;

		if (head->fields[i].id != HTTP_F_CONNECTION)
			continue;
		while (list_next(&rest, &item)) {
			if (++seen > CONNECTION_OPTIONS_MAX)
				return head_bad(v, 431, "too many Connection options");
			if (!item.n)
				continue;
			if (str_ieq(item, STR("keep-alive")))
				o->keep_alive = true;
			else if (str_ieq(item, STR("close")))
				o->close = true;
			else if (str_ieq(item, STR("upgrade")))
				o->upgrade = true;
			else
				mark_named(head, item);
		}
	}
	return 0;
}

/* An Upgrade that may pass: one field, nothing of h2c in it (it would turn the connection into one nobody filters). */
static struct str upgrade_value(const struct http_head *head, const struct field_index *ix)
{
	struct str value, rest, item;

	if (ix->count[HTTP_F_UPGRADE] != 1)
		return STR_NONE;
	value = rest = index_first(head, ix, HTTP_F_UPGRADE)->value;
	while (list_next(&rest, &item))
		if (!item.n || str_ieq(item, STR("h2c")))
			return STR_NONE;
	return value;
}

bool http_upgrade_was_offered(struct str offered, struct str taken)
{
	struct str item;

	if (!taken.n)
		return false;
	while (list_next(&taken, &item)) {
		struct str rest = offered, one;
		bool found = false;

		while (!found && list_next(&rest, &one))
			found = str_ieq(one, item);
		if (!found)
			return false;
	}
	return true;
}

int head_read_connection(struct http_head *head, const struct field_index *ix, struct http_verdict *v)
{
	struct connection_options o = { 0 };
	int r = 0;

	if (ix->count[HTTP_F_CONNECTION])
		r = read_options(head, &o, v);
	if (r)
		return r;
	head->keep_alive = !o.close && (head->minor >= 1 || o.keep_alive);
	/* RFC 9110 7.8: Upgrade in HTTP/1.0 is ignored, and means nothing without the option. */
	head->upgrade = o.upgrade && head->minor >= 1 ? upgrade_value(head, ix) : STR_NONE;
	return 0;
}

static int read_transfer_encoding(struct str value, struct http_verdict *v)
{
	struct str rest = value, item;

	if (str_ieq(value, STR("chunked")))
		return 0;
	/* Only the words differ from here on: a coding we lack is the peer's right to try, the rest is an attack or a bug. */
	while (list_next(&rest, &item)) {
		if (!item.n)
			return head_bad(v, 400, "empty Transfer-Encoding");
		if (str_ieq(item, STR("chunked")) && rest.p)
			return head_bad(v, 400, "chunked is not the last transfer coding, or comes twice");
		if (span_of(item.p, item.n, CH_TOKEN) != item.n && item.n >= 7 && str_ieq((struct str){ item.p, 7 }, STR("chunked")))
			return head_bad(v, 400, "chunked with parameters");
	}
	return head_bad(v, 501, "transfer coding other than chunked");
}

int head_read_framing(struct http_head *head, const struct field_index *ix, struct http_verdict *v)
{
	const struct http_field *cl = index_first(head, ix, HTTP_F_CONTENT_LENGTH);
	const struct http_field *te = index_first(head, ix, HTTP_F_TRANSFER_ENCODING);

	head->framing = HTTP_BODY_NONE;
	head->length = 0;
	if (ix->count[HTTP_F_CONTENT_LENGTH] > 1)
		return head_bad(v, 400, "several Content-Length fields");
	if (ix->count[HTTP_F_TRANSFER_ENCODING] > 1)
		return head_bad(v, 400, "several Transfer-Encoding fields");
	if (te && cl)
		return head_bad(v, 400, "both Transfer-Encoding and Content-Length");
	if (te) {
		/* RFC 9112 6.1: framing by a 1.0 peer that does not know chunked is faulty. */
		if (head->minor == 0)
			return head_bad(v, 400, "Transfer-Encoding in HTTP/1.0");
		head->framing = HTTP_BODY_CHUNKED;
		return read_transfer_encoding(te->value, v);
	}
	if (cl) {
		if (!parse_decimal(cl->value, &head->length))
			return head_bad(v, 400, "bad Content-Length");
		head->framing = HTTP_BODY_LENGTH;
	}
	return 0;
}

static int too_large(const char *p, size_t n, struct http_verdict *v)
{
	size_t i = 0;

	while (i < n && (p[i] == '\r' || p[i] == '\n'))
		i++;
	if (!memchr(p + i, '\n', n - i))
		return head_bad(v, 414, "start line too long");
	return head_bad(v, 431, "head too large");
}

int head_run(const char *p, size_t n, size_t *scan, const struct http_limits *limits, head_parse_fn *parse, int arg,
	     struct http_head *head, struct http_verdict *v)
{
	size_t usable = MIN_OF(n, limits->head_bytes), from = *scan;
	unsigned fields_max = MIN_OF(limits->fields, head->fields_cap);
	struct cursor c = { p, p + usable };
	int r = HTTP_MORE;

	if (from < EAGER_BYTES || n >= limits->head_bytes || memchr(p + from, '\n', usable - from)) {
		r = parse(&c, fields_max, arg, head, v);
	} else {
		size_t good = from + span_value(p + from, usable - from);

		/* The bytes of an unfinished line: a CR may only be the last of them. */
		if (good < usable && (p[good] != '\r' || good + 1 < usable))
			return head_bad(v, 400, "control character in the head");
		if (from > 0 && p[from - 1] == '\r' && from < usable)
			return head_bad(v, 400, "bare CR");
	}
	if (r == HTTP_MORE && n >= limits->head_bytes)
		return too_large(p, usable, v);
	if (r == HTTP_MORE)
		*scan = usable;
	if (r == 0) {
		head->head_len = (size_t)(c.p - p);
		*scan = 0;
	}
	return r;
}
