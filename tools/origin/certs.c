/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Certificates for demonstrations and tests: an authority of its own, a server
 * and a client signed by it, P-256, good for 90 days. Nothing outside the
 * directory is touched; keys are readable by their owner only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include "origin.h"

enum { GOOD_DAYS = 90, DAY = 24 * 3600 };

static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *ext;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	if (!ext || !X509_add_ext(cert, ext, -1))
		die("certificate extension", value);
	X509_EXTENSION_free(ext);
}

/* A certificate for key; issuer NULL signs itself. san NULL: an authority. */
static X509 *make_cert(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key, const char *san)
{
	X509 *cert = X509_new();
	uint64_t serial;
	X509_NAME *subject;

	if (!cert || RAND_bytes((unsigned char *)&serial, sizeof(serial)) != 1)
		die("certificate", name);
	X509_set_version(cert, 2);
	ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), serial >> 1);
	X509_gmtime_adj(X509_getm_notBefore(cert), -DAY);
	X509_gmtime_adj(X509_getm_notAfter(cert), GOOD_DAYS * DAY);
	X509_set_pubkey(cert, key);
	subject = X509_get_subject_name(cert);
	X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(cert, issuer ? X509_get_subject_name(issuer) : subject);
	if (san) {
		add_extension(cert, issuer, NID_basic_constraints, "critical,CA:FALSE");
		add_extension(cert, issuer, NID_key_usage, "critical,digitalSignature");
		add_extension(cert, issuer, NID_ext_key_usage, "serverAuth,clientAuth");
		add_extension(cert, issuer, NID_subject_alt_name, san);
		/* Who verifies strictly, as Python does from 3.13 on, asks for it (RFC 5280 4.2.1.1). */
		add_extension(cert, issuer, NID_authority_key_identifier, "keyid:always");
	} else {
		add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE");
		add_extension(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign");
		add_extension(cert, cert, NID_subject_key_identifier, "hash");
	}
	if (!X509_sign(cert, issuer_key, EVP_sha256()))
		die("certificate", name);
	return cert;
}

static FILE *open_in(const char *dir, const char *file, const char *mode, mode_t perm)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	if (mode[0] == 'r')
		return fopen(path, "re");
	unlink(path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, perm);
	return fd < 0 ? NULL : fdopen(fd, "w");
}

static void write_pair(const char *dir, const char *name, X509 *cert, EVP_PKEY *key)
{
	char file[64];
	FILE *f;

	snprintf(file, sizeof(file), "%s.key", name);
	f = open_in(dir, file, "w", 0600);
	if (!f || !PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) || fclose(f))
		die(dir, "can not write the key");
	snprintf(file, sizeof(file), "%s.pem", name);
	f = open_in(dir, file, "w", 0644);
	if (!f || !PEM_write_X509(f, cert) || fclose(f))
		die(dir, "can not write the certificate");
}

/* All there, from one authority, and good for another day. */
static bool still_good(const char *dir)
{
	static const char *const files[] = { "ca.pem", "server.pem", "client.pem" };
	static const char *const keys[] = { "server.key", "client.key" };
	time_t tomorrow = time(NULL) + DAY;
	X509 *ca = NULL;
	bool good = true;

	for (size_t i = 0; good && i < ARRAY_SIZE(keys); i++) {
		FILE *f = open_in(dir, keys[i], "r", 0);

		good = f != NULL;
		if (f)
			fclose(f);
	}
	for (size_t i = 0; good && i < ARRAY_SIZE(files); i++) {
		FILE *f = open_in(dir, files[i], "r", 0);
		X509 *x = f ? PEM_read_X509(f, NULL, NULL, NULL) : NULL;

		if (f)
			fclose(f);
		if (i == 0)
			ca = x;
		good = x && ca && X509_verify(x, X509_get0_pubkey(ca)) == 1 &&
		       X509_cmp_time(X509_get0_notAfter(x), &tomorrow) > 0;
		if (i > 0)
			X509_free(x);
	}
	X509_free(ca);
	ERR_clear_error();
	return good;
}

bool certs_make(const char *dir)
{
	static const struct {
		const char *file, *name, *san;
	} leaves[] = {
		{ "server", "one.demo", "DNS:one.demo,DNS:localhost,IP:127.0.0.1,IP:::1" },
		{ "client", "client.demo", "DNS:client.demo" },
	};
	EVP_PKEY *ca_key;
	X509 *ca;

	if (still_good(dir))
		return false;
	if (mkdir(dir, 0755) < 0 && errno != EEXIST)
		die(dir, strerror(errno));
	ca_key = EVP_EC_gen("P-256");
	ca = make_cert("sluice demonstration authority", ca_key, NULL, ca_key, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(leaves); i++) {
		EVP_PKEY *key = EVP_EC_gen("P-256");
		X509 *cert = make_cert(leaves[i].name, key, ca, ca_key, leaves[i].san);

		write_pair(dir, leaves[i].file, cert, key);
		X509_free(cert);
		EVP_PKEY_free(key);
	}
	/* Last: it is what says that the set is whole. */
	write_pair(dir, "ca", ca, ca_key);
	X509_free(ca);
	EVP_PKEY_free(ca_key);
	return true;
}
