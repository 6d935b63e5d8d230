/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The admin HTTP door: GET and HEAD of a table of pages. It only reads, so it
 * has no secrets to keep but the numbers themselves; it belongs on a loopback
 * or management address all the same. The framing is the proxy's own strict
 * one, and a request with a body is refused.
 */
#include <errno.h>
#include <stdio.h>

#include "control/control_inner.h"
#include "http/http.h"

#define HEAD_BYTES 8192u
#define HEAD_FIELDS 64u

struct page {
	const char *path, *type;
	/* Appends the body; the status is returned, negative: -errno. */
	int (*write)(const struct control *c, struct buf *out);
};

static int viewed(const struct control *c, struct buf *out, int (*write)(const struct view *, struct buf *))
{
	struct view v;
	int r = view_collect(&v, c);

	if (r == 0)
		r = write(&v, out);
	view_deinit(&v);
	return r < 0 ? r : 200;
}

static int page_metrics(const struct control *c, struct buf *out)
{
	return viewed(c, out, view_write_metrics);
}

static int page_status(const struct control *c, struct buf *out)
{
	return viewed(c, out, view_write_status);
}

static int page_health(const struct control *c, struct buf *out)
{
	bool draining = view_draining(c);
	int r = buf_append_str(out, draining ? STR("draining\n") : STR("ok\n"));

	return r < 0 ? r : draining ? 503 : 200;
}

static int page_people(const struct control *c _unused_, struct buf *out)
{
	int r = buf_append_str(out, page_html());

	return r < 0 ? r : 200;
}

static const struct page pages[] = {
	{ "/", "text/html; charset=utf-8", page_people },
	{ "/metrics", "text/plain; version=0.0.4; charset=utf-8", page_metrics },
	{ "/status", "application/json", page_status },
	{ "/healthz", "text/plain; charset=utf-8", page_health },
};

static const struct page *page_find(struct str target)
{
	const char *query = memchr(target.p, '?', target.n);

	if (query)
		target.n = (size_t)(query - target.p);
	for (size_t i = 0; i < ARRAY_SIZE(pages); i++)
		if (str_eqz(target, pages[i].path))
			return &pages[i];
	return NULL;
}

static int answer_head(struct buf *out, int status, const char *type, size_t length, const char *more, bool close)
{
	char date[40];
	time_t now = time(NULL);
	struct tm tm;

	gmtime_r(&now, &tm);
	strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
	return buf_printf(out,
			  "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
			  "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
			  "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; "
			  "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
			  "frame-ancestors 'none'\r\n%s%s\r\n",
			  status, http_status_text(status), date, type, length, more, close ? "Connection: close\r\n" : "");
}

static int answer_text(struct peer *p, int status, const char *text, const char *more, bool head)
{
	char body[200];
	int n = snprintf(body, sizeof(body), "%d %s\n", status, text), r;

	r = answer_head(&p->out, status, "text/plain; charset=utf-8", (size_t)n, more, !p->keep);
	return r < 0 || head ? r : buf_append(&p->out, body, (size_t)n);
}

static int answer_page(struct peer *p, const struct page *page, bool head)
{
	struct buf body = BUF_INIT;
	int status = page->write(p->door->owner, &body), r;

	if (status < 0) {
		buf_deinit(&body);
		p->keep = false;
		return answer_text(p, 500, "out of memory", "", head);
	}
	r = answer_head(&p->out, status, page->type, body.len, "", !p->keep);
	if (r == 0 && !head)
		r = buf_append_str(&p->out, buf_str(&body));
	buf_deinit(&body);
	return r;
}

static int http_answer(struct peer *p)
{
	struct http_field fields[HEAD_FIELDS];
	struct http_limits limits = { .head_bytes = HEAD_BYTES, .fields = HEAD_FIELDS };
	struct http_verdict verdict;
	const struct page *page;
	struct http_head head;
	bool is_head;
	int r;

	http_head_init(&head, fields, HEAD_FIELDS);
	r = http_parse_request(buf_data(&p->in), p->in.len, &p->scan, &limits, &head, &verdict);
	if (r == HTTP_MORE)
		return 1;
	if (r == HTTP_BAD) {
		p->keep = false;
		buf_deinit(&p->in);
		return answer_text(p, verdict.status, verdict.reason, "", false);
	}
	is_head = head.method_id == HTTP_M_HEAD;
	/* 1.0 peers that want to go on would have to be told so; they are told to close instead. */
	p->keep = head.keep_alive && head.minor >= 1 && p->served + 1 < DOOR_REQUESTS_MAX && p->door->listen.fd >= 0;
	page = page_find(head.path);
	if (head.framing == HTTP_BODY_CHUNKED || (head.framing == HTTP_BODY_LENGTH && head.length)) {
		p->keep = false; /* what follows is not a request */
		r = answer_text(p, 400, "no body is wanted here", "", is_head);
	} else if (!page) {
		r = answer_text(p, 404, "there are /metrics, /status, /healthz and /", "", is_head);
	} else if (!is_head && head.method_id != HTTP_M_GET) {
		r = answer_text(p, 405, "GET or HEAD", "Allow: GET, HEAD\r\n", false);
	} else {
		r = answer_page(p, page, is_head);
	}
	buf_consume(&p->in, head.head_len);
	return r;
}

const struct door_service http_service = {
	.name = "http",
	.peers_max = 64,
	.request_max = HEAD_BYTES + 1, /* one more than the parser bears with, so that it decides */
	.answer = http_answer,
};
