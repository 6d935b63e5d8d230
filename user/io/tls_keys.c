/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a connection's secrets to the keys the kernel wants.
 *
 * OpenSSL hands its keys to the kernel in some versions, directions and
 * protocols only (3.0: not for reading TLS 1.3). So the keys are derived here,
 * the same way for all of them: from the master secret in TLS 1.2 and from the
 * application traffic secrets, as the key log tells them, in TLS 1.3.
 *
 * A nonce must never serve twice under one key. TLS 1.3 and ChaCha20 make it
 * from the record number, which goes on where OpenSSL stopped. AES-GCM in TLS
 * 1.2 sends half of it in each record and OpenSSL starts at a random place: the
 * one record it wrote, Finished, is looked at and the kernel goes on behind it.
 */
#include <errno.h>
#include <linux/tls.h>
#include <netinet/tcp.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <pthread.h>
#include <sys/socket.h>
#include "base/fault.h"
#include "io/tls_internal.h"

static const struct suite {
	uint16_t id; /* IANA TLS cipher suite number */
	uint16_t kernel;
	uint8_t key_len;
	const char *digest;
	const char *cipher;
} suites[] = {
	{ 0x1301, TLS_CIPHER_AES_GCM_128, 16, "SHA256", "AES-128-GCM" },
	{ 0x1302, TLS_CIPHER_AES_GCM_256, 32, "SHA384", "AES-256-GCM" },
	{ 0x1303, TLS_CIPHER_CHACHA20_POLY1305, 32, "SHA256", "ChaCha20-Poly1305" },
	{ 0xc02b, TLS_CIPHER_AES_GCM_128, 16, "SHA256", NULL }, /* ECDHE-ECDSA */
	{ 0xc02f, TLS_CIPHER_AES_GCM_128, 16, "SHA256", NULL }, /* ECDHE-RSA */
	{ 0x009e, TLS_CIPHER_AES_GCM_128, 16, "SHA256", NULL }, /* DHE-RSA */
	{ 0x009c, TLS_CIPHER_AES_GCM_128, 16, "SHA256", NULL }, /* RSA */
	{ 0xc02c, TLS_CIPHER_AES_GCM_256, 32, "SHA384", NULL },
	{ 0xc030, TLS_CIPHER_AES_GCM_256, 32, "SHA384", NULL },
	{ 0x009f, TLS_CIPHER_AES_GCM_256, 32, "SHA384", NULL },
	{ 0x009d, TLS_CIPHER_AES_GCM_256, 32, "SHA384", NULL },
	{ 0xcca9, TLS_CIPHER_CHACHA20_POLY1305, 32, "SHA256", NULL }, /* ECDHE-ECDSA */
	{ 0xcca8, TLS_CIPHER_CHACHA20_POLY1305, 32, "SHA256", NULL }, /* ECDHE-RSA */
	{ 0xccaa, TLS_CIPHER_CHACHA20_POLY1305, 32, "SHA256", NULL }, /* DHE-RSA */
};

static const struct suite *suite_of(uint16_t id)
{
	for (size_t i = 0; i < ARRAY_SIZE(suites); i++)
		if (suites[i].id == id)
			return &suites[i];
	return NULL;
}

unsigned tls_kernel_cipher(uint16_t suite)
{
	const struct suite *s = suite_of(suite);

	return s ? s->kernel : 0;
}

/* ---- derivation ---- */

static EVP_KDF *hkdf, *prf;

static void fetch_kdfs(void)
{
	hkdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	prf = EVP_KDF_fetch(NULL, "TLS1-PRF", NULL);
}

static int derive(EVP_KDF *kdf, const OSSL_PARAM *params, unsigned char *out, size_t n)
{
	EVP_KDF_CTX *c = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	int ok = c ? EVP_KDF_derive(c, out, n, params) : 0;

	EVP_KDF_CTX_free(c);
	return ok == 1 ? 0 : -EIO;
}

static EVP_KDF *kdf_get(EVP_KDF **which)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, fetch_kdfs);
	return *which;
}

/* HKDF-Expand-Label with an empty context (RFC 8446 7.1). */
static int expand_label(const struct suite *s, const struct tls_secret *secret, const char *label, unsigned char *out,
			size_t n)
{
	int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
	unsigned char info[64];
	size_t len = strlen(label);
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)(uintptr_t)s->digest, 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret->p, secret->n),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, 2 + 1 + 6 + len + 1),
		OSSL_PARAM_END,
	};

	info[0] = (unsigned char)(n >> 8);
	info[1] = (unsigned char)n;
	info[2] = (unsigned char)(6 + len);
	memcpy(info + 3, "tls13 ", 6);
	memcpy(info + 9, label, len);
	info[9 + len] = 0;
	return derive(kdf_get(&hkdf), params, out, n);
}

int tls_keys_13(const struct tls *t, const struct tls_secret *secret, struct tls_key *out)
{
	const struct suite *s = suite_of(t->suite);
	int r;

	if (!s || secret->n == 0)
		return -EIO;
	out->seq = 0;
	r = expand_label(s, secret, "key", out->key, s->key_len);
	return r < 0 ? r : expand_label(s, secret, "iv", out->iv, sizeof(out->iv));
}

int tls_keys_13_next(const struct tls *t, struct tls_secret *secret)
{
	const struct suite *s = suite_of(t->suite);
	struct tls_secret next = { .n = secret->n };
	int r;

	if (!s || secret->n == 0)
		return -EIO;
	r = expand_label(s, secret, "traffic upd", next.p, next.n);
	if (r == 0)
		*secret = next;
	OPENSSL_cleanse(&next, sizeof(next));
	return r;
}

/* The explicit half of the nonce in the Finished we sent, plus one, into iv. */
static int nonce_after_finished(const struct tls_offload *o, unsigned char iv[8])
{
	static const unsigned char head[] = { SSL3_RT_HANDSHAKE, 3, 3, 0, TLS_TAIL - 5 };
	int i;

	if (o->tail_n != TLS_TAIL || memcmp(o->tail, head, sizeof(head)) != 0)
		return -EIO;
	memcpy(iv, o->tail + 5, 8);
	for (i = 7; i >= 0 && ++iv[i] == 0; i--)
		;
	return 0;
}

int tls_keys_12(const struct tls *t, struct tls_key *tx, struct tls_key *rx)
{
	const struct suite *s = suite_of(t->suite);
	bool chacha = s && s->kernel == TLS_CIPHER_CHACHA20_POLY1305;
	size_t iv = chacha ? 12 : 4;
	unsigned char master[SSL_MAX_MASTER_KEY_LENGTH], seed[13 + 2 * SSL3_RANDOM_SIZE] = "key expansion";
	unsigned char block[2 * (32 + 12)], *p = block;
	struct tls_key *client = t->server ? rx : tx, *server = t->server ? tx : rx;
	size_t n = SSL_SESSION_get_master_key(SSL_get_session(t->ssl), master, sizeof(master));
	int r;

	if (!s || n == 0)
		return -EIO;
	SSL_get_server_random(t->ssl, seed + 13, SSL3_RANDOM_SIZE);
	SSL_get_client_random(t->ssl, seed + 13 + SSL3_RANDOM_SIZE, SSL3_RANDOM_SIZE);
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)(uintptr_t)s->digest, 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SECRET, master, n),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SEED, seed, sizeof(seed)),
		OSSL_PARAM_END,
	};
	r = derive(kdf_get(&prf), params, block, 2 * (s->key_len + iv));
	if (r == 0) {
		*tx = *rx = (struct tls_key){ .seq = 1 }; /* 0 was Finished */
		memcpy(client->key, p, s->key_len);
		memcpy(server->key, p += s->key_len, s->key_len);
		memcpy(client->iv, p += s->key_len, iv);
		memcpy(server->iv, p + iv, iv);
		if (!chacha)
			r = nonce_after_finished(t->off, tx->iv + 4);
	}
	OPENSSL_cleanse(master, sizeof(master));
	OPENSSL_cleanse(block, sizeof(block));
	return r;
}

/* ---- the kernel's layout (linux/tls.h) ---- */

static void put_seq(unsigned char out[8], uint64_t seq)
{
	for (int i = 7; i >= 0; i--, seq >>= 8)
		out[i] = (unsigned char)seq;
}

int tls_keys_install(const struct tls *t, unsigned dir, const struct tls_key *k)
{
	const struct suite *s = suite_of(t->suite);
	struct tls_crypto_info info = { .version = t->proto, .cipher_type = s->kernel };
	union {
		struct tls12_crypto_info_aes_gcm_128 aes128;
		struct tls12_crypto_info_aes_gcm_256 aes256;
		struct tls12_crypto_info_chacha20_poly1305 chacha;
	} u = { 0 };
	socklen_t n = 0;
	int r;

	switch (s->kernel) {
	case TLS_CIPHER_AES_GCM_128:
		u.aes128.info = info;
		memcpy(u.aes128.key, k->key, sizeof(u.aes128.key));
		memcpy(u.aes128.salt, k->iv, 4);
		memcpy(u.aes128.iv, k->iv + 4, 8);
		put_seq(u.aes128.rec_seq, k->seq);
		n = sizeof(u.aes128);
		break;
	case TLS_CIPHER_AES_GCM_256:
		u.aes256.info = info;
		memcpy(u.aes256.key, k->key, sizeof(u.aes256.key));
		memcpy(u.aes256.salt, k->iv, 4);
		memcpy(u.aes256.iv, k->iv + 4, 8);
		put_seq(u.aes256.rec_seq, k->seq);
		n = sizeof(u.aes256);
		break;
	case TLS_CIPHER_CHACHA20_POLY1305:
		u.chacha.info = info;
		memcpy(u.chacha.key, k->key, sizeof(u.chacha.key));
		memcpy(u.chacha.iv, k->iv, 12);
		put_seq(u.chacha.rec_seq, k->seq);
		n = sizeof(u.chacha);
		break;
	}
	if (dir == TLS_KERNEL_RX && fault_hit(FAULT_KTLS_RX)) {
		OPENSSL_cleanse(&u, sizeof(u));
		return -EOPNOTSUPP;
	}
	r = setsockopt(t->fd, SOL_TLS, dir == TLS_KERNEL_TX ? TLS_TX : TLS_RX, &u, n);
	r = r < 0 ? -errno : 0;
	OPENSSL_cleanse(&u, sizeof(u));
	return r;
}

/* ---- one record, made by hand ---- */

int tls_keys_seal(const struct tls *t, struct tls_key *k, struct str message, struct buf *out)
{
	const struct suite *s = suite_of(t->suite);
	size_t len = message.n + 1 + 16; /* content type, tag */
	unsigned char nonce[12], seq[8], type = SSL3_RT_HANDSHAKE, *p;
	unsigned char head[5] = { SSL3_RT_APPLICATION_DATA, 3, 3, (unsigned char)(len >> 8), (unsigned char)len };
	EVP_CIPHER_CTX *c;
	EVP_CIPHER *cipher;
	bool ok;
	int n;

	if (!s || !s->cipher || message.n > SSL3_RT_MAX_PLAIN_LENGTH - 1)
		return -EMSGSIZE;
	if (buf_append(out, head, sizeof(head)) < 0 || buf_reserve(out, len) < 0)
		return -ENOMEM;
	p = (unsigned char *)buf_tail(out);
	put_seq(seq, k->seq++);
	memcpy(nonce, k->iv, sizeof(nonce));
	for (int i = 0; i < 8; i++)
		nonce[4 + i] ^= seq[i];
	cipher = EVP_CIPHER_fetch(NULL, s->cipher, NULL);
	c = EVP_CIPHER_CTX_new();
	ok = cipher && c && EVP_EncryptInit_ex2(c, cipher, k->key, nonce, NULL) &&
	     EVP_EncryptUpdate(c, NULL, &n, head, sizeof(head)) &&
	     EVP_EncryptUpdate(c, p, &n, (const unsigned char *)message.p, (int)message.n) &&
	     EVP_EncryptUpdate(c, p + message.n, &n, &type, 1) && EVP_EncryptFinal_ex(c, p + message.n + 1, &n) &&
	     EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, p + message.n + 1);
	EVP_CIPHER_CTX_free(c);
	EVP_CIPHER_free(cipher);
	if (!ok)
		return -EIO;
	buf_commit(out, len);
	return 0;
}
