/* SPDX-License-Identifier: Apache-2.0 */
/* What request and response heads share, inside the room only. */
#pragma once
#include "http/token.h"

/* A walk over the head's bytes. */
struct cursor {
	const char *p, *end;
};

/* Where the known fields are: how many of an id, and which was the first. */
struct field_index {
	uint16_t count[_HTTP_F_MAX];
	uint16_t first[_HTTP_F_MAX];
};

/* What the Connection fields ask for. */
struct connection_options {
	bool close, keep_alive, upgrade;
};

static inline int head_bad(struct http_verdict *v, int status, const char *reason)
{
	*v = (struct http_verdict){ status, reason };
	return HTTP_BAD;
}

/* Takes the CRLF that must stand at the cursor. 0, HTTP_MORE or HTTP_BAD. */
int head_take_crlf(struct cursor *c, struct http_verdict *v);

/*
 * Parses one whole head, start line first, from c on: 0 with c behind it,
 * HTTP_MORE when the bytes end too early, HTTP_BAD as soon as one is wrong.
 */
typedef int head_parse_fn(struct cursor *c, unsigned fields_max, int arg, struct http_head *head, struct http_verdict *v);

/* Runs parse over p[0..n) under the limits, and not again before there is something new to find out. */
int head_run(const char *p, size_t n, size_t *scan, const struct http_limits *limits, head_parse_fn *parse, int arg,
	     struct http_head *head, struct http_verdict *v);

/* Parses the field lines and the blank line into head->fields, and indexes them. */
int head_take_fields(struct cursor *c, unsigned fields_max, struct http_head *head, struct field_index *ix,
		     struct http_verdict *v);

/* Reads Connection, marks the fields named in it hop-by-hop, sets keep_alive and upgrade. 0 or HTTP_BAD. */
int head_read_connection(struct http_head *head, const struct field_index *ix, struct http_verdict *v);

/*
 * Reads Content-Length and Transfer-Encoding (RFC 9112 6.1-6.3): framing is
 * HTTP_BODY_NONE, _LENGTH or _CHUNKED after 0; HTTP_BAD for anything two
 * parsers could disagree on.
 */
int head_read_framing(struct http_head *head, const struct field_index *ix, struct http_verdict *v);

static inline const struct http_field *index_first(const struct http_head *head, const struct field_index *ix, int id)
{
	return ix->count[id] ? &head->fields[ix->first[id]] : NULL;
}
