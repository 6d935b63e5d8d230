/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the TLS tests share: a certificate authority that lives as long as the
 * test, files in a temporary directory, and two ends of a loopback connection.
 * A failed step ends the test at once.
 */
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>
#include "io/tls.h"

#define DAY (24l * 3600)

struct identity {
	X509 *cert;
	EVP_PKEY *key;
};

struct leaf_spec {
	const char *cn, *alt; /* alt: "DNS:a.example,IP:127.0.0.1" */
	long from, to;        /* seconds from now; 0, 0: yesterday until tomorrow */
	bool ca, rsa;
};

static char fixture_dir[] = "/tmp/sluice_tls_XXXXXX";
static long fixture_serial = 1;

static const char *fixture_path(const char *name)
{
	static char paths[16][128];
	static unsigned next;
	char *p = paths[next++ % 16];

	snprintf(p, sizeof(paths[0]), "%s/%s", fixture_dir, name);
	return p;
}

static void fixture_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *e;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	assert_non_null(e);
	assert_true(X509_add_ext(cert, e, -1));
	X509_EXTENSION_free(e);
}

/* issuer NULL: self-signed. */
static struct identity make_identity(const struct identity *issuer, const struct leaf_spec *spec)
{
	struct identity id = { X509_new(), spec->rsa ? EVP_RSA_gen(2048) : EVP_EC_gen("P-256") };
	X509_NAME *name = X509_get_subject_name(id.cert);
	const struct identity *by = issuer ? issuer : &id;

	assert_non_null(id.key);
	X509_set_version(id.cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(id.cert), fixture_serial++);
	X509_gmtime_adj(X509_getm_notBefore(id.cert), spec->from || spec->to ? spec->from : -DAY);
	X509_gmtime_adj(X509_getm_notAfter(id.cert), spec->from || spec->to ? spec->to : DAY);
	X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)spec->cn, -1, -1, 0);
	X509_set_issuer_name(id.cert, X509_get_subject_name(by->cert));
	X509_set_pubkey(id.cert, id.key);
	fixture_extension(id.cert, by->cert, NID_basic_constraints,
			  spec->ca ? "critical,CA:TRUE" : "critical,CA:FALSE");
	if (spec->ca)
		fixture_extension(id.cert, by->cert, NID_key_usage, "critical,keyCertSign,cRLSign");
	if (spec->alt)
		fixture_extension(id.cert, by->cert, NID_subject_alt_name, spec->alt);
	assert_true(X509_sign(id.cert, by->key, EVP_sha256()) > 0);
	return id;
}

static void free_identity(struct identity *id)
{
	X509_free(id->cert);
	EVP_PKEY_free(id->key);
}

static void write_cert(const char *path, X509 *cert)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(PEM_write_X509(f, cert));
	fclose(f);
}

static void write_key(const char *path, EVP_PKEY *key)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL));
	fclose(f);
}

/* NAME.pem and NAME.key in the fixture's directory. */
static void save_identity(const struct identity *id, const char *name)
{
	char file[64];

	snprintf(file, sizeof(file), "%s.pem", name);
	write_cert(fixture_path(file), id->cert);
	snprintf(file, sizeof(file), "%s.key", name);
	write_key(fixture_path(file), id->key);
}

static _unused_ void make_saved(const struct identity *issuer, const struct leaf_spec *spec, const char *name)
{
	struct identity id = make_identity(issuer, spec);

	save_identity(&id, name);
	free_identity(&id);
}

static void fixture_begin(void)
{
	signal(SIGPIPE, SIG_IGN);
	assert_non_null(mkdtemp(fixture_dir));
}

static void fixture_end(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", fixture_dir);
	assert_int_equal(system(cmd), 0);
}

/* ---- two ends ---- */

static void socket_pair(int fds[2])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(bind(l, (struct sockaddr *)&a, n), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&a, &n), 0);
	fds[0] = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(fds[0], (struct sockaddr *)&a, n), 0);
	fds[1] = accept(l, NULL, NULL);
	assert_true(fds[1] >= 0);
	close(l);
	for (int i = 0; i < 2; i++)
		fcntl(fds[i], F_SETFL, O_NONBLOCK);
}

struct ends {
	int fd[2]; /* client, server */
	struct tls *c, *s;
	int cr, sr; /* what the handshakes came to */
};

static struct tls_ctx *client_ctx(const struct tls_client_options *o)
{
	struct tls_ctx *ctx = NULL;
	char err[256] = "";

	if (tls_ctx_new_client(&ctx, o, err, sizeof(err)) < 0)
		fail_msg("client context: %s", err);
	return ctx;
}

static struct tls_ctx *server_ctx(const struct tls_server_options *o)
{
	struct tls_ctx *ctx = NULL;
	char err[256] = "";

	if (tls_ctx_new_server(&ctx, o, err, sizeof(err)) < 0)
		fail_msg("server context: %s", err);
	return ctx;
}

/* A server context with the saved identity NAME. */
static _unused_ struct tls_ctx *server_with(const char *name, struct tls_server_options o)
{
	char cert[64], key[64];
	struct tls_certificate c;

	snprintf(cert, sizeof(cert), "%s.pem", name);
	snprintf(key, sizeof(key), "%s.key", name);
	c = (struct tls_certificate){ fixture_path(cert), fixture_path(key), NULL };
	o.certificates = &c;
	o.n = 1;
	return server_ctx(&o);
}

static void wait_for(int fd, short events)
{
	struct pollfd p = { fd, events, 0 };

	if (poll(&p, 1, 10000) != 1)
		fail_msg("nothing happened on the socket");
}

/* Drives both handshakes until each is done or failed. */
static void shake(struct ends *e)
{
	e->cr = e->sr = TLS_WANT_READ;
	while (e->cr > 0 || e->sr > 0) {
		struct pollfd p[2] = { { e->fd[0], POLLIN, 0 }, { e->fd[1], POLLIN, 0 } };
		if (e->cr > 0)
			e->cr = tls_handshake(e->c);
		if (e->sr > 0)
			e->sr = tls_handshake(e->s);
		/* One side gave up: the other must learn of it. */
		if (e->cr < 0 && e->sr > 0)
			shutdown(e->fd[0], SHUT_WR);
		if (e->sr < 0 && e->cr > 0)
			shutdown(e->fd[1], SHUT_WR);
		p[0].fd = e->cr > 0 ? e->fd[0] : -1;
		p[1].fd = e->sr > 0 ? e->fd[1] : -1;
		if ((e->cr > 0 || e->sr > 0) && poll(p, 2, 10000) < 1)
			fail_msg("the handshake stalls: client %d, server %d", e->cr, e->sr);
	}
}

static struct ends ends_open(struct tls_ctx *client, struct tls_ctx *server, const char *name,
			     struct tls_session_cache *cache)
{
	struct ends e = { 0 };

	socket_pair(e.fd);
	assert_int_equal(tls_new_client(&e.c, client, e.fd[0], name, cache), 0);
	assert_int_equal(tls_new_server(&e.s, server, e.fd[1]), 0);
	shake(&e);
	return e;
}

static void ends_close(struct ends *e)
{
	tls_free(e->c);
	tls_free(e->s);
	close(e->fd[0]);
	close(e->fd[1]);
}

/* tls_read, waiting. */
static _unused_ ssize_t read_wait(struct tls *t, int fd, void *p, size_t n)
{
	ssize_t r;

	while ((r = tls_read(t, p, n)) == -EAGAIN)
		wait_for(fd, tls_want(t) == TLS_WANT_WRITE ? POLLOUT : POLLIN);
	return r;
}
