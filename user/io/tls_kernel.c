/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS in the kernel (kTLS): the switch, and speaking to a socket that was
 * switched.
 *
 * The switch comes right after the handshake, before OpenSSL read or wrote any
 * data, so the record numbers are known. From then on OpenSSL has no part in
 * that direction: data goes by sendmsg, recvmsg and splice, and records that
 * are not data come with a control message that tells their type
 * (Documentation/networking/tls.rst). They are handled here:
 *
 *   close_notify      the clean end
 *   other alerts      the end, with the peer's reason
 *   NewSessionTicket  OpenSSL shall keep it, so it is sealed again under the
 *                     key OpenSSL still has and given to it as if it came from
 *                     the socket
 *   KeyUpdate         new keys for the kernel; one that can not change keys
 *                     (before 6.14) ends this connection, cleanly
 *   HelloRequest      ignored, as a client may (RFC 5246 7.4.1.1)
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/fault.h"
#include "io/tls_internal.h"

#ifndef TLS_RX_EXPECT_NO_PAD
#define TLS_RX_EXPECT_NO_PAD 4
#endif

#define HANDSHAKE_MAX (4u + 0xffff + 512) /* a ticket can be 64 KiB */
#define WARNINGS_MAX 8
#define REKEYS_MAX 64 /* a peer that changes keys all the time keeps us busy for nothing */
#define ABSENT_FOR (30 * NS_PER_S)

/* ---- does this kernel have TLS ---- */

static int attach(int fd)
{
	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

/*
 * Asking a kernel without TLS makes it start modprobe each time, so the answer
 * is kept for a while; not for ever, since the module may come later.
 */
static _Atomic uint64_t absent_until;

static bool known_absent(void)
{
	uint64_t until = atomic_load_explicit(&absent_until, memory_order_relaxed);

	return until && now_ns() < until;
}

static const char *attach_error(int error)
{
	switch (error) {
	case ENOENT:
		return "kernel has no TLS (module tls is not loaded)";
	case ENOTCONN:
		return "socket is not connected";
	case EOPNOTSUPP:
	case ENOPROTOOPT:
		return "socket does not take TLS";
	default:
		return strerror(error);
	}
}

static int loopback_pair(int fds[2])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r = 0;

	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	fds[1] = -1;
	if (l < 0 || fds[0] < 0 || bind(l, (struct sockaddr *)&a, n) < 0 || listen(l, 1) < 0 ||
	    getsockname(l, (struct sockaddr *)&a, &n) < 0 || connect(fds[0], (struct sockaddr *)&a, n) < 0 ||
	    (fds[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC)) < 0)
		r = -errno;
	if (l >= 0)
		close(l);
	if (r < 0 && fds[0] >= 0)
		close(fds[0]);
	return r;
}

int tls_kernel_probe(char *err, size_t errlen)
{
	int fds[2], r = loopback_pair(fds);

	if (r < 0) {
		snprintf(err, errlen, "no loopback connection to try it on: %s", strerror(-r));
		return r;
	}
	r = attach(fds[0]);
	close(fds[0]);
	close(fds[1]);
	atomic_store(&absent_until, r == -ENOENT ? now_ns() + ABSENT_FOR : 0);
	if (r < 0)
		snprintf(err, errlen, "%s", attach_error(-r));
	return r;
}

/* ---- the switch ---- */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static void secret_read(struct tls_secret *s, const char *hex)
{
	s->n = 0;
	for (; s->n < sizeof(s->p) && hex_digit(hex[0]) >= 0 && hex_digit(hex[1]) >= 0; hex += 2)
		s->p[s->n++] = (unsigned char)(hex_digit(hex[0]) << 4 | hex_digit(hex[1]));
}

/* "LABEL client_random secret" at the moment the keys of that secret come into use. */
static void on_keylog(const SSL *ssl, const char *line)
{
	struct tls *t = tls_of(ssl);
	const char *secret = strrchr(line, ' ');
	bool client = strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24) == 0;

	if (!t || !t->off || !secret || (!client && strncmp(line, "SERVER_TRAFFIC_SECRET_0 ", 24) != 0))
		return;
	if (client != t->server) {
		secret_read(&t->off->tx, secret + 1);
		t->off->tx_records = 0;
	} else {
		secret_read(&t->off->rx, secret + 1);
		t->off->rx_records = 0;
	}
}

static void on_record(int write, int version _unused_, int type, const void *p _unused_, size_t n _unused_,
		      SSL *ssl _unused_, void *arg)
{
	struct tls_offload *o = arg;

	if (type != SSL3_RT_HEADER)
		return;
	if (write)
		o->tx_records++;
	else
		o->rx_records++;
}

void tls_kernel_setup_ctx(SSL_CTX *c)
{
	SSL_CTX_set_keylog_callback(c, on_keylog);
}

int tls_kernel_prepare(struct tls *t)
{
	if (t->ctx->ktls == TLS_KTLS_OFF || known_absent()) {
		snprintf(t->kernel_reason, sizeof(t->kernel_reason), "%s",
			 t->ctx->ktls == TLS_KTLS_OFF ? "off by configuration" : attach_error(ENOENT));
		return 0;
	}
	t->off = calloc(1, sizeof(*t->off));
	if (!t->off)
		return -ENOMEM;
	SSL_set_msg_callback(t->ssl, on_record);
	SSL_set_msg_callback_arg(t->ssl, t->off);
	return 0;
}

void tls_offload_free(struct tls_offload *o)
{
	if (!o)
		return;
	buf_deinit(&o->handshake);
	OPENSSL_cleanse(o, sizeof(*o));
	free(o);
}

static int stay(struct tls *t, const char *what, const char *why)
{
	snprintf(t->kernel_reason, sizeof(t->kernel_reason), "%s%s%s", what, *what ? ": " : "", why);
	return -1;
}

/* Moves what can be moved; a refusal leaves its reason. */
static int take(struct tls *t)
{
	struct tls_key tx, rx;
	int r;

	if (!t->off)
		return -1;
	if (!tls_kernel_cipher(t->suite))
		return stay(t, "kernel does not take cipher", t->cipher);
	if (SSL_has_pending(t->ssl) || t->out.len)
		return stay(t, "", "records are in user space");
	r = t->proto == TLS1_3_VERSION ? tls_keys_13(t, &t->off->tx, &tx) : tls_keys_12(t, &tx, &rx);
	if (r == 0 && t->proto == TLS1_3_VERSION) {
		r = tls_keys_13(t, &t->off->rx, &rx);
		t->off->feed = rx;
		tx.seq = t->off->tx_records; /* a server's tickets */
		rx.seq = t->off->feed.seq = t->off->rx_records;
	}
	if (r < 0)
		return stay(t, "", "keys could not be derived");
	r = attach(t->fd);
	if (r == -ENOENT)
		atomic_store(&absent_until, now_ns() + ABSENT_FOR);
	if (r < 0) {
		OPENSSL_cleanse(&tx, sizeof(tx));
		OPENSSL_cleanse(&rx, sizeof(rx));
		return stay(t, "", attach_error(-r));
	}
	r = tls_keys_install(t, TLS_KERNEL_TX, &tx);
	if (r < 0)
		stay(t, "kernel refuses to send", strerror(-r));
	else
		t->kernel |= TLS_KERNEL_TX;
	r = tls_keys_install(t, TLS_KERNEL_RX, &rx);
	if (r < 0)
		stay(t, "kernel refuses to receive", strerror(-r));
	else
		t->kernel |= TLS_KERNEL_RX;
	OPENSSL_cleanse(&tx, sizeof(tx));
	OPENSSL_cleanse(&rx, sizeof(rx));
	if (t->kernel & TLS_KERNEL_RX && t->proto == TLS1_3_VERSION) {
		int on = 1; /* most peers do not pad: decrypt straight to where it goes (Linux 6.0) */
		setsockopt(t->fd, SOL_TLS, TLS_RX_EXPECT_NO_PAD, &on, sizeof(on));
	}
	return t->kernel == TLS_KERNEL_BOTH ? 0 : -1;
}

int tls_kernel_take(struct tls *t)
{
	bool tickets = t->proto == TLS1_3_VERSION && !t->server && t->cache;

	if (take(t) < 0 && t->ctx->ktls == TLS_KTLS_REQUIRE)
		return tls_fail(t, -EPROTO, TLS_FAIL_KERNEL, "kTLS is required: %s", t->kernel_reason);
	if (t->kernel == TLS_KERNEL_BOTH && !tickets)
		tls_forget_ssl(t); /* its part is done, its memory is large */
	if (t->ssl)
		SSL_set_msg_callback(t->ssl, NULL);
	if (t->kernel == 0) {
		tls_offload_free(t->off);
		t->off = NULL;
	}
	return 0;
}

/* ---- records by hand ---- */

static ssize_t send_record(struct tls *t, unsigned char type, const void *p, size_t n)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(1)];
	} c = { .h = { .cmsg_len = CMSG_LEN(1), .cmsg_level = SOL_TLS, .cmsg_type = TLS_SET_RECORD_TYPE } };
	struct iovec iov = { (void *)(uintptr_t)p, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c.space) };
	ssize_t r;

	*CMSG_DATA(&c.h) = type;
	do
		r = sendmsg(t->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

/* Bytes of one type; type 0: nothing was there to have one. */
static ssize_t receive(struct tls *t, void *p, size_t n, int flags, unsigned char *type)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(1)];
	} c = { 0 };
	struct iovec iov = { p, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c.space) };
	struct cmsghdr *h;
	ssize_t r;

	do
		r = recvmsg(t->fd, &m, MSG_DONTWAIT | flags);
	while (r < 0 && errno == EINTR);
	*type = 0;
	h = r >= 0 ? CMSG_FIRSTHDR(&m) : NULL;
	if (h && h->cmsg_level == SOL_TLS && h->cmsg_type == TLS_GET_RECORD_TYPE)
		*type = *CMSG_DATA(h);
	return r < 0 ? -errno : r;
}

static ssize_t fail_receive(struct tls *t, int error)
{
	switch (error) {
	case EAGAIN:
		t->want = TLS_WANT_READ;
		return -EAGAIN;
	case EBADMSG:
		return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "a record failed its integrity check");
	case EMSGSIZE:
	case EINVAL:
		return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "a malformed record");
	default:
		return tls_fail_socket(t, error);
	}
}

/* ---- changing keys ---- */

static int fail_rekey(struct tls *t, int error)
{
	return tls_fail(t, -EPROTO, TLS_FAIL_REKEY, "peer changed its keys and the kernel can not follow: %s",
			strerror(error));
}

/* Tells the peer of our new keys and changes to them. 0, -EAGAIN, or fails the connection. */
static int answer_update(struct tls *t)
{
	static const unsigned char update[] = { SSL3_MT_KEY_UPDATE, 0, 0, 1, SSL_KEY_UPDATE_NOT_REQUESTED };
	struct tls_key k;
	ssize_t n = send_record(t, SSL3_RT_HANDSHAKE, update, sizeof(update));
	int r;

	if (n == -EAGAIN) {
		t->want = TLS_WANT_WRITE;
		return -EAGAIN;
	}
	if (n < 0)
		return tls_fail_socket(t, (int)-n);
	r = tls_keys_13_next(t, &t->off->tx);
	if (r == 0)
		r = tls_keys_13(t, &t->off->tx, &k);
	if (r == 0)
		r = tls_keys_install(t, TLS_KERNEL_TX, &k);
	OPENSSL_cleanse(&k, sizeof(k));
	t->off->reply_due = false;
	return r < 0 ? fail_rekey(t, -r) : 0;
}

static int on_key_update(struct tls *t, unsigned char request)
{
	struct tls_key k;
	int r = ++t->off->rekeys > REKEYS_MAX ? -E2BIG : tls_keys_13_next(t, &t->off->rx);

	if (r == 0)
		r = tls_keys_13(t, &t->off->rx, &k);
	if (r == 0)
		r = tls_keys_install(t, TLS_KERNEL_RX, &k);
	OPENSSL_cleanse(&k, sizeof(k));
	if (r < 0)
		return fail_rekey(t, -r);
	if (request != SSL_KEY_UPDATE_REQUESTED)
		return 0;
	if (!(t->kernel & TLS_KERNEL_TX)) {
		SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED); /* goes out with the next write */
		return 0;
	}
	/* Must go out before our next data, not at once (RFC 8446 4.6.3). */
	t->off->reply_due = true;
	r = answer_update(t);
	return r == -EAGAIN ? 0 : r;
}

/* ---- records that are not data ---- */

static int on_ticket(struct tls *t, struct str message)
{
	struct buf record = BUF_INIT;
	size_t got;
	char c;
	int r, e;

	if (t->server)
		return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "a client sent a session ticket");
	if (!t->ssl || !t->cache || t->off->rekeys || tls_keys_seal(t, &t->off->feed, message, &record) < 0) {
		buf_deinit(&record);
		return 0; /* not kept: the next connection makes a full handshake */
	}
	t->feed = buf_str(&record);
	ERR_clear_error();
	r = SSL_read_ex(t->ssl, &c, 1, &got);
	e = SSL_get_error(t->ssl, r);
	t->feed = STR_NONE;
	buf_deinit(&record);
	if (r != 1 && e == SSL_ERROR_WANT_READ)
		return 0;
	return tls_fail_ssl(t, e);
}

static int on_message(struct tls *t, unsigned char type, struct str body, struct str whole, bool last)
{
	bool tls13 = t->proto == TLS1_3_VERSION;

	if (type == SSL3_MT_NEWSESSION_TICKET && tls13)
		return on_ticket(t, whole);
	if (type == SSL3_MT_KEY_UPDATE && tls13 && body.n == 1 && last)
		return on_key_update(t, (unsigned char)body.p[0]);
	if (type == SSL3_MT_HELLO_REQUEST && !tls13 && !t->server && ++t->off->warnings <= WARNINGS_MAX)
		return 0;
	return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "unexpected handshake message %u", type);
}

static int on_handshake(struct tls *t, const void *p, size_t n)
{
	struct buf *b = &t->off->handshake;
	int r = 0;

	if (b->len + n > HANDSHAKE_MAX)
		return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "a handshake message is too long");
	if (buf_append(b, p, n) < 0)
		return tls_fail(t, -ENOMEM, TLS_FAIL_MEMORY, "out of memory");
	while (r == 0 && b->len >= 4) {
		const unsigned char *m = (const unsigned char *)buf_data(b);
		size_t len = (size_t)m[1] << 16 | (size_t)m[2] << 8 | m[3];
		if (b->len < 4 + len)
			break;
		r = on_message(t, m[0], (struct str){ (const char *)m + 4, len },
			       (struct str){ (const char *)m, 4 + len }, b->len == 4 + len);
		buf_consume(b, 4 + len);
	}
	buf_release_if_empty(b);
	return r;
}

/* 0: go on; 1: the clean end; negative: failed. */
static int on_alert(struct tls *t, unsigned char level, unsigned char alert)
{
	if (alert == SSL_AD_CLOSE_NOTIFY) {
		t->state = TLS_ENDED;
		return 1;
	}
	/* Only TLS 1.2 has warnings that matter; 1.3 keeps user_canceled (RFC 8446 6). */
	if (alert == SSL_AD_USER_CANCELLED || (t->proto < TLS1_3_VERSION && level == SSL3_AL_WARNING))
		return ++t->off->warnings <= WARNINGS_MAX ?
			       0 :
			       tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "too many warnings");
	return tls_fail_alert(t, alert);
}

static int on_control(struct tls *t, unsigned char type, const unsigned char *p, size_t n)
{
	struct tls_offload *o = t->off;
	int r = 0;

	if (type == SSL3_RT_HANDSHAKE)
		return on_handshake(t, p, n);
	if (type != SSL3_RT_ALERT)
		return tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "unexpected record type %u", type);
	for (size_t i = 0; i < n && r == 0; i++) {
		o->alert[o->alert_n++] = p[i];
		if (o->alert_n == 2) {
			o->alert_n = 0;
			r = on_alert(t, o->alert[0], o->alert[1]);
		}
	}
	return r;
}

static ssize_t fail_truncated(struct tls *t)
{
	return tls_fail(t, -ENODATA, TLS_FAIL_TRUNCATED, "stream ended without close_notify");
}

/* ---- data ---- */

ssize_t tls_kernel_read(struct tls *t, void *buf, size_t n)
{
	for (;;) {
		unsigned char type;
		ssize_t r = fault_hit(FAULT_READ) ? -ECONNRESET : receive(t, buf, n, 0, &type);

		if (r < 0)
			return fail_receive(t, (int)-r);
		if (type == SSL3_RT_APPLICATION_DATA && r > 0)
			return r;
		if (type == 0)
			return r == 0 ? fail_truncated(t) : fail_receive(t, EINVAL);
		r = type == SSL3_RT_APPLICATION_DATA ? 0 : on_control(t, type, buf, (size_t)r);
		if (r != 0)
			return r < 0 ? r : 0;
	}
}

ssize_t tls_kernel_write(struct tls *t, const struct iovec *iov, int n)
{
	struct msghdr m = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n };
	ssize_t r;

	if (t->off->reply_due) {
		r = answer_update(t);
		if (r < 0)
			return r;
	}
	if (fault_hit(FAULT_WRITE))
		return tls_fail_socket(t, ECONNRESET);
	do
		r = sendmsg(t->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	if (r >= 0)
		return r;
	if (errno != EAGAIN)
		return tls_fail_socket(t, errno);
	t->want = TLS_WANT_WRITE;
	return -EAGAIN;
}

int tls_kernel_close_notify(struct tls *t)
{
	static const unsigned char alert[] = { SSL3_AL_WARNING, SSL_AD_CLOSE_NOTIFY };
	ssize_t r = t->off->reply_due ? answer_update(t) : 0;

	if (r < 0)
		return (int)r;
	r = send_record(t, SSL3_RT_ALERT, alert, sizeof(alert));
	if (r == -EAGAIN)
		t->want = TLS_WANT_WRITE;
	return r >= 0 ? 0 : r == -EAGAIN ? -EAGAIN : tls_fail_socket(t, (int)-r);
}

/* What stopped splice, at the head of the queue. 1: go on; 0: clean end; negative as tls_read. */
static ssize_t take_control(struct tls *t)
{
	unsigned char p[512], type;
	ssize_t r = receive(t, p, sizeof(p), 0, &type);

	if (r < 0)
		return fail_receive(t, (int)-r);
	if (type == 0 || type == SSL3_RT_APPLICATION_DATA)
		return tls_fail(t, -EIO, TLS_FAIL_PROTOCOL, "splice refused data");
	r = on_control(t, type, p, (size_t)r);
	return r < 0 ? r : r == 0;
}

/* splice said 0: the end, or a record with nothing in it (RFC 8446 5.1 allows those). */
static ssize_t judge_nothing(struct tls *t)
{
	unsigned char type;
	char c;
	ssize_t r = receive(t, &c, 1, MSG_PEEK, &type);

	if (r < 0)
		return fail_receive(t, (int)-r);
	return r == 0 && type == 0 ? fail_truncated(t) : 1;
}

ssize_t tls_splice_in(struct tls *t, int pipe_write, size_t n)
{
	ssize_t r;

	if (t->state != TLS_OPEN)
		return t->state == TLS_ENDED ? 0 : t->state == TLS_FAILED ? t->final : -ENOTCONN;
	if (!(t->kernel & TLS_KERNEL_RX))
		return -EOPNOTSUPP;
	do {
		r = splice(t->fd, NULL, pipe_write, NULL, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (r > 0)
			return r;
		if (r < 0 && errno == EINTR)
			r = 1;
		else if (r < 0 && errno != EINVAL)
			return fail_receive(t, errno);
		else
			r = r == 0 ? judge_nothing(t) : take_control(t);
	} while (r == 1);
	return r;
}

ssize_t tls_splice_out(struct tls *t, int pipe_read, size_t n, bool more)
{
	ssize_t r;

	if (t->state == TLS_FAILED || t->state == TLS_HANDSHAKE)
		return t->state == TLS_FAILED ? t->final : -ENOTCONN;
	if (!(t->kernel & TLS_KERNEL_TX))
		return -EOPNOTSUPP;
	if (t->sent_close)
		return -EPIPE;
	if (t->off->reply_due) {
		r = answer_update(t);
		if (r < 0)
			return r;
	}
	do
		r = splice(pipe_read, NULL, t->fd, NULL, n,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0));
	while (r < 0 && errno == EINTR);
	if (r >= 0)
		return r;
	if (errno != EAGAIN)
		return tls_fail_socket(t, errno);
	t->want = TLS_WANT_WRITE;
	return -EAGAIN;
}
