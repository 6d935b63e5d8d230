/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Heads for the other side: a new start line, the end-to-end fields as they
 * came, and framing and connection fields of our own making. Space for the
 * whole head is reserved first, from an upper bound, so the rest is copying.
 *
 * Fields that came as "Name: value" CRLF and lie behind one another are copied
 * in one go; that is nearly every head.
 */
#include <assert.h>
#include "http/token.h"

/* Room for all fixed text and numbers a writer adds. */
#define FIXED_BYTES 512u

/* A reserved piece of the output, and the run of input fields not yet copied to it. */
struct writer {
	char *p;
	const char *run;
	size_t run_n;
};

/* The edit's names have the last word, but never over these: they decide framing, connection and host. */
static bool is_ours(enum http_field_id id)
{
	return id == HTTP_F_HOST || id == HTTP_F_CONTENT_LENGTH || id == HTTP_F_TRANSFER_ENCODING ||
	       id == HTTP_F_CONNECTION || id == HTTP_F_UPGRADE;
}

static void put(struct writer *w, struct str s)
{
	if (s.n) {
		memcpy(w->p, s.p, s.n);
		w->p += s.n;
	}
}

static void put_decimal(struct writer *w, uint64_t v)
{
	char digits[20];
	size_t i = sizeof(digits);

	do {
		digits[--i] = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	put(w, (struct str){ digits + i, sizeof(digits) - i });
}

static void put_pair(struct writer *w, struct str name, struct str value)
{
	put(w, name);
	put(w, STR(": "));
	put(w, value);
	put(w, STR("\r\n"));
}

static void flush_run(struct writer *w)
{
	put(w, (struct str){ w->run, w->run_n });
	w->run = NULL;
	w->run_n = 0;
}

static void put_field(struct writer *w, const struct http_field *f)
{
	const char *name_end = f->name.p + f->name.n;
	size_t line_n = f->name.n + 2 + f->value.n + 2;

	/* Parsed fields end in CRLF, so the byte behind the value is there to look at. */
	if (f->value.p != name_end + 2 || name_end[1] != ' ' || f->value.p[f->value.n] != '\r') {
		flush_run(w);
		put_pair(w, f->name, f->value);
		return;
	}
	if (w->run && w->run + w->run_n == f->name.p) {
		w->run_n += line_n;
		return;
	}
	flush_run(w);
	w->run = f->name.p;
	w->run_n = line_n;
}

static size_t fields_bound(const struct http_head *head, const struct http_edit *edit)
{
	size_t n = FIXED_BYTES;

	for (unsigned i = 0; i < head->nfields; i++)
		n += head->fields[i].name.n + head->fields[i].value.n + 4;
	for (size_t i = 0; edit && i < edit->nset; i++)
		n += edit->set[i].name.n + edit->set[i].value.n + 4;
	return n;
}

static bool edit_drops(const struct http_edit *edit, const struct http_field *f)
{
	if (!edit || is_ours((enum http_field_id)f->id))
		return false;
	for (size_t i = 0; i < edit->nremove; i++)
		if (str_ieq(f->name, edit->remove[i]))
			return true;
	for (size_t i = 0; i < edit->nset; i++)
		if (str_ieq(f->name, edit->set[i].name))
			return true;
	return false;
}

static void put_edit(struct writer *w, const struct http_edit *edit)
{
	for (size_t i = 0; edit && i < edit->nset; i++)
		if (!is_ours(http_field_id(edit->set[i].name)))
			put_pair(w, edit->set[i].name, edit->set[i].value);
}

static void put_framing(struct writer *w, enum http_framing framing, uint64_t length)
{
	if (framing == HTTP_BODY_LENGTH) {
		put(w, STR("Content-Length: "));
		put_decimal(w, length);
		put(w, STR("\r\n"));
	} else if (framing == HTTP_BODY_CHUNKED) {
		put(w, STR("Transfer-Encoding: chunked\r\n"));
	}
}

/* A client on a unix socket has no address to add. */
static bool adds_forwarded_for(const struct http_rewrite *rw)
{
	return rw->xff && rw->client_ip.n;
}

/* Whether a field of the client's goes on as it is. */
static bool request_field_passes(const struct http_field *f, const struct http_head *head, const struct http_rewrite *rw)
{
	if (f->hop || edit_drops(rw->edit, f))
		return false;
	switch ((enum http_field_id)f->id) {
	case HTTP_F_HOST:
	case HTTP_F_CONTENT_LENGTH:
		return false;
	case HTTP_F_EXPECT:
		return head->expect_continue && !rw->drop_expect;
	case HTTP_F_TRAILER:
		return head->framing == HTTP_BODY_CHUNKED;
	case HTTP_F_MAX_FORWARDS:
		return head->max_forwards < 0;
	case HTTP_F_X_FORWARDED_FOR:
		return !adds_forwarded_for(rw);
	case HTTP_F_X_FORWARDED_PROTO:
		return !rw->xfp;
	case HTTP_F_X_FORWARDED_HOST:
		return !rw->xfh;
	default:
		return true;
	}
}

/* One line, because many backends look at one only; a value the client withdrew through Connection stays out. */
static void put_forwarded_for(struct writer *w, const struct http_head *head, struct str client_ip)
{
	put(w, STR("X-Forwarded-For: "));
	for (unsigned i = 0; i < head->nfields; i++) {
		const struct http_field *f = &head->fields[i];

		if (f->id != HTTP_F_X_FORWARDED_FOR || f->hop || !f->value.n)
			continue;
		put(w, f->value);
		put(w, STR(", "));
	}
	put(w, client_ip);
	put(w, STR("\r\n"));
}

static void put_request_line(struct writer *w, const struct http_head *head, struct str host)
{
	put(w, head->method);
	put(w, STR(" "));
	if (head->path.p[0] == '?')
		put(w, STR("/"));
	put(w, head->path);
	put(w, STR(" HTTP/1.1\r\n"));
	put_pair(w, STR("Host"), host);
}

/* RFC 9110 10.1.4: TE is for one connection, so it is named in Connection; 7.8 says the same of Upgrade. */
static void put_request_connection(struct writer *w, const struct http_head *head, const struct http_rewrite *rw)
{
	bool upgrade = rw->pass_upgrade && head->upgrade.n;
	const char *sep = "Connection: ";

	if (head->te_trailers)
		put(w, STR("TE: trailers\r\n"));
	if (upgrade)
		put_pair(w, STR("Upgrade"), head->upgrade);
	if (rw->close) {
		put(w, str_from(sep));
		put(w, STR("close"));
		sep = ", ";
	}
	if (upgrade) {
		put(w, str_from(sep));
		put(w, STR("Upgrade"));
		sep = ", ";
	}
	if (head->te_trailers) {
		put(w, str_from(sep));
		put(w, STR("TE"));
		sep = ", ";
	}
	if (sep[0] == ',')
		put(w, STR("\r\n"));
}

int http_write_request(struct buf *out, const struct http_head *head, const struct http_rewrite *rw)
{
	struct str host = rw->host.n ? rw->host : head->host;
	size_t bound = fields_bound(head, rw->edit) + head->method.n + head->path.n + host.n + head->host.n +
		       rw->client_ip.n + rw->proto.n + rw->via.n + head->upgrade.n;
	struct writer w = { 0 };
	int r = buf_reserve(out, bound);

	if (r < 0)
		return r;
	w.p = buf_tail(out);
	put_request_line(&w, head, host);
	for (unsigned i = 0; i < head->nfields; i++)
		if (request_field_passes(&head->fields[i], head, rw))
			put_field(&w, &head->fields[i]);
	flush_run(&w);
	put_framing(&w, head->framing, head->length);
	if (head->max_forwards >= 0) {
		put(&w, STR("Max-Forwards: "));
		put_decimal(&w, head->max_forwards ? (uint64_t)head->max_forwards - 1 : 0);
		put(&w, STR("\r\n"));
	}
	if (adds_forwarded_for(rw))
		put_forwarded_for(&w, head, rw->client_ip);
	if (rw->xfp)
		put_pair(&w, STR("X-Forwarded-Proto"), rw->proto);
	if (rw->xfh && head->host.n)
		put_pair(&w, STR("X-Forwarded-Host"), head->host);
	if (rw->via.n)
		put_pair(&w, STR("Via"), rw->via);
	put_edit(&w, rw->edit);
	put_request_connection(&w, head, rw);
	put(&w, STR("\r\n"));
	assert((size_t)(w.p - buf_tail(out)) <= bound);
	buf_commit(out, (size_t)(w.p - buf_tail(out)));
	return 0;
}

bool http_response_ends_by_close(const struct http_head *head, uint8_t client_minor)
{
	return head->framing == HTTP_BODY_CLOSE || (head->framing == HTTP_BODY_CHUNKED && client_minor == 0);
}

static bool response_field_passes(const struct http_field *f, const struct http_head *head,
				  const struct http_rewrite_response *rw, bool chunked)
{
	if (f->hop || (head->status >= 200 && edit_drops(rw->edit, f)))
		return false;
	return f->id != HTTP_F_CONTENT_LENGTH && (f->id != HTTP_F_TRAILER || chunked);
}

static void put_response_connection(struct writer *w, const struct http_head *head,
				    const struct http_rewrite_response *rw)
{
	if (head->status == 101 && rw->upgrade && head->upgrade.n) {
		put_pair(w, STR("Upgrade"), head->upgrade);
		put(w, STR("Connection: Upgrade\r\n"));
	}
	/* An interim response says nothing about the connection: the final one will. */
	if (head->status < 200)
		return;
	if (rw->close || http_response_ends_by_close(head, rw->client_minor))
		put(w, STR("Connection: close\r\n"));
	else if (rw->client_minor == 0)
		put(w, STR("Connection: keep-alive\r\n"));
}

int http_write_response(struct buf *out, const struct http_head *head, const struct http_rewrite_response *rw)
{
	size_t bound = fields_bound(head, rw->edit) + head->reason.n + rw->via.n + head->upgrade.n;
	bool chunked = head->framing == HTTP_BODY_CHUNKED && rw->client_minor >= 1;
	struct writer w = { 0 };
	int r = buf_reserve(out, bound);

	if (r < 0)
		return r;
	w.p = buf_tail(out);
	put(&w, STR("HTTP/1.1 "));
	put_decimal(&w, (uint64_t)head->status);
	put(&w, STR(" "));
	put(&w, head->reason);
	put(&w, STR("\r\n"));
	for (unsigned i = 0; i < head->nfields; i++)
		if (response_field_passes(&head->fields[i], head, rw, chunked))
			put_field(&w, &head->fields[i]);
	flush_run(&w);
	if (chunked || head->framing == HTTP_BODY_LENGTH)
		put_framing(&w, head->framing, head->length);
	/* What the body would have been (HEAD, 304); RFC 9110 8.6 wants nothing with 1xx and 204. */
	else if (head->framing == HTTP_BODY_NONE && head->status >= 200 && head->status != 204 &&
		 http_head_field(head, HTTP_F_CONTENT_LENGTH))
		put_framing(&w, HTTP_BODY_LENGTH, head->length);
	if (rw->via.n && head->status >= 200)
		put_pair(&w, STR("Via"), rw->via);
	if (head->status >= 200)
		put_edit(&w, rw->edit);
	put_response_connection(&w, head, rw);
	put(&w, STR("\r\n"));
	assert((size_t)(w.p - buf_tail(out)) <= bound);
	buf_commit(out, (size_t)(w.p - buf_tail(out)));
	return 0;
}

int http_write_error(struct buf *out, int status, const char *reason, bool close, bool head_request)
{
	const char *text = http_status_text(status);
	size_t body = strlen(text) + 1 + (reason ? 2 + strlen(reason) : 0);

	return buf_printf(out, "HTTP/1.1 %d %s\r\n%sContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n%s%s%s%s", status,
			  text, status == 405 ? "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n" : "", body,
			  close ? "Connection: close\r\n" : "", head_request ? "" : text,
			  head_request || !reason ? "" : ": ", head_request || !reason ? "" : reason,
			  head_request ? "" : "\n");
}
