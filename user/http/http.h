/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/1.x framing: bytes in, verdict out. Nothing here knows a file
 * descriptor, a clock or a lock, and nothing allocates except into a caller's
 * struct buf.
 *
 * The rule of the house (RFC 9112 section 11): whatever two parsers could
 * read differently is refused, never repaired. A head that is accepted has one
 * reading, and what the writers emit from it has the same one.
 *
 * Lifetime: every struct str in a head points into the bytes given to the
 * parser (or at a string constant) and dies with them. Parsers keep nothing
 * between calls but the caller's scan cursor, so the bytes may move between
 * two calls as long as they stay the same.
 */
#pragma once
#include "base/buf.h"
#include "base/util.h"

/* Positive returns of the parsers and of the chunked filter. */
enum {
	HTTP_MORE = 1, /* all well so far; call again with more bytes */
	HTTP_BAD = 2,  /* refused: the verdict says with what status and why */
};

enum http_method {
	HTTP_M_OTHER, /* a well-formed token that is none of those below */
	HTTP_M_GET,
	HTTP_M_HEAD,
	HTTP_M_POST,
	HTTP_M_PUT,
	HTTP_M_DELETE,
	HTTP_M_OPTIONS,
	HTTP_M_TRACE,
	HTTP_M_PATCH,
	HTTP_M_CONNECT, /* never in an accepted head: refused with 405 */
};

/* Safe to send a second time on another connection (RFC 9110 9.2.2). */
bool http_method_is_idempotent(enum http_method m);

enum http_field_id {
	HTTP_F_OTHER = 0,
	HTTP_F_HOST,
	HTTP_F_CONNECTION,
	HTTP_F_CONTENT_LENGTH,
	HTTP_F_TRANSFER_ENCODING,
	HTTP_F_KEEP_ALIVE,
	HTTP_F_PROXY_CONNECTION,
	HTTP_F_UPGRADE,
	HTTP_F_HTTP2_SETTINGS,
	HTTP_F_TE,
	HTTP_F_TRAILER,
	HTTP_F_EXPECT,
	HTTP_F_MAX_FORWARDS,
	HTTP_F_VIA,
	HTTP_F_X_FORWARDED_FOR,
	HTTP_F_X_FORWARDED_PROTO,
	HTTP_F_X_FORWARDED_HOST,
	HTTP_F_COOKIE,
	HTTP_F_USER_AGENT,
	HTTP_F_REFERER,
	HTTP_F_DATE,
	HTTP_F_SERVER,
	HTTP_F_CONTENT_TYPE,
	HTTP_F_CONTENT_ENCODING,
	HTTP_F_AUTHORIZATION,
	HTTP_F_PROXY_AUTHORIZATION,
	HTTP_F_PROXY_AUTHENTICATE,
	HTTP_F_SET_COOKIE,
	_HTTP_F_MAX,
};

/* The id of a field name, in any case. name must hold only token characters. */
enum http_field_id http_field_id(struct str name);

struct http_field {
	struct str name;  /* as received, at least one token character */
	struct str value; /* without surrounding whitespace; may be empty */
	uint8_t id;	  /* enum http_field_id */
	bool hop;	  /* hop-by-hop: by its nature, or named in Connection; writers leave it out */
};

/* The most fields a head can have, whatever the limits say. */
#define HTTP_FIELDS_MAX 256u

struct http_limits {
	size_t head_bytes; /* start line to blank line, all included */
	unsigned fields;   /* cut to the storage given to http_head_init */
};

enum http_framing {
	HTTP_BODY_NONE,	   /* the message ends with its head */
	HTTP_BODY_LENGTH,  /* exactly head.length bytes follow; may be 0 */
	HTTP_BODY_CHUNKED, /* struct http_chunked finds the end */
	HTTP_BODY_CLOSE,   /* responses only: until the peer closes */
};

struct http_verdict {
	int status;	    /* to answer: 400 405 414 417 431 501 505 for requests, 502 for responses */
	const char *reason; /* static short text, for the log and the body */
};

/* A request or a response head. Set up once with http_head_init, then parse into it as often as wanted. */
struct http_head {
	struct http_field *fields; /* the caller's storage */
	unsigned fields_cap;

	/* both, valid after a parser returned 0 */
	unsigned nfields;
	size_t head_len; /* bytes consumed, blank line and leading CRLFs included */
	uint64_t length; /* HTTP_BODY_LENGTH: body bytes, < 2^63; otherwise what a HEAD or 304 response announced, or 0 */
	enum http_framing framing;
	uint8_t minor;	    /* 0, or 1 for HTTP/1.1 and above */
	bool keep_alive;    /* the peer is willing to go on after this message (RFC 9112 9.3) */
	struct str upgrade; /* value of Upgrade when Connection says so too; empty on 1.0, for h2c, and for several Upgrade fields */

	/* request */
	enum http_method method_id;
	struct str method, target;
	struct str scheme, authority; /* absolute-form only, else empty */
	/*
	 * What goes upstream: "/…", or "*" for OPTIONS. An absolute-form without
	 * path gives "/" (or "*"); only "http://host?query" gives a view that
	 * begins with '?', and http_write_request puts the "/" before it.
	 */
	struct str path;
	struct str host;      /* effective host[:port] (RFC 9112 3.2.2: absolute-form wins over Host); empty only on 1.0 */
	bool expect_continue; /* 1.1 and Expect: 100-continue */
	bool te_trailers;     /* the client said TE: trailers */
	int64_t max_forwards; /* OPTIONS and TRACE with Max-Forwards, else -1; at 0 the proxy must answer itself (RFC 9110 7.6.2) */

	/* response */
	int status; /* 100..999 */
	struct str reason;
};

/* Gives the head its storage for cap <= HTTP_FIELDS_MAX fields; the caller keeps owning it. */
void http_head_init(struct http_head *head, struct http_field *storage, unsigned cap);

/* First field with that id / that name in any case, or NULL. */
const struct http_field *http_head_field(const struct http_head *head, enum http_field_id id);
const struct http_field *http_head_field_named(const struct http_head *head, struct str name);

/*
 * Parses the head at the start of p[0..n). *scan is the caller's cursor: 0 for
 * a new head, kept between calls for the same head, so that feeding byte by
 * byte costs no more than feeding it whole. It is 0 again after 0 was returned.
 *
 * 0:         head is filled; head->head_len bytes are consumed.
 * HTTP_MORE: incomplete. head is garbage.
 * HTTP_BAD:  *verdict is filled; answer it and close. Found as early as the
 *            start line is complete, limits as soon as they are passed.
 *
 * Up to two CRLFs before a request line are skipped (RFC 9112 2.2).
 */
int http_parse_request(const char *p, size_t n, size_t *scan, const struct http_limits *limits,
		       struct http_head *head, struct http_verdict *verdict);

/*
 * The same for a response to a request with request_method, which decides the
 * framing (RFC 9112 6.3). verdict->status is always 502. Bytes that can not be
 * a status line are refused at the first wrong one. 1xx heads are returned
 * like any other, with HTTP_BODY_NONE: a 101 ends HTTP on the connection,
 * after another 1xx the caller parses again.
 */
int http_parse_response(const char *p, size_t n, size_t *scan, const struct http_limits *limits,
			enum http_method request_method, struct http_head *head, struct http_verdict *verdict);

/* True for uri-host [ ":" port ] (RFC 3986 3.2.2), not empty; no userinfo, no IPvFuture. */
bool http_host_is_valid(struct str host);

/* True when every protocol a 101 switches to was offered: it may not be another (RFC 9110 7.8). */
bool http_upgrade_was_offered(struct str offered, struct str taken);

/* ---- chunked bodies ------------------------------------------------- */

/*
 * A plain value: no pointers, so it can be written down and handed to another
 * process, and (phase, left) to a BPF program.
 */
enum http_chunked_phase {
	HTTP_CHUNK_SIZE,     /* in the size digits */
	HTTP_CHUNK_EXT_NAME, /* behind ';': a token character must follow */
	HTTP_CHUNK_EXT,	     /* in the rest of the extension */
	HTTP_CHUNK_SIZE_LF,
	HTTP_CHUNK_DATA, /* `left` more bytes of data, left > 0 */
	HTTP_CHUNK_DATA_CR,
	HTTP_CHUNK_DATA_LF,
	HTTP_CHUNK_TRAILER, /* at the start of a trailer line or of the last, empty one */
	HTTP_CHUNK_TRAILER_NAME,
	HTTP_CHUNK_TRAILER_VALUE,
	HTTP_CHUNK_TRAILER_LF,
	HTTP_CHUNK_END_LF,
	HTTP_CHUNK_DONE,
	HTTP_CHUNK_BROKEN, /* HTTP_BAD was returned and will be again */
};

struct http_chunked {
	uint64_t left;	       /* SIZE: the number so far; DATA: bytes to come */
	uint64_t data_total;   /* data bytes seen or advanced over so far */
	uint32_t line;	       /* bytes of the current chunk line */
	uint32_t overhead;     /* extension bytes not yet paid for by data */
	uint32_t trailer_left; /* bytes trailers may still take */
	uint8_t phase;	       /* enum http_chunked_phase */
	uint8_t emit_framing;
	uint8_t name_len; /* trailer name so far, lower case, as much as fits */
	char name[21];
};

/*
 * emit_framing: forward chunk lines (without extensions) and trailers;
 * otherwise only the data. trailer_bytes bounds the trailer section.
 */
void http_chunked_init(struct http_chunked *c, bool emit_framing, uint32_t trailer_bytes);

/*
 * Filters body bytes in place: buf[0..*kept) is what to forward and
 * *consumed input bytes were used. Only ever removes bytes; memory is moved
 * only when something in front of it was removed.
 *
 * 0:         the body is complete; what lies at buf + *consumed (untouched)
 *            is no part of it.
 * HTTP_MORE: *consumed == n.
 * HTTP_BAD:  verdict filled (status 400; for a backend's body the caller
 *            answers 502 or aborts); *kept is 0: forward nothing of this.
 */
int http_chunked_filter(struct http_chunked *c, char *buf, size_t n, size_t *consumed, size_t *kept,
			struct http_verdict *verdict);

/* Data bytes of the current chunk not yet seen; 0 when the next byte is framing. */
static inline uint64_t http_chunked_data_left(const struct http_chunked *c)
{
	return c->phase == HTTP_CHUNK_DATA ? c->left : 0;
}

/* n <= http_chunked_data_left() data bytes were moved past the filter. */
void http_chunked_advance(struct http_chunked *c, uint64_t n);

/* ---- writing -------------------------------------------------------- */

struct http_pair {
	struct str name, value;
};

/* Fields the configuration adds (replacing those of that name) or removes. The caller owns the arrays. */
struct http_edit {
	const struct http_pair *set;
	size_t nset;
	const struct str *remove;
	size_t nremove;
};

struct http_rewrite {
	struct str host;      /* Host to send; empty: the client's effective one */
	struct str client_ip; /* for X-Forwarded-For */
	struct str proto;     /* "http" or "https", for X-Forwarded-Proto */
	struct str via;	      /* e.g. "1.1 sluice", appended; empty: none */
	bool xff, xfp, xfh;   /* append to X-Forwarded-For; replace -Proto; replace -Host. Off: the client's pass */
	bool pass_upgrade;    /* offer head->upgrade to the backend, when there is one */
	bool close;	      /* Connection: close */
	bool drop_expect;     /* the proxy answered 100 itself */
	const struct http_edit *edit; /* or NULL */
};

/*
 * Appends the head to send upstream, always HTTP/1.1, with the framing of
 * head (the body bytes that follow it are the caller's: chunked ones as the
 * filter with emit_framing gives them). 0 or -ENOMEM (nothing appended).
 */
int http_write_request(struct buf *out, const struct http_head *head, const struct http_rewrite *rw);

struct http_rewrite_response {
	uint8_t client_minor; /* 0: no chunked, the body is then delimited by closing */
	bool close;	      /* Connection: close; implied by a body that ends with the connection */
	bool upgrade;	      /* a 101 that was asked for: pass Upgrade */
	struct str via;	      /* appended; empty: none */
	const struct http_edit *edit; /* or NULL; not applied to 1xx */
};

/* True when the client's connection must be closed after this response for its body to have an end. */
bool http_response_ends_by_close(const struct http_head *head, uint8_t client_minor);

/* Appends the head to send to the client, always as HTTP/1.1 (RFC 9110 2.5, 6.2). 0 or -ENOMEM (nothing appended). */
int http_write_response(struct buf *out, const struct http_head *head, const struct http_rewrite_response *rw);

/*
 * Appends a whole answer of the proxy's own with a short text body (left out
 * for HEAD, Content-Length right). reason may be NULL. 0 or -ENOMEM.
 */
int http_write_error(struct buf *out, int status, const char *reason, bool close, bool head_request);

/* The standard phrase, or "Unknown". */
const char *http_status_text(int status);
