/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keys of session tickets, which change by themselves. One secret makes the
 * keys of a period of hours and the secret of the next one, and is forgotten
 * with the period; the keys of the last period still open tickets. So who
 * steals the keys reads no session older than two periods (RFC 5077 5.5), and
 * processes that hold the same secret change to the same keys at the same time
 * without a word between them.
 *
 * Periods count the time since boot, which nobody sets. Nothing here touches
 * OpenSSL before a handshake needs keys: its start costs 1.5 MB, which a daemon
 * without TLS does not owe it.
 */
#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include "io/tls_internal.h"

#define PERIOD_NS (8 * 3600 * NS_PER_S) /* OpenSSL lets sessions live two hours */

struct ticket_keys {
	unsigned char name[16], cipher[32], mac[32];
};

/* What a successor gets, byte for byte; another layout is another size. */
struct state {
	uint64_t period;
	uint64_t has; /* bit 0: current, bit 1: previous */
	unsigned char secret[32];
	struct ticket_keys current, previous;
};
_Static_assert(sizeof(struct state) == TLS_TICKETS_STATE, "what is handed on has one size");

struct tls_tickets {
	atomic_uint refs;
	pthread_mutex_t lock; /* of s */
	struct state s;
};

enum { HAS_CURRENT = 1, HAS_PREVIOUS = 2 };

static uint64_t period_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return ((uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec) / PERIOD_NS;
}

static bool derive(const struct state *s, const char *label, unsigned char *out, size_t n)
{
	unsigned char digest[32];
	size_t got = 0;
	bool ok = EVP_Q_mac(NULL, "HMAC", NULL, "SHA256", NULL, s->secret, sizeof(s->secret),
			    (const unsigned char *)label, strlen(label), digest, sizeof(digest), &got) &&
		  got == sizeof(digest);

	if (ok)
		memcpy(out, digest, n);
	OPENSSL_cleanse(digest, sizeof(digest));
	return ok;
}

static bool make_current(struct state *s)
{
	if (!(s->has & HAS_CURRENT) && derive(s, "name", s->current.name, sizeof(s->current.name)) &&
	    derive(s, "cipher", s->current.cipher, sizeof(s->current.cipher)) &&
	    derive(s, "mac", s->current.mac, sizeof(s->current.mac)))
		s->has |= HAS_CURRENT;
	return s->has & HAS_CURRENT;
}

/* One period on. False: out of memory, nothing has changed. */
static bool step(struct state *s)
{
	unsigned char next[sizeof(s->secret)];

	if (!make_current(s) || !derive(s, "next", next, sizeof(next)))
		return false;
	s->previous = s->current;
	memcpy(s->secret, next, sizeof(next));
	OPENSSL_cleanse(next, sizeof(next));
	OPENSSL_cleanse(&s->current, sizeof(s->current));
	s->has = HAS_PREVIOUS;
	s->period++;
	return true;
}

int tls_tickets_new(struct tls_tickets **out, const void *state, size_t n)
{
	struct tls_tickets *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	atomic_init(&t->refs, 1);
	pthread_mutex_init(&t->lock, NULL);
	if (n == sizeof(t->s)) {
		memcpy(&t->s, state, n);
	} else if (getrandom(t->s.secret, sizeof(t->s.secret), 0) == (ssize_t)sizeof(t->s.secret)) {
		t->s.period = period_now();
	} else {
		tls_tickets_unref(t);
		return -EIO;
	}
	*out = t;
	return 0;
}

struct tls_tickets *tls_tickets_ref(struct tls_tickets *t)
{
	atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
	return t;
}

void tls_tickets_unref(struct tls_tickets *t)
{
	if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
		return;
	pthread_mutex_destroy(&t->lock);
	explicit_bzero(&t->s, sizeof(t->s));
	free(t);
}

void tls_tickets_save(struct tls_tickets *t, unsigned char state[TLS_TICKETS_STATE])
{
	pthread_mutex_lock(&t->lock);
	memcpy(state, &t->s, sizeof(t->s));
	pthread_mutex_unlock(&t->lock);
}

int tls_tickets_advance(struct tls_tickets *t)
{
	bool ok;

	pthread_mutex_lock(&t->lock);
	ok = step(&t->s);
	pthread_mutex_unlock(&t->lock);
	return ok ? 0 : -ENOMEM;
}

/* The keys to seal with (name NULL) or to open what has that name; false: there are none. */
static bool choose(struct tls_tickets *t, const unsigned char *name, struct ticket_keys *out)
{
	uint64_t now = period_now();
	bool found = false;

	pthread_mutex_lock(&t->lock);
	while ((int64_t)(now - t->s.period) > 0 && step(&t->s))
		;
	if (make_current(&t->s) && (!name || CRYPTO_memcmp(name, t->s.current.name, sizeof(out->name)) == 0)) {
		*out = t->s.current;
		found = true;
	} else if (name && t->s.has & HAS_PREVIOUS && CRYPTO_memcmp(name, t->s.previous.name, sizeof(out->name)) == 0) {
		*out = t->s.previous;
		found = true;
	}
	pthread_mutex_unlock(&t->lock);
	return found;
}

/*
 * SSL_CTX_set_tlsext_ticket_key_evp_cb(3): 0 is no ticket, or a full handshake; 2 asks for a new ticket as well. TLS 1.3
 * uses each only once. In TLS 1.2 none is due, since a session ends before its keys do, and OpenSSL as a client would
 * forget the session without telling of the new one.
 */
static int on_ticket(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
		     int seal)
{
	struct ticket_keys k = { 0 };
	bool ok = choose(tls_of(ssl)->ctx->tickets, seal ? NULL : name, &k);
	OSSL_PARAM params[] = { OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, k.mac, sizeof(k.mac)),
				OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)(uintptr_t) "SHA256",
								 0),
				OSSL_PARAM_construct_end() };

	if (ok && seal) {
		memcpy(name, k.name, sizeof(k.name));
		if (RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) != 1)
			ok = false;
	}
	if (ok && (EVP_CipherInit_ex(cipher, EVP_aes_256_cbc(), NULL, k.cipher, iv, seal) != 1 ||
		   EVP_MAC_CTX_set_params(mac, params) != 1))
		ok = false;
	OPENSSL_cleanse(&k, sizeof(k));
	return !ok ? 0 : !seal && SSL_version(ssl) == TLS1_3_VERSION ? 2 : 1;
}

void tls_tickets_setup_ctx(SSL_CTX *c)
{
	SSL_CTX_set_tlsext_ticket_key_evp_cb(c, on_ticket);
}
