/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each path answers. An answer puts the head into c->out, says what body
 * follows and what comes after it, and names the next state.
 */
#include <stdio.h>
#include <stdlib.h>
#include "origin.h"

static const char *status_text(unsigned status)
{
	static const struct {
		unsigned status;
		const char *text;
	} known[] = {
		{ 200, "OK" },
		{ 204, "No Content" },
		{ 304, "Not Modified" },
		{ 400, "Bad Request" },
		{ 404, "Not Found" },
		{ 500, "Internal Server Error" },
		{ 503, "Service Unavailable" },
	};
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (known[i].status == status)
			return known[i].text;
	return "Status";
}

static void head_begin(struct conn *c, unsigned status, const char *type)
{
	buf_printf(&c->out, "HTTP/1.1 %u %s\r\nX-Origin: %s\r\nX-Conn-Requests: %" PRIu64 "\r\n", status,
		   status_text(status), g.name, c->requests);
	if (type)
		buf_printf(&c->out, "Content-Type: %s\r\n", type);
	if (c->close && c->after == AFTER_KEEP)
		c->after = AFTER_FIN;
	if (c->after != AFTER_KEEP && c->after != AFTER_DRAIN)
		buf_append_str(&c->out, STR("Connection: close\r\n"));
}

/* A response of `declared` bytes with `sent` bytes of T behind the head. */
static enum step respond_pattern(struct conn *c, uint64_t declared, uint64_t sent)
{
	head_begin(c, 200, "application/octet-stream");
	buf_printf(&c->out, "Content-Length: %" PRIu64 "\r\n\r\n", declared);
	c->kind = BODY_PLAIN;
	c->left = sent;
	return go(c, ST_SEND);
}

enum step respond_text(struct conn *c, unsigned status, const char *type, const void *p, size_t n)
{
	head_begin(c, status, type);
	if (status != 204 && status >= 200)
		buf_printf(&c->out, "Content-Length: %zu\r\n", n);
	buf_append_str(&c->out, STR("\r\n"));
	if (strcmp(c->method, "HEAD") && status != 204 && status != 304)
		buf_append(&c->out, p, n);
	return go(c, ST_SEND);
}

static enum step answer_hello(struct conn *c)
{
	char text[96];
	int n = snprintf(text, sizeof(text), "Hello from %s\n", g.name);

	return respond_text(c, 200, "text/plain", text, (size_t)n);
}

enum step answer_bad_request(struct conn *c)
{
	c->minor = 1;
	c->close = true;
	return respond_text(c, 400, "text/plain", "not a request\n", 14);
}

static enum step answer_missing(struct conn *c)
{
	return respond_text(c, 404, "text/plain", "no such thing here\n", 19);
}

static enum step answer_bytes(struct conn *c)
{
	return respond_pattern(c, c->arg, c->arg);
}

/* /chunked/N?chunk=K&ext=1&trailer=1; close-delimited for HTTP/1.0 clients, who know no chunks. */
static enum step answer_chunked(struct conn *c)
{
	if (c->minor == 0)
		c->after = AFTER_FIN;
	c->trailer = query_num(c, "trailer", 0);
	head_begin(c, 200, "application/octet-stream");
	if (c->minor == 0) {
		buf_append_str(&c->out, STR("\r\n"));
		c->kind = BODY_PLAIN;
	} else {
		buf_printf(&c->out, "Transfer-Encoding: chunked\r\n%s\r\n", c->trailer ? "Trailer: X-Trailer\r\n" : "");
		c->kind = BODY_CHUNKED;
	}
	c->left = c->arg;
	c->chunk = MAX_OF(query_num(c, "chunk", 16384), 1ull);
	c->ext = query_num(c, "ext", 0);
	c->chunk_open = false;
	return go(c, ST_SEND);
}

/* /close/N[?notify=0]: close-delimited; notify=0 ends TLS without close_notify, rst=1 with a reset. */
static enum step answer_close(struct conn *c)
{
	c->after = query_num(c, "rst", 0) ? AFTER_RST : query_num(c, "notify", 1) ? AFTER_FIN : AFTER_CUT;
	head_begin(c, 200, "application/octet-stream");
	buf_append_str(&c->out, STR("\r\n"));
	c->kind = BODY_PLAIN;
	c->left = c->arg;
	return go(c, ST_SEND);
}

/* /short/N?send=M[&rst=1][&chunk=K]: promises N bytes, sends M, ends. chunk: chunked, without the last chunk. */
static enum step answer_short(struct conn *c)
{
	uint64_t sent = query_num(c, "send", c->arg / 2);

	c->after = AFTER_KEEP;
	c->close = false;
	if (!query_num(c, "chunk", 0)) {
		respond_pattern(c, c->arg, sent);
	} else {
		head_begin(c, 200, "application/octet-stream");
		buf_printf(&c->out, "Transfer-Encoding: chunked\r\n\r\n%" PRIx64 "\r\n", c->arg);
		c->kind = BODY_PLAIN;
		c->left = sent;
	}
	c->after = query_num(c, "rst", 0) ? AFTER_RST : AFTER_FIN;
	return go(c, ST_SEND);
}

/* /long/N?extra=M: M bytes more than promised, and stays open. */
static enum step answer_long(struct conn *c)
{
	return respond_pattern(c, c->arg, c->arg + query_num(c, "extra", 1));
}

/* /slow?bytes=&rate=&ms=: rate bytes a second in slices every ms. */
static enum step answer_slow(struct conn *c)
{
	uint64_t n = query_num(c, "bytes", 65536);

	c->slice_ms = MAX_OF(query_num(c, "ms", 100), 1ull);
	c->slice = MAX_OF(query_num(c, "rate", 16384) * c->slice_ms / 1000, 1ull);
	respond_pattern(c, n, n);
	c->kind = BODY_PACED;
	return STEP_ON;
}

/* /delay/MS?bytes=N: the answer comes MS milliseconds later. */
static enum step answer_delay(struct conn *c)
{
	if (c->wake) {
		c->wake = 0;
		return respond_pattern(c, query_num(c, "bytes", 5), query_num(c, "bytes", 5));
	}
	return sleep_ms(c, c->arg);
}

static enum step answer_echo(struct conn *c)
{
	c->echo_chunked = c->chunked;
	head_begin(c, 200, "application/octet-stream");
	if (c->chunked)
		buf_append_str(&c->out, STR("Transfer-Encoding: chunked\r\n\r\n"));
	else
		buf_printf(&c->out, "Content-Length: %" PRIu64 "\r\n\r\n", c->in_left);
	return go(c, ST_ECHO);
}

static enum step answer_sha256(struct conn *c)
{
	unsigned char sum[32];
	char hex[65], text[160];
	int n;

	EVP_DigestFinal_ex(c->md, sum, NULL);
	for (int i = 0; i < 32; i++)
		snprintf(hex + 2 * i, 3, "%02x", sum[i]);
	n = snprintf(text, sizeof(text), "{\"bytes\":%" PRIu64 ",\"sha256\":\"%s\"}\n", c->in_total, hex);
	return respond_text(c, 200, "application/json", text, (size_t)n);
}

/* /status/NNN */
static enum step answer_status(struct conn *c)
{
	return respond_text(c, (unsigned)c->arg, "text/plain", "status\n", 7);
}

/* /early/NNN[?keep=1]: answers before the body; then closes tidily, or with keep=1 reads the body and goes on. */
static enum step answer_early(struct conn *c)
{
	c->after = query_num(c, "keep", 0) ? AFTER_DRAIN : AFTER_FIN;
	return answer_status(c);
}

static enum step answer_hints(struct conn *c)
{
	for (uint64_t i = query_num(c, "n", 1); i > 0; i--)
		buf_append_str(&c->out, STR("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"));
	return answer_hello(c);
}

static enum step answer_upgrade(struct conn *c)
{
	if (!c->upgrade)
		return respond_text(c, 426, "text/plain", "ask for an upgrade\n", 19);
	buf_append_str(&c->out,
		       STR("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"));
	return go(c, ST_TUNNEL);
}

static enum step answer_reset(struct conn *c)
{
	return cut(c, true);
}

static enum step answer_drop(struct conn *c _unused_)
{
	return STEP_END;
}

static enum step answer_stall(struct conn *c)
{
	return go(c, ST_STALL);
}

/* The request's head as JSON: the line, and the fields in order as pairs. */
static enum step answer_headers(struct conn *c)
{
	struct str rest = buf_str(&c->head), line;
	struct buf j = BUF_INIT;
	const char *sep = "";
	enum step s;

	next_line(&rest, &line);
	buf_append_str(&j, STR("{\"line\":\""));
	buf_append_json(&j, line);
	buf_append_str(&j, STR("\",\"fields\":["));
	while (next_line(&rest, &line) && line.n) {
		const char *colon = memchr(line.p, ':', line.n);
		struct str name = { line.p, (size_t)(colon - line.p) };
		struct str v = { colon + 1, line.n - name.n - 1 };

		while (v.n && *v.p == ' ')
			v.p++, v.n--;
		buf_printf(&j, "%s[\"", sep);
		buf_append_json(&j, name);
		buf_append_str(&j, STR("\",\""));
		buf_append_json(&j, v);
		buf_append_str(&j, STR("\"]"));
		sep = ",";
	}
	buf_printf(&j, "],\"body_bytes\":%" PRIu64 ",\"tls\":%s}\n", c->in_total, c->ssl ? "true" : "false");
	s = respond_text(c, 200, "application/json", buf_data(&j), j.len);
	buf_deinit(&j);
	return s;
}

static enum step answer_stats(struct conn *c)
{
	char t[256];
	int n = snprintf(t, sizeof(t),
			 "{\"name\":\"%s\",\"open\":%llu,\"accepted\":%llu,\"requests\":%llu,\"aborted\":%llu,"
			 "\"handshakes\":%llu,\"tls_failed\":%llu}\n",
			 g.name, atomic_load(&g.open), atomic_load(&g.accepted), atomic_load(&g.requests),
			 atomic_load(&g.aborted), atomic_load(&g.handshakes), atomic_load(&g.tls_failed));
	return respond_text(c, 200, "application/json", t, (size_t)n);
}

static const struct route routes[] = {
	{ "/bytes/", true, false, false, answer_bytes },     { "/", false, false, false, answer_hello },
	{ "/chunked/", true, false, false, answer_chunked }, { "/close/", true, false, false, answer_close },
	{ "/short/", true, false, false, answer_short },     { "/long/", true, false, false, answer_long },
	{ "/slow", false, false, false, answer_slow },       { "/delay/", true, false, false, answer_delay },
	{ "/echo", false, true, false, answer_echo },        { "/sha256", false, false, true, answer_sha256 },
	{ "/status/", true, false, false, answer_status },   { "/headers", false, false, false, answer_headers },
	{ "/early/", true, true, false, answer_early },      { "/hints", false, false, false, answer_hints },
	{ "/upgrade", false, true, false, answer_upgrade },  { "/reset", false, true, false, answer_reset },
	{ "/drop", false, true, false, answer_drop },        { "/stall", false, true, false, answer_stall },
	{ "/stats", false, false, false, answer_stats },
};
static const struct route route_missing = { "", false, false, false, answer_missing };

const struct route *route_find(struct conn *c)
{
	for (const struct route *r = routes; r < routes + ARRAY_SIZE(routes); r++) {
		size_t n = strlen(r->path);

		if (r->prefix ? c->path.n <= n || memcmp(c->path.p, r->path, n) : !str_eqz(c->path, r->path))
			continue;
		c->arg = r->prefix ? strtoull(c->path.p + n, NULL, 10) : 0;
		return r;
	}
	return &route_missing;
}
