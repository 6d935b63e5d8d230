/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: certificates, trust, versions, and what a server answers to SNI,
 * ALPN and status requests. Nothing changes after creation, so threads share
 * a context without locks; OpenSSL counts references by itself.
 */
#include <errno.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include "io/tls_internal.h"

#define ALPN_HTTP11 "\x08http/1.1"

static int refuse(int code, char *err, size_t errlen, const char *fmt, ...) _printf_(4, 5);
static int refuse(int code, char *err, size_t errlen, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err, errlen, fmt, ap);
	va_end(ap);
	ERR_clear_error();
	return code;
}

static int refuse_file(const char *what, const char *path, char *err, size_t errlen)
{
	char text[160];
	struct stat st;

	if (stat(path, &st) < 0) {
		int e = errno;
		return refuse(-e, err, errlen, "%s %s: %s", what, path, strerror(e));
	}
	tls_error_text(text, sizeof(text));
	return refuse(-EINVAL, err, errlen, "%s %s: %s", what, path, text);
}

/* ---- what both sides set ---- */

static void on_info(const SSL *ssl, int where, int ret)
{
	struct tls *t = tls_of(ssl);

	if (t && where == SSL_CB_READ_ALERT && (ret >> 8) == SSL3_AL_FATAL)
		t->alert_in = (uint8_t)((ret & 0xff) + 1);
}

static int version_number(const char *name)
{
	if (!name || strcmp(name, "1.2") == 0)
		return TLS1_2_VERSION;
	return strcmp(name, "1.3") == 0 ? TLS1_3_VERSION : -1;
}

struct common {
	const char *min_version, *max_version, *ciphers, *ciphersuites;
	enum tls_ktls ktls;
};

static int setup_common(SSL_CTX *c, const struct common *o, char *err, size_t errlen)
{
	int min = version_number(o->min_version);
	int max = o->max_version ? version_number(o->max_version) : 0;

	if (min < 0 || max < 0)
		return refuse(-EINVAL, err, errlen, "TLS version \"%s\" is not known: 1.2 or 1.3",
			      min < 0 ? o->min_version : o->max_version);
	if (max && max < min)
		return refuse(-EINVAL, err, errlen, "TLS min_version is above max_version");
	SSL_CTX_set_min_proto_version(c, min);
	SSL_CTX_set_max_proto_version(c, max);
	if (o->ciphers && SSL_CTX_set_cipher_list(c, o->ciphers) != 1)
		return refuse(-EINVAL, err, errlen, "no TLS 1.2 cipher in \"%s\"", o->ciphers);
	if (o->ciphersuites && SSL_CTX_set_ciphersuites(c, o->ciphersuites) != 1)
		return refuse(-EINVAL, err, errlen, "no TLS 1.3 cipher suite in \"%s\"", o->ciphersuites);
	SSL_CTX_set_options(c, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
				    SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_info_callback(c, on_info);
	if (o->ktls != TLS_KTLS_OFF)
		tls_kernel_setup_ctx(c);
	return 0;
}

static int load_identity(SSL_CTX *c, const char *cert, const char *key, char *err, size_t errlen)
{
	if (!cert || !key)
		return refuse(-EINVAL, err, errlen, "a certificate needs both files, cert and key");
	if (SSL_CTX_use_certificate_chain_file(c, cert) != 1)
		return refuse_file("certificate", cert, err, errlen);
	if (SSL_CTX_use_PrivateKey_file(c, key, SSL_FILETYPE_PEM) != 1)
		return refuse_file("key", key, err, errlen);
	if (SSL_CTX_check_private_key(c) != 1)
		return refuse(-EINVAL, err, errlen, "key %s does not belong to certificate %s", key, cert);
	return 0;
}

static struct tls_ctx *ctx_alloc(bool server, enum tls_ktls ktls)
{
	static _Atomic uint64_t next_id = 1;
	struct tls_ctx *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	atomic_init(&c->refs, 1);
	c->id = atomic_fetch_add(&next_id, 1);
	c->server = server;
	c->ktls = ktls;
	return c;
}

struct tls_ctx *tls_ctx_ref(struct tls_ctx *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	return c;
}

void tls_ctx_unref(struct tls_ctx *c)
{
	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (size_t i = 0; i < c->n; i++) {
		SSL_CTX_free(c->certs[i]);
		for (size_t j = 0; j < c->names[i].n; j++)
			free(c->names[i].name[j]);
		free(c->names[i].name);
		OPENSSL_free(c->ocsp[i].p);
	}
	if (!c->server)
		SSL_CTX_free(c->ssl);
	free(c->certs);
	free(c->names);
	free(c->ocsp);
	tls_tickets_unref(c->tickets);
	free(c);
}

/* ---- client ---- */

static int load_trust(SSL_CTX *c, const char *path, char *err, size_t errlen)
{
	struct stat st;

	if (!path)
		return SSL_CTX_set_default_verify_paths(c) == 1
			       ? 0
			       : refuse(-EINVAL, err, errlen, "the system's certificate authorities can not be read");
	if (stat(path, &st) < 0)
		return refuse_file("ca_file", path, err, errlen);
	if (S_ISDIR(st.st_mode) ? SSL_CTX_load_verify_dir(c, path) != 1 : SSL_CTX_load_verify_file(c, path) != 1)
		return refuse_file("ca_file", path, err, errlen);
	return 0;
}

static int load_crl(SSL_CTX *c, const char *path, char *err, size_t errlen)
{
	X509_STORE *store = SSL_CTX_get_cert_store(c);
	X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());

	if (!lookup || X509_load_crl_file(lookup, path, X509_FILETYPE_PEM) < 1)
		return refuse_file("crl_file", path, err, errlen);
	X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
	return 0;
}

static int setup_client(struct tls_ctx *c, const struct tls_client_options *o, char *err, size_t errlen)
{
	struct common common = { o->min_version, o->max_version, o->ciphers, o->ciphersuites, o->ktls };
	int r;

	c->ssl = SSL_CTX_new(TLS_client_method());
	if (!c->ssl)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	r = setup_common(c->ssl, &common, err, errlen);
	if (r < 0)
		return r;
	c->verify = o->verify;
	if (o->verify) {
		r = load_trust(c->ssl, o->ca_file, err, errlen);
		if (r < 0)
			return r;
		if (o->crl_file) {
			r = load_crl(c->ssl, o->crl_file, err, errlen);
			if (r < 0)
				return r;
		}
		SSL_CTX_set_verify(c->ssl, SSL_VERIFY_PEER, NULL);
	}
	if (o->cert || o->key) {
		r = load_identity(c->ssl, o->cert, o->key, err, errlen);
		if (r < 0)
			return r;
	}
	tls_session_setup_client(c->ssl);
	/* The protocol list is wire format; this call alone answers 0 for success. */
	if (SSL_CTX_set_alpn_protos(c->ssl, (const unsigned char *)ALPN_HTTP11, sizeof(ALPN_HTTP11) - 1) != 0)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	return 0;
}

int tls_ctx_new_client(struct tls_ctx **out, const struct tls_client_options *o, char *err, size_t errlen)
{
	struct tls_ctx *c = ctx_alloc(false, o->ktls);
	int r;

	if (!c)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	r = setup_client(c, o, err, errlen);
	if (r < 0) {
		tls_ctx_unref(c);
		return r;
	}
	*out = c;
	return 0;
}

/* ---- server ---- */

static int names_add(struct tls_names *names, const unsigned char *p, size_t n)
{
	char **grown, *copy;

	if (n == 0 || memchr(p, '\0', n))
		return 0; /* a name with a NUL inside is an attack, not a name */
	grown = realloc(names->name, (names->n + 1) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	names->name = grown;
	copy = str_dup((struct str){ (const char *)p, n });
	if (!copy)
		return -ENOMEM;
	for (char *q = copy; *q; q++)
		if (*q >= 'A' && *q <= 'Z')
			*q = (char)(*q | 0x20);
	names->name[names->n++] = copy;
	return 0;
}

/* The certificate's DNS names; its common name only where it has none (RFC 9525 does not use it at all). */
static int names_read(struct tls_names *names, X509 *cert)
{
	GENERAL_NAMES *alt = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	int r = 0;

	for (int i = 0; i < sk_GENERAL_NAME_num(alt) && r == 0; i++) {
		const GENERAL_NAME *g = sk_GENERAL_NAME_value(alt, i);
		if (g->type == GEN_DNS)
			r = names_add(names, ASN1_STRING_get0_data(g->d.dNSName),
				      (size_t)ASN1_STRING_length(g->d.dNSName));
	}
	GENERAL_NAMES_free(alt);
	if (r == 0 && names->n == 0) {
		X509_NAME *subject = X509_get_subject_name(cert);
		int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
		if (at >= 0) {
			ASN1_STRING *s = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
			r = names_add(names, ASN1_STRING_get0_data(s), (size_t)ASN1_STRING_length(s));
		}
	}
	return r;
}

static size_t choose_certificate(const struct tls_ctx *c, struct str want)
{
	const char *dot = memchr(want.p, '.', want.n);
	struct str tail = STR_NONE;

	for (size_t i = 0; i < c->n; i++)
		for (size_t j = 0; j < c->names[i].n; j++)
			if (str_ieq(str_from(c->names[i].name[j]), want))
				return i;
	if (!dot)
		return 0;
	tail = (struct str){ dot, want.n - (size_t)(dot - want.p) };
	for (size_t i = 0; i < c->n; i++)
		for (size_t j = 0; j < c->names[i].n; j++) {
			const char *name = c->names[i].name[j];
			/* A wildcard stands for one label (RFC 9525 6.3). */
			if (name[0] == '*' && str_ieq(str_from(name + 1), tail))
				return i;
		}
	return 0;
}

static int on_server_name(SSL *ssl, int *alert _unused_, void *arg)
{
	struct tls_ctx *c = arg;
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
	size_t i;

	if (!name)
		return SSL_TLSEXT_ERR_NOACK;
	i = choose_certificate(c, str_from(name));
	if (i != 0)
		SSL_set_SSL_CTX(ssl, c->certs[i]);
	return SSL_TLSEXT_ERR_OK;
}

/* A client that offers protocols but not http/1.1 would misread the answer (RFC 7301 3.2). */
static int on_alpn(SSL *ssl _unused_, const unsigned char **out, unsigned char *outlen, const unsigned char *in,
		   unsigned inlen, void *arg _unused_)
{
	for (unsigned i = 0; i < inlen && i + in[i] < inlen; i += 1u + in[i])
		if (str_eq((struct str){ (const char *)in + i + 1, in[i] }, STR("http/1.1"))) {
			*out = in + i + 1;
			*outlen = in[i];
			return SSL_TLSEXT_ERR_OK;
		}
	return SSL_TLSEXT_ERR_ALERT_FATAL;
}

static int on_status(SSL *ssl, void *arg)
{
	const struct ocsp *ocsp = arg;
	unsigned char *copy = OPENSSL_memdup(ocsp->p, ocsp->n);

	if (!copy)
		return SSL_TLSEXT_ERR_NOACK;
	SSL_set_tlsext_status_ocsp_resp(ssl, copy, (long)ocsp->n); /* takes it over */
	return SSL_TLSEXT_ERR_OK;
}

static int load_ocsp(SSL_CTX *c, struct ocsp *out, const char *path, char *err, size_t errlen)
{
	BIO *b = BIO_new_file(path, "rb");
	unsigned char *p = NULL;
	size_t cap = 64 * 1024, n = 0;

	if (!b)
		return refuse_file("ocsp", path, err, errlen);
	p = OPENSSL_malloc(cap);
	if (!p || BIO_read_ex(b, p, cap, &n) != 1 || n == cap || p[0] != 0x30) {
		OPENSSL_free(p);
		BIO_free(b);
		return refuse(-EINVAL, err, errlen, "ocsp %s: not a DER response of less than 64 KiB", path);
	}
	BIO_free(b);
	*out = (struct ocsp){ p, n };
	SSL_CTX_set_tlsext_status_cb(c, on_status);
	SSL_CTX_set_tlsext_status_arg(c, out);
	return 0;
}

/* OpenSSL makes a full handshake where this differs from the session's. */
static int set_scope(SSL_CTX *s, const char *scope)
{
	unsigned char id[EVP_MAX_MD_SIZE];
	unsigned n;

	_Static_assert(SSL_MAX_SID_CTX_LENGTH >= 32, "a SHA-256 digest must fit");
	if (EVP_Digest(scope, strlen(scope), id, &n, EVP_sha256(), NULL) != 1)
		return -ENOMEM;
	return SSL_CTX_set_session_id_context(s, id, n) == 1 ? 0 : -EINVAL;
}

static int setup_server_one(struct tls_ctx *c, size_t i, const struct tls_server_options *o,
			    char *err, size_t errlen)
{
	struct common common = { o->min_version, o->max_version, o->ciphers, o->ciphersuites, o->ktls };
	const struct tls_certificate *cert = &o->certificates[i];
	SSL_CTX *s = SSL_CTX_new(TLS_server_method());
	int r;

	if (!s)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	c->certs[i] = s;
	r = setup_common(s, &common, err, errlen);
	if (r < 0)
		return r;
	r = load_identity(s, cert->cert, cert->key, err, errlen);
	if (r < 0)
		return r;
	if (names_read(&c->names[i], SSL_CTX_get0_certificate(s)) < 0)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	if (cert->ocsp) {
		r = load_ocsp(s, &c->ocsp[i], cert->ocsp, err, errlen);
		if (r < 0)
			return r;
	}
	/* Sessions live in tickets alone: nothing to store, nothing to lock. */
	SSL_CTX_set_session_cache_mode(s, SSL_SESS_CACHE_OFF);
	if (set_scope(s, o->scope ? o->scope : "") < 0)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	SSL_CTX_set_num_tickets(s, 1);
	SSL_CTX_set_options(s, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
	tls_tickets_setup_ctx(s);
	SSL_CTX_set_tlsext_servername_callback(s, on_server_name);
	SSL_CTX_set_tlsext_servername_arg(s, c);
	SSL_CTX_set_alpn_select_cb(s, on_alpn, NULL);
	return 0;
}

static int setup_server(struct tls_ctx *c, const struct tls_server_options *o, char *err, size_t errlen)
{
	int r = 0;

	if (o->n == 0)
		return refuse(-EINVAL, err, errlen, "a TLS listener needs a certificate");
	c->certs = calloc(o->n, sizeof(*c->certs));
	c->names = calloc(o->n, sizeof(*c->names));
	c->ocsp = calloc(o->n, sizeof(*c->ocsp));
	if (!c->certs || !c->names || !c->ocsp)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	c->n = o->n;
	if (o->tickets)
		c->tickets = tls_tickets_ref(o->tickets);
	else if (tls_tickets_new(&c->tickets, NULL, 0) < 0)
		return refuse(-EIO, err, errlen, "no random numbers for session ticket keys");
	for (size_t i = 0; i < o->n && r == 0; i++)
		r = setup_server_one(c, i, o, err, errlen);
	c->ssl = c->certs[0];
	return r;
}

int tls_ctx_new_server(struct tls_ctx **out, const struct tls_server_options *o, char *err, size_t errlen)
{
	struct tls_ctx *c = ctx_alloc(true, o->ktls);
	int r;

	if (!c)
		return refuse(-ENOMEM, err, errlen, "out of memory");
	r = setup_server(c, o, err, errlen);
	if (r < 0) {
		tls_ctx_unref(c);
		return r;
	}
	*out = c;
	return 0;
}

const char *tls_library_version(void)
{
	return OpenSSL_version(OPENSSL_VERSION);
}
