/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TLS connection in user space. OpenSSL sees the socket through a BIO of our
 * own, for three reasons: writes must not raise SIGPIPE; a write never blocks
 * inside OpenSSL, because what the socket does not take waits in `out`, so that
 * a retry needs neither the same address nor the same length; and once the
 * kernel has a direction's keys, nothing OpenSSL might still want to say can
 * reach the wire under keys that are no longer in step.
 *
 * `out` holds whole records and `owed` the plaintext in them that the caller
 * was not told of yet: bytes count as taken when the socket has them.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include "base/fault.h"
#include "io/tls_internal.h"

#define RECORD_MAX 16384

struct tls *tls_of(const SSL *ssl)
{
	return SSL_get_app_data(ssl);
}

/* ---- the socket as OpenSSL sees it ---- */

static void note_tail(struct tls *t, const char *p, size_t n)
{
	struct tls_offload *o = t->off;

	if (n >= TLS_TAIL) {
		memcpy(o->tail, p + n - TLS_TAIL, TLS_TAIL);
		o->tail_n = TLS_TAIL;
		return;
	}
	size_t keep = MIN_OF(o->tail_n, TLS_TAIL - n);
	memmove(o->tail, o->tail + o->tail_n - keep, keep);
	memcpy(o->tail + keep, p, n);
	o->tail_n = keep + n;
}

static ssize_t socket_send(struct tls *t, const void *p, size_t n)
{
	ssize_t r;

	if (fault_hit(FAULT_WRITE)) {
		errno = ECONNRESET;
		return -1;
	}
	do
		r = send(t->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	return r;
}

static int bio_write(BIO *b, const char *p, size_t n, size_t *written)
{
	struct tls *t = BIO_get_data(b);
	ssize_t r = 0;

	BIO_clear_retry_flags(b);
	*written = n;
	if (t->kernel & TLS_KERNEL_TX) {
		t->stray = true;
		return 1;
	}
	if (t->state == TLS_HANDSHAKE && t->off)
		note_tail(t, p, n);
	if (t->out.len == 0) {
		r = socket_send(t, p, n);
		if (r < 0 && errno != EAGAIN) {
			t->error = errno;
			return 0;
		}
		r = MAX_OF(r, 0);
	}
	if ((size_t)r < n && buf_append(&t->out, p + r, n - (size_t)r) < 0) {
		t->error = ENOMEM;
		return 0;
	}
	return 1;
}

static void note_head(struct tls *t, const char *p, size_t n)
{
	n = MIN_OF(n, sizeof(t->head) - t->head_n);
	memcpy(t->head + t->head_n, p, n);
	t->head_n = (uint8_t)(t->head_n + n);
}

static int bio_read(BIO *b, char *p, size_t n, size_t *got)
{
	struct tls *t = BIO_get_data(b);
	ssize_t r;

	BIO_clear_retry_flags(b);
	if (t->feed.n) {
		*got = MIN_OF(n, t->feed.n);
		memcpy(p, t->feed.p, *got);
		t->feed.p += *got;
		t->feed.n -= *got;
		return 1;
	}
	if (t->kernel & TLS_KERNEL_RX) {
		BIO_set_retry_read(b);
		return 0;
	}
	if (fault_hit(FAULT_READ)) {
		t->error = ECONNRESET;
		return 0;
	}
	do
		r = recv(t->fd, p, n, MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	if (r > 0) {
		*got = (size_t)r;
		if (t->head_n < sizeof(t->head))
			note_head(t, p, (size_t)r);
		return 1;
	}
	if (r == 0)
		t->eof = true;
	else if (errno == EAGAIN)
		BIO_set_retry_read(b);
	else
		t->error = errno;
	return 0;
}

static long bio_ctrl(BIO *b, int cmd, long num _unused_, void *ptr _unused_)
{
	const struct tls *t = BIO_get_data(b);

	switch (cmd) {
	case BIO_CTRL_FLUSH:
	case BIO_CTRL_DUP:
		return 1;
	case BIO_CTRL_EOF:
		return t->eof;
	default:
		return 0;
	}
}

static BIO_METHOD *bio_method;

static void bio_method_make(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");

	if (!m)
		return;
	BIO_meth_set_write_ex(m, bio_write);
	BIO_meth_set_read_ex(m, bio_read);
	BIO_meth_set_ctrl(m, bio_ctrl);
	bio_method = m;
}

static BIO *bio_new(struct tls *t)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	BIO *b;

	pthread_once(&once, bio_method_make);
	b = bio_method ? BIO_new(bio_method) : NULL;
	if (b) {
		BIO_set_data(b, t);
		BIO_set_init(b, 1);
	}
	return b;
}

/* Gives the socket what waits for it. 0, -EAGAIN, or fails the connection. */
int tls_flush(struct tls *t)
{
	while (t->out.len) {
		ssize_t r = socket_send(t, buf_data(&t->out), t->out.len);
		if (r < 0 && errno == EAGAIN) {
			t->want = TLS_WANT_WRITE;
			return -EAGAIN;
		}
		if (r < 0)
			return tls_fail_socket(t, errno);
		buf_consume(&t->out, (size_t)r);
	}
	buf_release_if_empty(&t->out);
	return 0;
}

/* ---- making and freeing ---- */

void tls_forget_ssl(struct tls *t)
{
	if (!t->ssl)
		return;
	/* Without this OpenSSL would take the missing close_notify for a reason not to resume the session. */
	SSL_set_shutdown(t->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(t->ssl);
	t->ssl = NULL;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	tls_forget_ssl(t);
	ERR_clear_error();
	tls_offload_free(t->off);
	tls_session_cache_unref(t->cache);
	tls_ctx_unref(t->ctx);
	buf_deinit(&t->out);
	free(t->server_name);
	free(t);
}

static int tls_new(struct tls **out, struct tls_ctx *ctx, int fd)
{
	struct tls *t = fault_hit(FAULT_ALLOC) ? NULL : calloc(1, sizeof(*t));
	BIO *b;

	if (!t)
		return -ENOMEM;
	t->fd = fd;
	t->ctx = tls_ctx_ref(ctx);
	t->server = ctx->server;
	t->want = TLS_WANT_READ;
	t->ssl = SSL_new(ctx->ssl);
	b = t->ssl ? bio_new(t) : NULL;
	if (!b || tls_kernel_prepare(t) < 0) {
		BIO_free(b);
		tls_free(t);
		return -ENOMEM;
	}
	SSL_set_bio(t->ssl, b, b); /* takes the BIO over */
	SSL_set_app_data(t->ssl, t);
	*out = t;
	return 0;
}

static bool is_address(const char *name)
{
	unsigned char a[sizeof(struct in6_addr)];

	return inet_pton(AF_INET, name, a) == 1 || inet_pton(AF_INET6, name, a) == 1;
}

/* What the certificate must say, and what SNI says (RFC 6066 3: a DNS name without the final dot, no address). */
static int set_name(struct tls *t, const char *name)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(t->ssl);
	size_t n = strlen(name);

	if (n && name[n - 1] == '.')
		n--;
	if (n == 0 || n > 253)
		return -EINVAL;
	t->server_name = str_dup((struct str){ name, n });
	if (!t->server_name)
		return -ENOMEM;
	if (is_address(t->server_name))
		return X509_VERIFY_PARAM_set1_ip_asc(param, t->server_name) == 1 ? 0 : -EINVAL;
	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	if (SSL_set1_host(t->ssl, t->server_name) != 1 || SSL_set_tlsext_host_name(t->ssl, t->server_name) != 1)
		return -EINVAL;
	return 0;
}

int tls_new_client(struct tls **out, struct tls_ctx *ctx, int fd, const char *server_name,
		   struct tls_session_cache *cache)
{
	struct tls *t;
	int r;

	if (ctx->server || (ctx->verify && !server_name))
		return -EINVAL;
	r = tls_new(&t, ctx, fd);
	if (r < 0)
		return r;
	r = server_name ? set_name(t, server_name) : 0;
	if (r < 0) {
		tls_free(t);
		return r;
	}
	t->cache = cache ? tls_session_cache_ref(cache) : NULL;
	SSL_set_connect_state(t->ssl);
	tls_session_offer(t);
	*out = t;
	return 0;
}

int tls_new_server(struct tls **out, struct tls_ctx *ctx, int fd)
{
	struct tls *t;
	int r;

	if (!ctx->server)
		return -EINVAL;
	r = tls_new(&t, ctx, fd);
	if (r < 0)
		return r;
	SSL_set_accept_state(t->ssl);
	*out = t;
	return 0;
}

/* ---- the handshake ---- */

static int finish(struct tls *t)
{
	const SSL_CIPHER *cipher = SSL_get_current_cipher(t->ssl);
	const char *name;
	int r;

	t->proto = (uint16_t)SSL_version(t->ssl);
	t->version = t->proto == TLS1_3_VERSION ? "1.3" : "1.2";
	t->cipher = SSL_CIPHER_get_name(cipher);
	t->suite = SSL_CIPHER_get_protocol_id(cipher);
	t->resumed = SSL_session_reused(t->ssl);
	name = t->server ? SSL_get_servername(t->ssl, TLSEXT_NAMETYPE_host_name) : NULL;
	if (name) {
		t->server_name = str_dup(str_from(name));
		if (!t->server_name)
			return tls_fail(t, -ENOMEM, TLS_FAIL_MEMORY, "out of memory");
	}
	r = tls_kernel_take(t);
	if (r < 0)
		return r;
	t->state = TLS_OPEN;
	/* One read for many records instead of two for each; the kernel's start needed exact reads. */
	if (t->ssl && !(t->kernel & TLS_KERNEL_RX))
		SSL_set_read_ahead(t->ssl, 1);
	return 0;
}

int tls_handshake(struct tls *t)
{
	int r, e;

	if (t->state == TLS_FAILED)
		return t->final;
	if (t->state != TLS_HANDSHAKE)
		return 0;
	r = tls_flush(t);
	if (r < 0)
		return r == -EAGAIN ? TLS_WANT_WRITE : r;
	ERR_clear_error();
	r = SSL_do_handshake(t->ssl);
	if (r == 1 && !t->error) {
		/* The kernel takes over between records: the last one must be out before. */
		r = tls_flush(t);
		if (r < 0)
			return r == -EAGAIN ? TLS_WANT_WRITE : r;
		return finish(t);
	}
	e = SSL_get_error(t->ssl, r);
	if (e == SSL_ERROR_WANT_READ && !t->error) {
		r = tls_flush(t);
		if (r < 0)
			return r == -EAGAIN ? TLS_WANT_WRITE : r;
		t->want = TLS_WANT_READ;
		return TLS_WANT_READ;
	}
	/* The alert that tells the peer why; if it can not be sent now, it is not. */
	if (t->out.len)
		socket_send(t, buf_data(&t->out), t->out.len);
	return tls_fail_ssl(t, e);
}

/* ---- data ---- */

ssize_t tls_read(struct tls *t, void *buf, size_t n)
{
	size_t got = 0;
	int e, r;

	if (t->state != TLS_OPEN)
		return t->state == TLS_ENDED ? 0 : t->state == TLS_FAILED ? t->final : -ENOTCONN;
	if (t->kernel & TLS_KERNEL_RX)
		return tls_kernel_read(t, buf, n);
	ERR_clear_error();
	r = SSL_read_ex(t->ssl, buf, n, &got);
	if (t->stray)
		return tls_fail(t, -EPROTO, TLS_FAIL_REKEY, "peer wants new keys while the kernel holds the old ones");
	if (r == 1)
		return (ssize_t)got;
	e = SSL_get_error(t->ssl, r);
	if (e == SSL_ERROR_ZERO_RETURN) {
		t->state = TLS_ENDED;
		return 0;
	}
	if (e == SSL_ERROR_WANT_READ && !t->error) {
		/* Reading can make OpenSSL answer (KeyUpdate); nobody else may come along to send it. */
		if (t->out.len && tls_flush(t) < 0)
			return t->state == TLS_FAILED ? t->final : -EAGAIN;
		t->want = TLS_WANT_READ;
		return -EAGAIN;
	}
	return tls_fail_ssl(t, e);
}

/* 0 when a write may start, else what to return. */
static int check_write(struct tls *t)
{
	if (t->state == TLS_FAILED)
		return t->final;
	if (t->state == TLS_HANDSHAKE)
		return -ENOTCONN;
	return t->sent_close ? -EPIPE : 0;
}

ssize_t tls_write(struct tls *t, const void *buf, size_t n)
{
	const char *p = buf;
	size_t done = 0, w;
	int r = check_write(t);

	if (r < 0)
		return r;
	if (t->kernel & TLS_KERNEL_TX)
		return tls_kernel_write(t, &(struct iovec){ (void *)(uintptr_t)buf, n }, 1);
	r = tls_flush(t);
	if (r < 0)
		return r;
	done = MIN_OF(t->owed, n);
	t->owed -= done;
	while (done < n) {
		ERR_clear_error();
		r = SSL_write_ex(t->ssl, p + done, MIN_OF(n - done, RECORD_MAX), &w);
		if (r != 1)
			return done ? (ssize_t)done : tls_fail_ssl(t, SSL_get_error(t->ssl, r));
		r = tls_flush(t);
		if (r == -EAGAIN) {
			t->owed = w;
			return done ? (ssize_t)done : -EAGAIN;
		}
		if (r < 0)
			return r;
		done += w;
	}
	return (ssize_t)done;
}

ssize_t tls_writev(struct tls *t, const struct iovec *iov, int n)
{
	static _Thread_local char record[RECORD_MAX];
	size_t len = 0;
	int r = check_write(t);

	if (r < 0)
		return r;
	if (t->kernel & TLS_KERNEL_TX)
		return tls_kernel_write(t, iov, n);
	while (n > 1 && iov->iov_len == 0) {
		iov++;
		n--;
	}
	if (n == 1 || iov->iov_len >= sizeof(record))
		return tls_write(t, iov->iov_base, iov->iov_len);
	for (int i = 0; i < n && len < sizeof(record); i++) {
		size_t k = MIN_OF(iov[i].iov_len, sizeof(record) - len);
		memcpy(record + len, iov[i].iov_base, k);
		len += k;
	}
	return tls_write(t, record, len);
}

int tls_shutdown(struct tls *t)
{
	int r;

	if (t->state == TLS_FAILED)
		return t->final;
	if (t->state == TLS_HANDSHAKE)
		return -ENOTCONN;
	if (t->kernel & TLS_KERNEL_TX) {
		r = t->sent_close ? 0 : tls_kernel_close_notify(t);
		t->sent_close |= r == 0;
		return r;
	}
	if (!t->sent_close) {
		ERR_clear_error();
		SSL_shutdown(t->ssl);
		ERR_clear_error();
		t->sent_close = true;
	}
	return t->error ? tls_fail_socket(t, t->error) : tls_flush(t);
}

int tls_want(const struct tls *t)
{
	return t->want;
}

size_t tls_pending(const struct tls *t)
{
	return t->ssl && !(t->kernel & TLS_KERNEL_RX) && SSL_has_pending(t->ssl);
}

unsigned tls_kernel(const struct tls *t)
{
	return t->kernel;
}

const char *tls_kernel_reason(const struct tls *t)
{
	return t->kernel_reason;
}

enum tls_kernel_lack tls_kernel_lack(const struct tls *t)
{
	return t->lack;
}

bool tls_kernel_lack_is_news(struct tls *t)
{
	unsigned bit = 1u << t->lack;

	return t->lack != TLS_KERNEL_LACKS_NOTHING && !(atomic_fetch_or(&t->ctx->said, bit) & bit);
}

const char *tls_version(const struct tls *t)
{
	return t->version ? t->version : "";
}

const char *tls_cipher(const struct tls *t)
{
	return t->cipher ? t->cipher : "";
}

bool tls_resumed(const struct tls *t)
{
	return t->resumed;
}

const char *tls_server_name(const struct tls *t)
{
	return t->server ? t->server_name : NULL;
}
