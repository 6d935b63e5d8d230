/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS into the kernel (kTLS): whether this kernel has it, and the switch.
 *
 * The switch comes right after the handshake, before OpenSSL read or wrote any
 * data, so the record numbers are known. From then on OpenSSL has no part in
 * that direction, and tls_record.c speaks to the socket.
 */
#include <errno.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "io/tls_internal.h"

#ifndef TLS_RX_EXPECT_NO_PAD
#define TLS_RX_EXPECT_NO_PAD 4
#endif

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
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
				      : -1;
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

static int stay(struct tls *t, enum tls_kernel_lack lack, const char *what, const char *why)
{
	t->lack = lack;
	snprintf(t->kernel_reason, sizeof(t->kernel_reason), "%s%s%s", what, *what ? ": " : "", why);
	return -1;
}

int tls_kernel_prepare(struct tls *t)
{
	if (t->ctx->ktls == TLS_KTLS_OFF || known_absent()) {
		if (t->ctx->ktls == TLS_KTLS_OFF)
			stay(t, TLS_KERNEL_OFF, "", "off by configuration");
		else
			stay(t, TLS_KERNEL_ABSENT, "", attach_error(ENOENT));
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

/* Moves what can be moved; a refusal leaves its reason. */
static int take(struct tls *t)
{
	struct tls_key tx, rx;
	int r;

	if (!t->off)
		return -1;
	if (!tls_kernel_cipher(t->suite))
		return stay(t, TLS_KERNEL_CIPHER, "kernel does not take cipher", t->cipher);
	if (SSL_has_pending(t->ssl) || t->out.len)
		return stay(t, TLS_KERNEL_LATE, "", "records are in user space");
	r = t->proto == TLS1_3_VERSION ? tls_keys_13(t, &t->off->tx, &tx) : tls_keys_12(t, &tx, &rx);
	if (r == 0 && t->proto == TLS1_3_VERSION) {
		r = tls_keys_13(t, &t->off->rx, &rx);
		t->off->feed = rx;
		tx.seq = t->off->tx_records; /* a server's tickets */
		rx.seq = t->off->feed.seq = t->off->rx_records;
	}
	if (r < 0)
		return stay(t, TLS_KERNEL_REFUSED, "", "keys could not be derived");
	r = attach(t->fd);
	if (r == -ENOENT)
		atomic_store(&absent_until, now_ns() + ABSENT_FOR);
	if (r < 0) {
		OPENSSL_cleanse(&tx, sizeof(tx));
		OPENSSL_cleanse(&rx, sizeof(rx));
		return stay(t, r == -ENOENT ? TLS_KERNEL_ABSENT : TLS_KERNEL_REFUSED, "", attach_error(-r));
	}
	r = tls_keys_install(t, TLS_KERNEL_TX, &tx);
	if (r < 0)
		stay(t, TLS_KERNEL_REFUSED, "kernel refuses to send", strerror(-r));
	else
		t->kernel |= TLS_KERNEL_TX;
	r = tls_keys_install(t, TLS_KERNEL_RX, &rx);
	if (r < 0)
		stay(t, TLS_KERNEL_REFUSED, "kernel refuses to receive", strerror(-r));
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
