/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Request heads: the request line (RFC 9112 3), the target's four forms, and
 * which host is meant.
 */
#include "http/head.h"

#define METHOD_MAX 32u
#define LEADING_CRLF_MAX 2

/* RFC 9112 2.2: a client may have sent a CRLF too many after its last body. */
static int skip_leading_crlf(struct cursor *c, struct http_verdict *v)
{
	for (int i = 0; i < LEADING_CRLF_MAX; i++) {
		int r;

		if (c->p == c->end || *c->p != '\r')
			return 0;
		r = head_take_crlf(c, v);
		if (r)
			return r;
	}
	return 0;
}

static int take_method(struct cursor *c, struct http_head *head, struct http_verdict *v)
{
	size_t n = (size_t)(c->end - c->p), len = span_of(c->p, MIN_OF(n, METHOD_MAX + 1), CH_TOKEN);

	if (len > METHOD_MAX)
		return head_bad(v, 501, "method too long");
	if (len == n)
		return HTTP_MORE;
	if (len == 0 || c->p[len] != ' ')
		return head_bad(v, 400, "bad method");
	head->method = (struct str){ c->p, len };
	c->p += len + 1;
	return 0;
}

static int take_target(struct cursor *c, struct http_head *head, struct http_verdict *v)
{
	size_t n = (size_t)(c->end - c->p), len = span_of(c->p, n, CH_TARGET);

	if (len == n)
		return HTTP_MORE;
	if (len == 0)
		return head_bad(v, 400, "empty target, or more than one space");
	if (c->p[len] == '\r' || c->p[len] == '\n')
		return head_bad(v, 400, "no protocol version");
	if (c->p[len] != ' ')
		return head_bad(v, 400, "bad character in the target");
	head->target = (struct str){ c->p, len };
	c->p += len + 1;
	return 0;
}

/* HTTP-version in full, in capitals; the major number decides whether we can read on. */
static int take_version(struct cursor *c, struct http_head *head, struct http_verdict *v)
{
	static const char form[] = "HTTP/d.d";
	size_t n = (size_t)(c->end - c->p);

	for (size_t i = 0; i < sizeof(form) - 1; i++) {
		if (i == n)
			return HTTP_MORE;
		if (form[i] == 'd' ? !ch_is(c->p[i], CH_DIGIT) : c->p[i] != form[i])
			return head_bad(v, 400, "bad protocol version");
	}
	if (n > 8 && c->p[8] != '\r' && c->p[8] != '\n')
		return head_bad(v, 400, "bad protocol version");
	if (c->p[5] != '1')
		return head_bad(v, 505, "unknown major version");
	head->minor = c->p[7] != '0';
	c->p += 8;
	return head_take_crlf(c, v);
}

static int read_absolute_form(struct http_head *head, struct http_verdict *v)
{
	struct str t = head->target;
	size_t scheme_n, i;

	if (t.n > 7 && str_ieq((struct str){ t.p, 7 }, STR("http://")))
		scheme_n = 4;
	else if (t.n > 8 && str_ieq((struct str){ t.p, 8 }, STR("https://")))
		scheme_n = 5;
	else
		return head_bad(v, 400, "bad target");
	head->scheme = (struct str){ t.p, scheme_n };
	t = (struct str){ t.p + scheme_n + 3, t.n - scheme_n - 3 };
	for (i = 0; i < t.n && t.p[i] != '/' && t.p[i] != '?'; i++)
		;
	head->authority = (struct str){ t.p, i };
	/* This also refuses userinfo: '@' can not stand in a host. */
	if (!http_host_is_valid(head->authority))
		return head_bad(v, 400, "bad authority in the target");
	if (i < t.n)
		head->path = (struct str){ t.p + i, t.n - i };
	else
		head->path = head->method_id == HTTP_M_OPTIONS ? STR("*") : STR("/");
	return 0;
}

/* RFC 9112 3.2 */
static int read_target(struct http_head *head, struct http_verdict *v)
{
	head->scheme = head->authority = STR_NONE;
	head->path = head->target;
	if (head->method_id == HTTP_M_CONNECT)
		return head_bad(v, 405, "CONNECT is not for a reverse proxy");
	if (head->target.p[0] == '/')
		return 0;
	if (head->target.n == 1 && head->target.p[0] == '*')
		return head->method_id == HTTP_M_OPTIONS ? 0 : head_bad(v, 400, "bad target");
	return read_absolute_form(head, v);
}

/* RFC 9112 3.2: one Host and a valid one, or 400; only 1.0 may go without. */
static int read_host(struct http_head *head, const struct field_index *ix, struct http_verdict *v)
{
	const struct http_field *host = index_first(head, ix, HTTP_F_HOST);

	if (ix->count[HTTP_F_HOST] > 1)
		return head_bad(v, 400, "several Host fields");
	if (!host && head->minor >= 1)
		return head_bad(v, 400, "no Host field");
	if (host && !http_host_is_valid(host->value))
		return head_bad(v, 400, "bad Host field");
	head->host = head->authority.n ? head->authority : host ? host->value : STR_NONE;
	return 0;
}

/* A Transfer_Encoding or X_Forwarded_For is another name to us and the same one to many a backend: smuggled past. */
static int refuse_lookalikes(struct http_head *head, struct http_verdict *v)
{
	for (unsigned i = 0; i < head->nfields; i++) {
		if (head->fields[i].id != HTTP_F_OTHER)
			continue;
		switch (field_id_of_gateway(head->fields[i].name)) {
		case HTTP_F_CONTENT_LENGTH:
		case HTTP_F_TRANSFER_ENCODING:
		case HTTP_F_X_FORWARDED_FOR:
		case HTTP_F_X_FORWARDED_PROTO:
		case HTTP_F_X_FORWARDED_HOST:
			return head_bad(v, 400, "field name with _ where - belongs");
		default:
			break;
		}
	}
	return 0;
}

static int read_expect(struct http_head *head, const struct field_index *ix, struct http_verdict *v)
{
	head->expect_continue = false;
	/* RFC 9110 10.1.1: an expectation in HTTP/1.0 is ignored. */
	if (!ix->count[HTTP_F_EXPECT] || head->minor == 0)
		return 0;
	if (ix->count[HTTP_F_EXPECT] > 1 || !str_ieq(index_first(head, ix, HTTP_F_EXPECT)->value, STR("100-continue")))
		return head_bad(v, 417, "unknown expectation");
	head->expect_continue = true;
	return 0;
}

static void read_te(struct http_head *head, const struct field_index *ix)
{
	head->te_trailers = false;
	if (!ix->count[HTTP_F_TE] || head->minor == 0)
		return;
	for (unsigned i = 0; i < head->nfields; i++) {
		struct str rest = head->fields[i].value, item;

		if (head->fields[i].id != HTTP_F_TE)
			continue;
		while (list_next(&rest, &item))
			if (str_ieq(item, STR("trailers")))
				head->te_trailers = true;
	}
}

static int read_max_forwards(struct http_head *head, const struct field_index *ix, struct http_verdict *v)
{
	uint64_t n;

	head->max_forwards = -1;
	if (!ix->count[HTTP_F_MAX_FORWARDS] || (head->method_id != HTTP_M_OPTIONS && head->method_id != HTTP_M_TRACE))
		return 0;
	if (ix->count[HTTP_F_MAX_FORWARDS] > 1 || !parse_decimal(index_first(head, ix, HTTP_F_MAX_FORWARDS)->value, &n))
		return head_bad(v, 400, "bad Max-Forwards");
	head->max_forwards = (int64_t)n;
	return 0;
}

static int parse_request(struct cursor *c, unsigned fields_max, int arg _unused_, struct http_head *head,
			 struct http_verdict *v)
{
	struct field_index ix;
	int r;

	if ((r = skip_leading_crlf(c, v)) || (r = take_method(c, head, v)) || (r = take_target(c, head, v)) ||
	    (r = take_version(c, head, v)))
		return r;
	head->method_id = http_method_id(head->method);
	if ((r = read_target(head, v)) || (r = head_take_fields(c, fields_max, head, &ix, v)))
		return r;
	if ((r = refuse_lookalikes(head, v)) || (r = head_read_framing(head, &ix, v)) ||
	    (r = head_read_connection(head, &ix, v)) || (r = read_host(head, &ix, v)) || (r = read_expect(head, &ix, v)) || (r = read_max_forwards(head, &ix, v)))
		return r;
	read_te(head, &ix);
	/* RFC 9110 9.3.8: a client MUST NOT send content in a TRACE request. */
	if (head->method_id == HTTP_M_TRACE && (head->framing == HTTP_BODY_CHUNKED || head->length > 0))
		return head_bad(v, 400, "TRACE with a body");
	head->status = 0;
	head->reason = STR_NONE;
	return 0;
}

int http_parse_request(const char *p, size_t n, size_t *scan, const struct http_limits *limits,
		       struct http_head *head, struct http_verdict *verdict)
{
	return head_run(p, n, scan, limits, parse_request, 0, head, verdict);
}
