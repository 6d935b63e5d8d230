/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions a client can resume, for one backend. A small stack: the newest
 * session is offered first, the oldest falls out. TLS 1.3 tickets leave when
 * they are offered, since showing one twice links connections for whoever
 * watches (RFC 8446 C.4); TLS 1.2 sessions stay.
 *
 * A resumed handshake shows no certificate, so a session counts only for the
 * context (trust, revocation, client certificate) and the name it was made
 * under.
 */
#include <errno.h>
#include <openssl/err.h>
#include <pthread.h>
#include <stdlib.h>
#include "io/tls_internal.h"

#define SESSIONS 16

struct entry {
	SSL_SESSION *session;
	uint64_t ctx;
	char *name;
};

struct tls_session_cache {
	atomic_uint refs;
	pthread_mutex_t lock; /* guards what follows */
	struct entry e[SESSIONS];
	size_t n; /* e[n - 1] is the newest */
};

int tls_session_cache_new(struct tls_session_cache **out)
{
	struct tls_session_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	atomic_init(&c->refs, 1);
	pthread_mutex_init(&c->lock, NULL);
	*out = c;
	return 0;
}

struct tls_session_cache *tls_session_cache_ref(struct tls_session_cache *c)
{
	atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
	return c;
}

static void entry_free(struct entry *e)
{
	SSL_SESSION_free(e->session);
	free(e->name);
}

void tls_session_cache_unref(struct tls_session_cache *c)
{
	if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (size_t i = 0; i < c->n; i++)
		entry_free(&c->e[i]);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

static struct entry cache_remove(struct tls_session_cache *c, size_t i)
{
	struct entry e = c->e[i];

	memmove(&c->e[i], &c->e[i + 1], (c->n - i - 1) * sizeof(e));
	c->n--;
	return e;
}

/* Takes over e. */
static void cache_put(struct tls_session_cache *c, struct entry e)
{
	struct entry old = { 0 };

	pthread_mutex_lock(&c->lock);
	if (c->n == SESSIONS)
		old = cache_remove(c, 0);
	c->e[c->n++] = e;
	pthread_mutex_unlock(&c->lock);
	entry_free(&old);
}

/* The newest session that fits, as the caller's reference; NULL when there is none. */
static SSL_SESSION *cache_take(struct tls_session_cache *c, uint64_t ctx, const char *name)
{
	SSL_SESSION *found = NULL;
	struct entry used = { 0 };

	pthread_mutex_lock(&c->lock);
	for (size_t i = c->n; i-- > 0 && !found;) {
		struct entry *e = &c->e[i];
		if (e->ctx != ctx || strcmp(e->name, name) != 0)
			continue;
		found = e->session;
		SSL_SESSION_up_ref(found);
		if (SSL_SESSION_get_protocol_version(found) == TLS1_3_VERSION)
			used = cache_remove(c, i);
	}
	pthread_mutex_unlock(&c->lock);
	entry_free(&used);
	return found;
}

/* OpenSSL made a session: after the handshake of TLS 1.2, for each ticket of TLS 1.3. 1: keeps the reference. */
static int on_session(SSL *ssl, SSL_SESSION *s)
{
	struct tls *t = tls_of(ssl);
	struct entry e = { .session = s };

	if (!t || !t->cache || !SSL_SESSION_is_resumable(s))
		return 0;
	e.ctx = t->ctx->id;
	e.name = str_dup(str_from(t->server_name ? t->server_name : ""));
	if (!e.name)
		return 0;
	cache_put(t->cache, e);
	return 1;
}

void tls_session_setup_client(SSL_CTX *c)
{
	SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(c, on_session);
}

void tls_session_offer(struct tls *t)
{
	SSL_SESSION *s;

	if (!t->cache)
		return;
	s = cache_take(t->cache, t->ctx->id, t->server_name ? t->server_name : "");
	if (!s)
		return;
	if (SSL_set_session(t->ssl, s) != 1)
		ERR_clear_error(); /* then a full handshake */
	SSL_SESSION_free(s);
}
