/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speaking to a socket whose records the kernel makes. Data goes by sendmsg,
 * recvmsg and splice; records that are not data come with a control message
 * that tells their type (Documentation/networking/tls.rst), stop a splice with
 * EINVAL, and are handled here:
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
#include <openssl/err.h>
#include <string.h>
#include <sys/socket.h>
#include "base/fault.h"
#include "io/tls_internal.h"

#define HANDSHAKE_MAX (4u + 0xffff + 512) /* a ticket can be 64 KiB */
#define WARNINGS_MAX 8
#define REKEYS_MAX 64 /* a peer that changes keys all the time keeps us busy for nothing */

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
		return ++t->off->warnings <= WARNINGS_MAX
			       ? 0
			       : tls_fail(t, -EPROTO, TLS_FAIL_PROTOCOL, "too many warnings");
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
