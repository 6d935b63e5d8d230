/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The demonstration origin: an HTTP/1.1 server over TCP, TLS and unix sockets
 * that says who it is, serves bodies whose every byte can be checked, and
 * misbehaves on request. `make run`, the tests and the benchmarks use it.
 *
 * Bodies. Byte i of a body with ?seed=K (default 1) is T[((K-1)*1000003 + i) % P],
 * where T is the first P = 16777213 bytes of SHAKE128("sluice"). P is prime and
 * longer than any buffer between two peers, so bytes that are lost, doubled or
 * swapped by whole pages, records, windows or pipes change the hash. In Python:
 * hashlib.shake_128(b"sluice").digest(n). T lives in a memfd: sendfile(2) sends it
 * without a copy.
 *
 * Model. A worker thread owns an epoll set, its own listeners (SO_REUSEPORT) and
 * the connections they accept; threads share only T and counters. A connection is
 * in one state; steps[] has one function for each. A step runs when `out` is
 * empty, and says: go on, wait for c->want, or end. Memory per connection is
 * bounded: `in` by HEAD_MAX or one read, `out` by one read or SMALL_BODY.
 *
 *   HEAD -> (body first) COLLECT -> [answer] -> SEND -> HEAD | LINGER | end
 *   HEAD -> (at once)    [answer] -> SEND | ECHO | TUNNEL | STALL | SLEEP
 *   SLEEP: the answer, or the next slice of a paced body, is not due yet
 *   DRAIN: answered early, the rest of the request's body is still to be read
 */
#pragma once
#include <inttypes.h>
#include <stdatomic.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include "base/buf.h"
#include "base/list.h"

enum {
	HEAD_MAX = 256 * 1024,
	READ_SIZE = 64 * 1024,
	SMALL_BODY = 16 * 1024, /* up to here the body goes out in the same send as the head */
	TURN_BYTES = 1 << 20,   /* a connection sends at most this much before the others get a turn */
	LISTENERS_MAX = 16,
	TABLE_BYTES = 16777213,
};

enum state { ST_TLS, ST_HEAD, ST_COLLECT, ST_SEND, ST_ECHO, ST_DRAIN, ST_TUNNEL, ST_SLEEP, ST_STALL, ST_LINGER };
enum step { STEP_ON, STEP_WAIT, STEP_END };
/* What follows a complete response. */
enum after { AFTER_KEEP, AFTER_FIN, AFTER_CUT, AFTER_RST, AFTER_DRAIN };
enum body_kind { BODY_NONE, BODY_PLAIN, BODY_CHUNKED, BODY_PACED };
enum in_state { IN_DONE, IN_LENGTH, IN_SIZE, IN_DATA, IN_DATA_END, IN_TRAILER };

struct listener {
	char what[8], addr[108];
	int port;
	bool tls;
};

struct worker {
	int ep;
	pthread_t thread;
	struct list sleeping;
};

struct conn {
	int fd;
	bool listening, tls; /* listening: the socket that accepts, in the same epoll set; tls: what it accepts */
	SSL *ssl;
	struct worker *w;
	enum state st;
	uint32_t mask, want;
	struct buf in, out, head; /* head: the request's head as it came, until it is answered */
	uint64_t requests, wake;
	struct list sleep_link;
	bool dry; /* the last read took all there was */

	/* the request */
	char method[24], target[2048];
	struct str path, query;
	int minor;
	bool close, expect, upgrade, cl_seen, chunked;
	const struct route *route;
	uint64_t arg;
	enum in_state in_st;
	uint64_t in_left, in_total;
	EVP_MD_CTX *md;

	/* the response */
	enum body_kind kind;
	enum after after;
	uint64_t left, span, off, chunk, slice, slice_ms;
	bool chunk_open, ext, trailer, echo_chunked;
};

struct origin {
	char name[64];
	SSL_CTX *tls;
	struct listener listeners[LISTENERS_MAX];
	int n_listeners, threads;
	bool ktls;
	int table_fd;
	const unsigned char *table;
	atomic_ullong open, accepted, requests, aborted, handshakes, tls_failed;
};
extern struct origin g;

/* conn.c */
void conn_accept(struct worker *w, struct conn *listener);
/* Runs c until it waits or ends; it may be gone afterwards. */
void conn_run(struct conn *c);
void conn_free(struct conn *c);
/* The next state, and on with it. */
static inline enum step go(struct conn *c, enum state st)
{
	c->st = st;
	return STEP_ON;
}
/* Ends without a farewell: no close_notify; with rst, a reset instead of a FIN. */
enum step cut(struct conn *c, bool rst);
enum step sleep_ms(struct conn *c, uint64_t ms);

/* request.c */
/* Reads the head in c->head. False: it is not a request. */
bool parse_head(struct conn *c);
/*
 * Takes one span of the request's body from in. 1: *out holds bytes (of in: use
 * them before the next read), 0: in is used up, 2: the body is complete, -1: bad.
 */
int body_take(struct conn *c, struct str *out);
/* A number from the query, or def. */
uint64_t query_num(const struct conn *c, const char *key, uint64_t def);
/* Next line of *s without its CRLF, cut from the front; false at the end. */
bool next_line(struct str *s, struct str *line);

/* answer.c */
struct route {
	const char *path;
	bool prefix;  /* a number follows */
	bool at_once; /* answers before the request's body is read */
	bool hash;    /* wants the request's body hashed */
	enum step (*answer)(struct conn *c);
};
/* Sets c->arg from the path. Never NULL. */
const struct route *route_find(struct conn *c);
enum step answer_bad_request(struct conn *c);
enum step respond_text(struct conn *c, unsigned status, const char *type, const void *p, size_t n);

/* certs.c */
/*
 * Makes ca.pem ca.key server.pem server.key client.pem client.key in dir, unless those there are good for
 * another day. The server's names: one.demo, localhost, 127.0.0.1, ::1. Returns false when it kept them.
 */
bool certs_make(const char *dir);
_Noreturn void die(const char *what, const char *detail);
