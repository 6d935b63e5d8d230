/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Non-blocking TLS 1.2/1.3 over a TCP socket that the caller owns, in user
 * space or, where the kernel takes the keys, in the kernel (kTLS).
 *
 * The caller makes a connection object when the socket is connected, calls
 * tls_handshake until it is done, then reads and writes. After the handshake
 * each direction is either in OpenSSL's hands or in the kernel's, for good;
 * tls_kernel() tells which. A direction in the kernel can be spliced. The
 * descriptor is never closed here; sockets in a sockmap must not be given
 * (the kernel refuses the pair).
 *
 * Every write uses MSG_NOSIGNAL except splice, which has no such flag: the
 * process ignores SIGPIPE.
 *
 * Contexts are immutable (but for what was said already) and shared by all threads without locks. A connection
 * belongs to one thread. A session cache has a lock of its own, held for a few
 * instructions once per handshake.
 */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include "base/util.h"

struct tls_ctx;
struct tls;
struct tls_session_cache;

/* ---- contexts ---- */

enum tls_ktls {
	TLS_KTLS_AUTO,    /* the kernel where it can, else user space */
	TLS_KTLS_REQUIRE, /* the handshake fails (TLS_FAIL_KERNEL) unless both directions are in the kernel */
	TLS_KTLS_OFF,
};

struct tls_client_options {
	const char *ca_file;      /* PEM file or hashed directory; NULL: the system's */
	const char *crl_file;     /* PEM; leaf certificates are checked against it. NULL: no check */
	const char *cert, *key;   /* client certificate chain and key, PEM. Both or none */
	const char *min_version;  /* "1.2" (also for NULL) or "1.3" */
	const char *max_version;  /* NULL: newest */
	const char *ciphers;      /* OpenSSL list for TLS 1.2; NULL: the default */
	const char *ciphersuites; /* the same for TLS 1.3 */
	bool verify;              /* chain and name; false accepts anything */
	enum tls_ktls ktls;
};

struct tls_certificate {
	const char *cert, *key; /* PEM chain, leaf first; PEM key */
	const char *ocsp;       /* DER response to staple, or NULL */
};

/*
 * The keys that session tickets are sealed with, shared by any number of contexts (a reload keeps sessions alive) and
 * threads. They change every eight hours; those of the last period still open tickets. Reference-counted.
 */
struct tls_tickets;
#define TLS_TICKETS_STATE 208

struct tls_server_options {
	const struct tls_certificate *certificates; /* chosen by SNI: exact name, then wildcard, else the first */
	size_t n;
	const char *min_version, *max_version, *ciphers, *ciphersuites;
	struct tls_tickets *tickets; /* the context takes a reference; NULL: keys of its own */
	const char *scope; /* a session made under another scope is not resumed; NULL: "" */
	enum tls_ktls ktls;
};

/*
 * 0 with a reference in *out, or -errno with a text in err that names the file
 * and what is wrong with it. -EINVAL: a bad value or file content.
 */
int tls_ctx_new_client(struct tls_ctx **out, const struct tls_client_options *o, char *err, size_t errlen);
int tls_ctx_new_server(struct tls_ctx **out, const struct tls_server_options *o, char *err, size_t errlen);
struct tls_ctx *tls_ctx_ref(struct tls_ctx *c);
/* Drops a reference; NULL is fine. Connections hold their own. */
void tls_ctx_unref(struct tls_ctx *c);

/*
 * One reference in *out. state: n bytes that tls_tickets_save gave, perhaps in another process, which goes on with the same
 * keys and changes them at the same time; of any other size: fresh keys. 0, -ENOMEM or -EIO (no random numbers).
 */
int tls_tickets_new(struct tls_tickets **out, const void *state, size_t n);
struct tls_tickets *tls_tickets_ref(struct tls_tickets *t);
/* NULL is fine. */
void tls_tickets_unref(struct tls_tickets *t);
/* Secret, like the keys. */
void tls_tickets_save(struct tls_tickets *t, unsigned char state[TLS_TICKETS_STATE]);
/* Changes the keys now, a period ahead of the clock. 0 or -ENOMEM. */
int tls_tickets_advance(struct tls_tickets *t);

/*
 * Client sessions to resume, one cache for one backend; any thread. A session is
 * used only with the context and the name it was verified under. TLS 1.3 tickets
 * are used once (RFC 8446 C.4). 0 or -ENOMEM.
 */
int tls_session_cache_new(struct tls_session_cache **out);
/* Connections hold their own reference. */
void tls_session_cache_unref(struct tls_session_cache *c);

/* ---- a connection ---- */

/*
 * fd: connected, non-blocking, unread; stays the caller's and must outlive the
 * object. server_name: SNI and the name to verify; an IP literal is verified as
 * an address and sends no SNI; NULL only without verification. cache may be NULL.
 * 0 or -ENOMEM, -EINVAL (a name that can not be one).
 */
int tls_new_client(struct tls **out, struct tls_ctx *ctx, int fd, const char *server_name,
		   struct tls_session_cache *cache);
int tls_new_server(struct tls **out, struct tls_ctx *ctx, int fd);
/* Sends nothing. NULL is fine. */
void tls_free(struct tls *t);

enum {
	TLS_WANT_READ = 1,
	TLS_WANT_WRITE = 2,
};

/*
 * 0: done. TLS_WANT_READ, TLS_WANT_WRITE: call again when the socket is ready for
 * that. -errno: over, tls_failure() and tls_reason() tell why (-EPROTO for
 * anything TLS, -ECONNRESET, -ETIMEDOUT … for the socket).
 */
int tls_handshake(struct tls *t);

/*
 * > 0: bytes. 0: close_notify, the clean end. -EAGAIN: wait for tls_want().
 * -ENODATA: the stream ended without close_notify, so it may have been cut short
 * (RFC 8446 6.1). -EPROTO: a broken record or a fatal alert, see tls_reason().
 * Other -errno: the socket's. n > 0.
 */
ssize_t tls_read(struct tls *t, void *buf, size_t n);
/*
 * > 0: bytes taken, -EAGAIN, or a final -errno. After -EAGAIN the stream must go on
 * with the same bytes, but their address and number may change; call again when
 * the socket is writable even if the bytes seem sent already.
 */
ssize_t tls_write(struct tls *t, const void *buf, size_t n);
/* The same; small pieces are put into one record. */
ssize_t tls_writev(struct tls *t, const struct iovec *iov, int n);
/* Sends close_notify; the FIN is the caller's. 0, -EAGAIN (call again when writable), or -errno. */
int tls_shutdown(struct tls *t);
/* TLS_WANT_READ or TLS_WANT_WRITE: what the last -EAGAIN waits for. */
int tls_want(const struct tls *t);
/* Nonzero: tls_read has something without the socket becoming readable. */
size_t tls_pending(const struct tls *t);

/* ---- the kernel's part ---- */

enum {
	TLS_KERNEL_TX = 1,
	TLS_KERNEL_RX = 2,
	TLS_KERNEL_BOTH = 3,
};

/* Directions that are really in the kernel; 0 before the handshake is done. */
unsigned tls_kernel(const struct tls *t);
/* Why a direction is not in the kernel; "" when both are. */
const char *tls_kernel_reason(const struct tls *t);
/* The same as a class, for counters. */
enum tls_kernel_lack {
	TLS_KERNEL_LACKS_NOTHING,
	TLS_KERNEL_OFF,	    /* by configuration */
	TLS_KERNEL_ABSENT,  /* the kernel has no TLS */
	TLS_KERNEL_CIPHER,  /* it does not take the cipher */
	TLS_KERNEL_LATE,    /* records were in user space already */
	TLS_KERNEL_REFUSED, /* it refused the socket or the keys */
	_TLS_KERNEL_LACK_MAX,
};
enum tls_kernel_lack tls_kernel_lack(const struct tls *t);
/* True once for each class among all connections of the context: it is worth a log line. */
bool tls_kernel_lack_is_news(struct tls *t);
/*
 * 0 when this kernel has TLS, or -errno with a text. Called once at start while
 * privileged, it also makes the kernel load its module.
 */
int tls_kernel_probe(char *err, size_t errlen);

/*
 * Decrypted bytes from the socket into a pipe, at most n, without copying;
 * needs TLS_KERNEL_RX, else -EOPNOTSUPP. Records that are not data are handled
 * inside. Returns as tls_read; -EAGAIN also for a pipe without room, so the
 * caller keeps count of what is in it.
 */
ssize_t tls_splice_in(struct tls *t, int pipe_write, size_t n);
/*
 * At most n bytes from a pipe, encrypted, to the socket; needs TLS_KERNEL_TX, else
 * -EOPNOTSUPP. more: other bytes follow at once, so the kernel may hold an
 * unfinished record back until the next write without it. Returns as tls_write;
 * -EAGAIN also for an empty pipe; 0 when the pipe's writers are gone.
 */
ssize_t tls_splice_out(struct tls *t, int pipe_read, size_t n, bool more);

/* ---- what happened ---- */

/* Reasons: enum, short name for logs and metrics. */
#define TLS_FAILURES(X)                   \
	X(NONE, "none")                   \
	X(EXPIRED, "expired")             \
	X(NOT_YET_VALID, "not_yet_valid") \
	X(WRONG_NAME, "wrong_name")       \
	X(SELF_SIGNED, "self_signed")     \
	X(UNTRUSTED, "untrusted")         \
	X(REVOKED, "revoked")             \
	X(NO_CRL, "no_crl")               \
	X(CERTIFICATE, "bad_certificate") \
	X(VERSION, "version")             \
	X(CIPHER, "no_shared_cipher")     \
	X(ALPN, "no_shared_protocol")     \
	X(ALERT, "alert")                 \
	X(PLAINTEXT, "plaintext")         \
	X(CLOSED, "closed_in_handshake")  \
	X(TRUNCATED, "truncated")         \
	X(KERNEL, "ktls_required")        \
	X(REKEY, "rekey")                 \
	X(PROTOCOL, "protocol")           \
	X(SOCKET, "socket")               \
	X(MEMORY, "memory")

enum tls_failure {
#define X(name, text) TLS_FAIL_##name,
	TLS_FAILURES(X)
#undef X
		_TLS_FAIL_MAX,
};

enum tls_failure tls_failure(const struct tls *t);
const char *tls_failure_name(enum tls_failure f);
/* What broke a connection that was open, as a static sentence for a log line that outlives t; NULL: the socket did. */
const char *tls_open_failure(const struct tls *t);
/* A sentence for a person, "" when nothing failed. Valid as long as t. */
const char *tls_reason(const struct tls *t);

/* "1.2" or "1.3" and the cipher's name after the handshake. Static strings. */
const char *tls_version(const struct tls *t);
const char *tls_cipher(const struct tls *t);
bool tls_resumed(const struct tls *t);
/* The name a client asked for (SNI), or NULL. Server side, after the handshake. Valid as long as t. */
const char *tls_server_name(const struct tls *t);

/* "OpenSSL 3.0.19 …". Static. */
const char *tls_library_version(void);
