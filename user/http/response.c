/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Response heads: the status line (RFC 9112 4) and what the status and the
 * request's method say about the body (RFC 9112 6.3).
 */
#include "http/head.h"

/* HTTP/1.d SP 3DIGIT [SP reason] CRLF, refused at the first byte that can not be one. */
static int take_status_line(struct cursor *c, struct http_head *head, struct http_verdict *v)
{
	static const char form[] = "HTTP/1.d sdd";
	size_t n = (size_t)(c->end - c->p);

	for (size_t i = 0; i < sizeof(form) - 1; i++) {
		bool ok;

		if (i == n)
			return HTTP_MORE;
		if (form[i] == 'd')
			ok = ch_is(c->p[i], CH_DIGIT);
		else if (form[i] == 's')
			ok = ch_is(c->p[i], CH_DIGIT) && c->p[i] != '0';
		else
			ok = c->p[i] == form[i];
		if (!ok)
			return head_bad(v, 502, i < 8 ? "not an HTTP/1 response" : "bad status line");
	}
	head->minor = c->p[7] != '0';
	head->status = (c->p[9] - '0') * 100 + (c->p[10] - '0') * 10 + (c->p[11] - '0');
	head->reason = STR_NONE;
	c->p += 12;
	if (c->p == c->end)
		return HTTP_MORE;
	if (*c->p == ' ') {
		c->p++;
		head->reason = (struct str){ c->p, span_value(c->p, (size_t)(c->end - c->p)) };
		c->p += head->reason.n;
	}
	/* Many servers leave the space out when there is no phrase; nobody reads that in two ways. */
	return head_take_crlf(c, v);
}

/* RFC 9112 6.3 */
static int read_body(struct http_head *head, enum http_method request_method, struct http_verdict *v)
{
	bool interim = head->status < 200;

	/*
	 * RFC 9110 8.6, RFC 9112 6.1: neither field may be here. A length of 0
	 * is common with 204 and 205 and says the same as none.
	 */
	if ((interim || head->status == 204) && (head->framing == HTTP_BODY_CHUNKED || head->length > 0))
		return head_bad(v, 502, "framing in a response that has no body");
	if (head->status == 205 && head->length > 0 && request_method != HTTP_M_HEAD)
		return head_bad(v, 502, "205 with a body");

	if (interim || head->status == 204 || head->status == 304 || request_method == HTTP_M_HEAD)
		head->framing = HTTP_BODY_NONE;
	else if (head->framing == HTTP_BODY_NONE)
		head->framing = HTTP_BODY_CLOSE;
	if (head->framing == HTTP_BODY_CLOSE || head->status == 101)
		head->keep_alive = false;
	return 0;
}

static int parse_response(struct cursor *c, unsigned fields_max, int method, struct http_head *head,
			  struct http_verdict *v)
{
	struct field_index ix;
	int r;

	if ((r = take_status_line(c, head, v)) || (r = head_take_fields(c, fields_max, head, &ix, v)))
		return r;
	if ((r = head_read_framing(head, &ix, v)) || (r = head_read_connection(head, &ix, v)) ||
	    (r = read_body(head, (enum http_method)method, v)))
		return r;
	head->method_id = HTTP_M_OTHER;
	head->method = head->target = head->scheme = head->authority = head->path = head->host = STR_NONE;
	head->expect_continue = head->te_trailers = false;
	head->max_forwards = -1;
	return 0;
}

int http_parse_response(const char *p, size_t n, size_t *scan, const struct http_limits *limits,
			enum http_method request_method, struct http_head *head, struct http_verdict *verdict)
{
	int r = head_run(p, n, scan, limits, parse_response, (int)request_method, head, verdict);

	if (r == HTTP_BAD)
		verdict->status = 502;
	return r;
}
