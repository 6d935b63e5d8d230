/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunked bodies (RFC 9112 7.1), filtered in place. Output is input with bytes
 * left out, so the write position never passes the read position, and as long
 * as nothing was left out they are the same and nothing is moved.
 *
 *   SIZE -> [EXT_NAME -> EXT] -> SIZE_LF -> DATA -> DATA_CR -> DATA_LF -> SIZE …
 *   SIZE_LF (size 0) -> TRAILER -> NAME -> VALUE -> TRAILER_LF -> TRAILER … -> END_LF -> DONE
 */
#include <assert.h>
#include "http/token.h"

#define CHUNK_LINE_MAX 256u
/* Extension bytes beyond what data pays for, one byte each: tiny chunks with long extensions are an old attack. */
#define CHUNK_OVERHEAD_MAX 16384u

/* RFC 9110 6.5.1: framing, routing, authentication, and what says how to read the content must come first. */
static const bool refused_in_trailer[_HTTP_F_MAX] = {
	[HTTP_F_HOST] = true,		    [HTTP_F_CONNECTION] = true,		[HTTP_F_CONTENT_LENGTH] = true,
	[HTTP_F_TRANSFER_ENCODING] = true,  [HTTP_F_KEEP_ALIVE] = true,		[HTTP_F_PROXY_CONNECTION] = true,
	[HTTP_F_UPGRADE] = true,	    [HTTP_F_HTTP2_SETTINGS] = true,	[HTTP_F_TE] = true,
	[HTTP_F_TRAILER] = true,	    [HTTP_F_EXPECT] = true,		[HTTP_F_MAX_FORWARDS] = true,
	[HTTP_F_VIA] = true,		    [HTTP_F_X_FORWARDED_FOR] = true,	[HTTP_F_X_FORWARDED_PROTO] = true,
	[HTTP_F_X_FORWARDED_HOST] = true,   [HTTP_F_COOKIE] = true,		[HTTP_F_SET_COOKIE] = true,
	[HTTP_F_AUTHORIZATION] = true,	    [HTTP_F_PROXY_AUTHORIZATION] = true, [HTTP_F_PROXY_AUTHENTICATE] = true,
	[HTTP_F_CONTENT_TYPE] = true,	    [HTTP_F_CONTENT_ENCODING] = true,
};

/* The two positions in the caller's buffer. */
struct filter {
	char *buf;
	size_t n, r, w;
};

void http_chunked_init(struct http_chunked *c, bool emit_framing, uint32_t trailer_bytes)
{
	/* The CRLF that ends the section is no trailer's. */
	*c = (struct http_chunked){ .emit_framing = emit_framing, .trailer_left = MIN_OF(trailer_bytes, UINT32_MAX - 2) + 2 };
}

static void keep(struct filter *f, size_t n)
{
	if (f->w != f->r)
		memmove(f->buf + f->w, f->buf + f->r, n);
	f->w += n;
	f->r += n;
}

/* Takes n bytes of framing, which pass or not. */
static void take(const struct http_chunked *c, struct filter *f, size_t n)
{
	if (c->emit_framing)
		keep(f, n);
	else
		f->r += n;
}

static void count_data(struct http_chunked *c, uint64_t n)
{
	c->left -= n;
	c->data_total += n;
	c->overhead -= (uint32_t)MIN_OF((uint64_t)c->overhead, n);
	if (c->left == 0)
		c->phase = HTTP_CHUNK_DATA_CR;
}

void http_chunked_advance(struct http_chunked *c, uint64_t n)
{
	assert(n <= http_chunked_data_left(c));
	if (n)
		count_data(c, n);
}

static unsigned hex_value(char ch)
{
	return ch <= '9' ? (unsigned)(ch - '0') : (unsigned)((ch | 0x20) - 'a') + 10;
}

/* The size digits, up to what ends them. NULL or the reason to refuse. */
static const char *step_size(struct http_chunked *c, struct filter *f)
{
	char ch = f->buf[f->r];

	if (ch_is(ch, CH_HEX)) {
		if (++c->line > CHUNK_LINE_MAX)
			return "chunk line too long";
		if (c->left > (uint64_t)INT64_MAX >> 4)
			return "chunk size too large";
		c->left = c->left << 4 | hex_value(ch);
		take(c, f, 1);
		return NULL;
	}
	if (c->line == 0)
		return "no chunk size";
	if (ch == '\r') {
		c->phase = HTTP_CHUNK_SIZE_LF;
		take(c, f, 1);
		return NULL;
	}
	if (ch != ';')
		return "bad character in a chunk size";
	c->phase = HTTP_CHUNK_EXT_NAME;
	c->line++;
	f->r++;
	return NULL;
}

/* Extensions never pass: nobody needs them, and parsers disagree about their line ends. */
static const char *step_extension(struct http_chunked *c, struct filter *f)
{
	char ch = f->buf[f->r];

	if (c->phase == HTTP_CHUNK_EXT && ch == '\r') {
		c->phase = HTTP_CHUNK_SIZE_LF;
		take(c, f, 1);
		return NULL;
	}
	if (!ch_is(ch, c->phase == HTTP_CHUNK_EXT ? CH_VALUE : CH_TOKEN))
		return "bad chunk extension";
	if (++c->line > CHUNK_LINE_MAX)
		return "chunk line too long";
	if (++c->overhead > CHUNK_OVERHEAD_MAX)
		return "too much chunk extension for so little data";
	c->phase = HTTP_CHUNK_EXT;
	f->r++;
	return NULL;
}

static const char *step_data(struct http_chunked *c, struct filter *f)
{
	size_t n = (size_t)MIN_OF(c->left, (uint64_t)(f->n - f->r));

	keep(f, n);
	count_data(c, n);
	return NULL;
}

/* One byte that must be this one. */
static const char *step_exact(struct http_chunked *c, struct filter *f, char want, enum http_chunked_phase next)
{
	if (f->buf[f->r] != want)
		return c->phase == HTTP_CHUNK_DATA_CR ? "data longer than its chunk" : "CR without LF in chunked framing";
	take(c, f, 1);
	c->phase = (uint8_t)next;
	return NULL;
}

static const char *step_trailer_name(struct http_chunked *c, struct filter *f)
{
	char ch = f->buf[f->r];
	struct str name = { c->name, c->name_len };

	if (c->phase == HTTP_CHUNK_TRAILER) {
		c->name_len = 0;
		if (ch == '\r') {
			take(c, f, 1);
			c->phase = HTTP_CHUNK_END_LF;
			return NULL;
		}
		if (ch == ':')
			return "empty trailer name";
		c->phase = HTTP_CHUNK_TRAILER_NAME;
	} else if (ch == ':') {
		/* A name that filled the space is longer than any we refuse. */
		if (name.n < sizeof(c->name) && refused_in_trailer[field_id_of_gateway(name)])
			return "field that must not be a trailer";
		c->phase = HTTP_CHUNK_TRAILER_VALUE;
		take(c, f, 1);
		return NULL;
	}
	if (!ch_is(ch, CH_TOKEN))
		return "bad character in a trailer name";
	if (c->name_len < sizeof(c->name))
		c->name[c->name_len++] = ch;
	take(c, f, 1);
	return NULL;
}

static const char *step_trailer_value(struct http_chunked *c, struct filter *f)
{
	size_t n = span_value(f->buf + f->r, f->n - f->r);

	if (n) {
		take(c, f, n);
		return NULL;
	}
	if (f->buf[f->r] != '\r')
		return "bad character in a trailer";
	take(c, f, 1);
	c->phase = HTTP_CHUNK_TRAILER_LF;
	return NULL;
}

static const char *step(struct http_chunked *c, struct filter *f)
{
	const char *bad;

	switch ((enum http_chunked_phase)c->phase) {
	case HTTP_CHUNK_SIZE:
		return step_size(c, f);
	case HTTP_CHUNK_EXT_NAME:
	case HTTP_CHUNK_EXT:
		return step_extension(c, f);
	case HTTP_CHUNK_SIZE_LF:
		return step_exact(c, f, '\n', c->left ? HTTP_CHUNK_DATA : HTTP_CHUNK_TRAILER);
	case HTTP_CHUNK_DATA:
		return step_data(c, f);
	case HTTP_CHUNK_DATA_CR:
		return step_exact(c, f, '\r', HTTP_CHUNK_DATA_LF);
	case HTTP_CHUNK_DATA_LF:
		bad = step_exact(c, f, '\n', HTTP_CHUNK_SIZE);
		c->line = 0;
		return bad;
	case HTTP_CHUNK_TRAILER:
	case HTTP_CHUNK_TRAILER_NAME:
		return step_trailer_name(c, f);
	case HTTP_CHUNK_TRAILER_VALUE:
		return step_trailer_value(c, f);
	case HTTP_CHUNK_TRAILER_LF:
		return step_exact(c, f, '\n', HTTP_CHUNK_TRAILER);
	case HTTP_CHUNK_END_LF:
		return step_exact(c, f, '\n', HTTP_CHUNK_DONE);
	case HTTP_CHUNK_DONE:
	case HTTP_CHUNK_BROKEN:
		break;
	}
	return "chunked body was refused before";
}

static bool in_trailers(const struct http_chunked *c)
{
	return c->phase >= HTTP_CHUNK_TRAILER && c->phase < HTTP_CHUNK_DONE;
}

int http_chunked_filter(struct http_chunked *c, char *buf, size_t n, size_t *consumed, size_t *kept,
			struct http_verdict *verdict)
{
	struct filter f = { .buf = buf, .n = n };
	const char *bad = c->phase == HTTP_CHUNK_BROKEN ? "chunked body was refused before" : NULL;

	while (!bad && f.r < n && c->phase != HTTP_CHUNK_DONE) {
		bool trailers = in_trailers(c);
		size_t before = f.r;

		bad = step(c, &f);
		if (bad || !trailers)
			continue;
		if (f.r - before > c->trailer_left)
			bad = "trailers too large";
		else
			c->trailer_left -= (uint32_t)(f.r - before);
	}
	*consumed = f.r;
	*kept = bad ? 0 : f.w;
	if (bad) {
		c->phase = HTTP_CHUNK_BROKEN;
		*verdict = (struct http_verdict){ 400, bad };
		return HTTP_BAD;
	}
	return c->phase == HTTP_CHUNK_DONE ? 0 : HTTP_MORE;
}
