/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tls*.c files share. tls_ctx.c makes contexts, tls_session.c keeps
 * sessions, tls.c runs connections in user space, tls_keys.c derives what
 * tls_kernel.c gives to the kernel, tls_tickets.c seals sessions, tls_record.c speaks to a socket in the
 * kernel's hands, tls_reason.c finds words.
 *
 * A connection's life: HANDSHAKE -> OPEN -> ENDED (close_notify read) or
 * FAILED. FAILED is for good. Writing goes on after ENDED: the two directions
 * of TLS end separately (RFC 8446 6.1).
 */
#pragma once
#include <openssl/ssl.h>
#include <stdatomic.h>
#include "base/buf.h"
#include "io/tls.h"

struct tls_names {
	char **name; /* lower case; "*.example.org" is a wildcard */
	size_t n;
};

struct tls_ctx {
	atomic_uint refs;
	uint64_t id;     /* never used twice: ties sessions to the context that verified them */
	SSL_CTX *ssl;    /* client, or the first certificate of a server */
	SSL_CTX **certs; /* server: one for each certificate; certs[0] == ssl */
	struct tls_names *names;
	struct ocsp {
		unsigned char *p;
		size_t n;
	} * ocsp;
	size_t n;
	struct tls_tickets *tickets; /* server; one reference */
	enum tls_ktls ktls;
	bool server, verify;
	atomic_uint said; /* bit per enum tls_kernel_lack */
};

enum tls_state { TLS_HANDSHAKE, TLS_OPEN, TLS_ENDED, TLS_FAILED };

#define TLS_SECRET_MAX 48
#define TLS_TAIL 45 /* a TLS 1.2 Finished record under AES-GCM: 5 + 8 + 16 + 16 */

/* The secrets that one direction's keys come from. */
struct tls_secret {
	unsigned char p[TLS_SECRET_MAX];
	size_t n;
};

/* What the kernel is given for one direction, before it is laid out for a cipher. */
struct tls_key {
	unsigned char key[32];
	unsigned char iv[12]; /* implicit part and what fills the rest */
	uint64_t seq;
};

struct tls_offload {
	struct tls_secret tx, rx; /* TLS 1.3 application traffic secrets, newest generation */
	struct tls_key feed;      /* RX key of the first generation: seals tickets for OpenSSL, which holds the same */
	unsigned char tail[TLS_TAIL]; /* last bytes written in the handshake */
	size_t tail_n;
	uint64_t rx_records, tx_records; /* under the newest keys, while OpenSSL had them */
	unsigned rekeys;
	struct buf handshake; /* a post-handshake message that is not complete */
	unsigned char alert[2];
	unsigned alert_n;
	bool reply_due; /* our KeyUpdate must go out before the next data */
	unsigned warnings;
};

struct tls {
	SSL *ssl; /* NULL once the kernel needs no help any more */
	struct tls_ctx *ctx;
	struct tls_session_cache *cache;
	char *server_name;
	const char *version, *cipher;
	struct tls_offload *off; /* NULL when the kernel is not to be asked */
	struct buf out;          /* records that the socket did not take yet */
	size_t owed;             /* plaintext in out that tls_write has not answered for */
	struct str feed;         /* bytes OpenSSL is to read instead of the socket's */
	int fd;
	int error; /* errno of the socket, seen inside OpenSSL */
	int want;
	int final; /* what calls return in state FAILED */
	enum tls_state state;
	enum tls_failure failure;
	unsigned kernel;
	enum tls_kernel_lack lack;
	uint16_t suite;  /* IANA number */
	uint16_t proto;  /* TLS1_2_VERSION … */
	uint8_t head[8]; /* first bytes the peer sent */
	uint8_t head_n;
	uint8_t alert_in; /* alert number + 1 the peer sent; 0: none */
	bool eof, server, resumed, sent_close;
	bool stray; /* OpenSSL wanted to write after the kernel took TX */
	char reason[192], kernel_reason[96];
};

/* tls_reason.c */
/* Enters FAILED: remembers what to return, why, and a sentence. Returns code. */
int tls_fail(struct tls *t, int code, enum tls_failure f, const char *fmt, ...) _printf_(4, 5);
/* Judges OpenSSL's error queue and the verify result after a failed call, and empties the queue. */
int tls_fail_ssl(struct tls *t, int ssl_error);
int tls_fail_alert(struct tls *t, uint8_t alert);
int tls_fail_socket(struct tls *t, int error);
/* OpenSSL's oldest error as text into err; empties the queue. */
void tls_error_text(char *err, size_t n);

/* tls.c */
int tls_flush(struct tls *t);
struct tls *tls_of(const SSL *ssl);
void tls_forget_ssl(struct tls *t);

/* tls_session.c */
void tls_session_setup_client(SSL_CTX *c);
/* Gives the connection a session to resume if the cache has one. */
void tls_session_offer(struct tls *t);
struct tls_session_cache *tls_session_cache_ref(struct tls_session_cache *c);

/* tls_tickets.c */
void tls_tickets_setup_ctx(SSL_CTX *c);

/* tls_kernel.c */
void tls_kernel_setup_ctx(SSL_CTX *c);
/* Readies a connection for tls_kernel_take, or notes why there is no point. 0 or -ENOMEM. */
int tls_kernel_prepare(struct tls *t);
/* 0, also when user space has to do; -errno when the kernel is required and can not, or memory. */
int tls_kernel_take(struct tls *t);
void tls_offload_free(struct tls_offload *o);

/* tls_record.c; contracts as tls_read, tls_writev, tls_shutdown */
ssize_t tls_kernel_read(struct tls *t, void *buf, size_t n);
ssize_t tls_kernel_write(struct tls *t, const struct iovec *iov, int n);
int tls_kernel_close_notify(struct tls *t);

/* tls_keys.c */
/* The kernel's number for the negotiated suite, or 0. */
unsigned tls_kernel_cipher(uint16_t suite);
/* Key and IV of a TLS 1.3 traffic secret (RFC 8446 7.3). 0 or -EIO. */
int tls_keys_13(const struct tls *t, const struct tls_secret *s, struct tls_key *out);
/* The next generation's secret (RFC 8446 7.2). 0 or -EIO. */
int tls_keys_13_next(const struct tls *t, struct tls_secret *s);
/* Both directions' keys of a TLS 1.2 connection (RFC 5246 6.3). 0 or -EIO. */
int tls_keys_12(const struct tls *t, struct tls_key *tx, struct tls_key *rx);
/* Gives the key to the kernel; dir is TLS_KERNEL_TX or _RX. 0 or -errno. */
int tls_keys_install(const struct tls *t, unsigned dir, const struct tls_key *k);
/* A TLS 1.3 record of one handshake message, under k, appended to out. 0 or -errno. */
int tls_keys_seal(const struct tls *t, struct tls_key *k, struct str message, struct buf *out);
