/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One mutex over the list of names. A name is idle in the list, busy with a
 * thread (still in the list), or orphaned: taken off the list while busy, to be
 * freed by its thread without a callback.
 */
#include "lb/resolver.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/list.h"
#include "base/log.h"

/* After a failure, where the interval is not shorter; a name that was never found holds up requests. */
#define RETRY_MS 5000u
#define RETRY_UNKNOWN_MS 1000u

enum name_state { NAME_IDLE, NAME_BUSY, NAME_ORPHAN };

struct name {
	struct list link;
	char *host;
	uint16_t port;
	uint32_t interval_ms, index;
	void *owner;
	uint64_t due;
	enum name_state state;
	bool asked; /* at least once */
	bool known, failing;
};

struct resolver {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct list names;
	struct resolver_calls calls;
	unsigned refs;      /* threads and the owner */
	unsigned callbacks; /* running now */
	bool stopping;
};

/* ---- the system's lookup ---- */

static int lookup_family(const char *host, const char *port, int flags, struct addrinfo **out)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV };

	return getaddrinfo(host, port, &hints, out);
}

int resolver_lookup_system(const char *host, uint16_t port, struct sock_addr *out, uint32_t cap, char *err,
			   size_t errlen)
{
	struct addrinfo *list = NULL;
	char service[8];
	uint32_t n = 0;
	int e;

	snprintf(service, sizeof(service), "%u", port);
	/* Only families this host has; but a host with nothing but loopback has none by that measure. */
	e = lookup_family(host, service, AI_ADDRCONFIG, &list);
	if (e != 0 && e != EAI_AGAIN)
		e = lookup_family(host, service, 0, &list);
	if (e != 0) {
		snprintf(err, errlen, "%s", e == EAI_SYSTEM ? strerror(errno) : gai_strerror(e));
		return -ENOENT;
	}
	for (const struct addrinfo *a = list; a && n < cap; a = a->ai_next) {
		if (a->ai_family != AF_INET && a->ai_family != AF_INET6)
			continue;
		memset(&out[n], 0, sizeof(out[n]));
		memcpy(&out[n].ss, a->ai_addr, a->ai_addrlen);
		out[n++].len = a->ai_addrlen;
	}
	freeaddrinfo(list);
	if (n == 0)
		snprintf(err, errlen, "no IPv4 or IPv6 address");
	return n ? (int)n : -ENOENT;
}

/* ---- names ---- */

static int address_compare(const void *a, const void *b)
{
	const struct sock_addr *x = a, *y = b;

	if (x->sa.sa_family != y->sa.sa_family)
		return x->sa.sa_family < y->sa.sa_family ? -1 : 1;
	if (x->sa.sa_family == AF_INET)
		return memcmp(&x->in.sin_addr, &y->in.sin_addr, sizeof(x->in.sin_addr));
	return memcmp(&x->in6.sin6_addr, &y->in6.sin6_addr, sizeof(x->in6.sin6_addr));
}

/* Name servers rotate their answers; sorted, an unchanged answer looks unchanged. */
static uint32_t addresses_sort(struct sock_addr *a, uint32_t n)
{
	uint32_t kept = 0;

	qsort(a, n, sizeof(*a), address_compare);
	for (uint32_t i = 0; i < n; i++)
		if (kept == 0 || address_compare(&a[kept - 1], &a[i]) != 0)
			a[kept++] = a[i];
	return kept;
}

static void name_free(struct name *n)
{
	list_unlink(&n->link);
	free(n->host);
	free(n);
}

static struct name *name_new(const struct resolver_name *from, uint64_t now)
{
	struct name *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	list_init(&n->link);
	n->host = str_dup(str_from(from->host));
	if (!n->host) {
		free(n);
		return NULL;
	}
	n->port = from->port;
	n->interval_ms = from->interval_ms;
	n->index = from->index;
	n->owner = from->owner;
	n->due = now;
	n->asked = n->known = from->known;
	return n;
}

static void names_free(struct list *names)
{
	struct list *it, *tmp;

	list_for_each_safe(it, tmp, names) name_free(list_entry(it, struct name, link));
}

/* Empties r->names; owners go into the array (room for all). Callbacks must not run under the lock, so they come later.
 */
static size_t names_take_owners(struct resolver *r, void **owners)
{
	struct list *it, *tmp;
	size_t n = 0;

	list_for_each_safe(it, tmp, &r->names)
	{
		struct name *name = list_entry(it, struct name, link);

		owners[n++] = name->owner;
		if (name->state == NAME_BUSY) {
			name->state = NAME_ORPHAN;
			list_unlink(&name->link);
		} else {
			name_free(name);
		}
	}
	return n;
}

static size_t names_count(const struct resolver *r)
{
	size_t n = 0;

	for (const struct list *it = r->names.next; it != &r->names; it = it->next)
		n++;
	return n;
}

/* ---- threads ---- */

static void resolver_unref_and_unlock(struct resolver *r)
{
	bool last = --r->refs == 0;

	pthread_mutex_unlock(&r->lock);
	if (!last)
		return;
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

static struct name *next_due(struct resolver *r)
{
	struct name *best = NULL;

	for (struct list *it = r->names.next; it != &r->names; it = it->next) {
		struct name *n = list_entry(it, struct name, link);

		if (n->state == NAME_IDLE && (!best || n->due < best->due))
			best = n;
	}
	return best;
}

static void wait_until(struct resolver *r, uint64_t ns)
{
	const struct timespec ts = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };

	pthread_cond_timedwait(&r->changed, &r->lock, &ts);
}

static void name_failed(struct name *n, const char *err)
{
	char quoted[256], host[300];

	if (!n->failing)
		log_warn("resolve_failed", "name=%s reason=%s", log_quote(host, sizeof(host), str_from(n->host)),
			 log_quote(quoted, sizeof(quoted), str_from(err)));
	n->failing = true;
	n->due = now_ns() + MIN_OF(n->interval_ms, n->known ? RETRY_MS : RETRY_UNKNOWN_MS) * NS_PER_MS;
}

/* One lookup; called and returns with the lock, which is open in between. */
static void resolve(struct resolver *r, struct name *n)
{
	struct sock_addr found[RESOLVER_ADDRESSES_MAX];
	char err[160] = "no address", host[300];
	int count;

	n->state = NAME_BUSY;
	pthread_mutex_unlock(&r->lock);
	count = r->calls.lookup(n->host, n->port, found, RESOLVER_ADDRESSES_MAX, err, sizeof(err));
	if (count > 0)
		count = (int)addresses_sort(found, (uint32_t)count);
	pthread_mutex_lock(&r->lock);
	if (n->state == NAME_ORPHAN) {
		name_free(n);
		return;
	}
	if (count > 0) {
		/* The owner can not go while callbacks are counted: resolver_set and _stop wait for them. */
		r->callbacks++;
		pthread_mutex_unlock(&r->lock);
		r->calls.found(n->owner, n->index, found, (uint32_t)count);
		pthread_mutex_lock(&r->lock);
		r->callbacks--;
		if (n->failing)
			log_info("resolve_works", "name=%s", log_quote(host, sizeof(host), str_from(n->host)));
		n->failing = false;
		n->known = true;
		n->due = now_ns() + n->interval_ms * NS_PER_MS;
	} else {
		name_failed(n, count < 0 && count != -ENOENT ? strerror(-count) : err);
	}
	n->asked = true;
	n->state = NAME_IDLE;
	pthread_cond_broadcast(&r->changed);
}

static void *resolver_thread(void *arg)
{
	struct resolver *r = arg;

	pthread_mutex_lock(&r->lock);
	while (!r->stopping) {
		struct name *n = next_due(r);

		if (!n)
			pthread_cond_wait(&r->changed, &r->lock);
		else if (n->due > now_ns())
			wait_until(r, n->due);
		else
			resolve(r, n);
	}
	pthread_cond_broadcast(&r->changed);
	resolver_unref_and_unlock(r);
	return NULL;
}

/* Signals are for the main thread. */
static int thread_create_quiet(struct resolver *r)
{
	sigset_t all, old;
	pthread_t t;
	int e;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&t, NULL, resolver_thread, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (e == 0)
		pthread_detach(t);
	return -e;
}

int resolver_start(struct resolver **out, const struct resolver_calls *calls, unsigned threads)
{
	struct resolver *r = calloc(1, sizeof(*r));
	pthread_condattr_t attr;
	int e = 0;

	if (!r)
		return -ENOMEM;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&r->lock, NULL);
	list_init(&r->names);
	r->calls = *calls;
	r->refs = 1;
	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < MAX_OF(threads, 1u); i++) {
		e = thread_create_quiet(r);
		if (e < 0)
			break;
		r->refs++;
	}
	/* One thread is enough to go on with. */
	if (r->refs == 1) {
		resolver_unref_and_unlock(r);
		return e;
	}
	pthread_mutex_unlock(&r->lock);
	*out = r;
	return 0;
}

static void drop_owners(const struct resolver_calls *calls, void **owners, size_t n)
{
	for (size_t i = 0; i < n; i++)
		calls->dropped(owners[i]);
	free(owners);
}

int resolver_set(struct resolver *r, const struct resolver_name *names, size_t n)
{
	struct resolver_calls calls = r->calls;
	struct list fresh, *it, *tmp;
	uint64_t now = now_ns();
	void **owners = NULL;
	size_t old = 0;

	list_init(&fresh);
	for (size_t i = 0; i < n; i++) {
		struct name *name = name_new(&names[i], now);

		if (!name)
			goto fail;
		list_push_back(&fresh, &name->link);
	}
	pthread_mutex_lock(&r->lock);
	while (r->callbacks > 0)
		pthread_cond_wait(&r->changed, &r->lock);
	owners = calloc(names_count(r) + 1, sizeof(*owners));
	if (!owners) {
		pthread_mutex_unlock(&r->lock);
		goto fail;
	}
	old = names_take_owners(r, owners);
	list_for_each_safe(it, tmp, &fresh)
	{
		list_unlink(it);
		list_push_back(&r->names, it);
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	drop_owners(&calls, owners, old);
	return 0;
fail:
	names_free(&fresh);
	for (size_t i = 0; i < n; i++)
		calls.dropped(names[i].owner);
	return -ENOMEM;
}

static bool all_asked(const struct resolver *r)
{
	for (const struct list *it = r->names.next; it != &r->names; it = it->next)
		if (!list_entry(it, struct name, link)->asked)
			return false;
	return true;
}

bool resolver_wait_first(struct resolver *r, unsigned timeout_ms)
{
	uint64_t until = now_ns() + timeout_ms * NS_PER_MS;
	bool all;

	pthread_mutex_lock(&r->lock);
	while (!(all = all_asked(r)) && now_ns() < until)
		wait_until(r, until);
	pthread_mutex_unlock(&r->lock);
	return all;
}

void resolver_stop(struct resolver **rp)
{
	struct resolver *r = *rp;
	struct list *it, *tmp;

	*rp = NULL;
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stopping = true;
	pthread_cond_broadcast(&r->changed);
	while (r->callbacks > 0)
		pthread_cond_wait(&r->changed, &r->lock);
	list_for_each_safe(it, tmp, &r->names)
	{
		struct name *n = list_entry(it, struct name, link);

		r->calls.dropped(n->owner);
		if (n->state == NAME_BUSY) {
			n->state = NAME_ORPHAN;
			list_unlink(&n->link);
		} else {
			name_free(n);
		}
	}
	resolver_unref_and_unlock(r);
}
