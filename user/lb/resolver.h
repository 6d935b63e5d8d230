/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Resolves names again and again on threads of its own, so that a slow name
 * server never holds up anything else: a few threads, each asking for one name
 * at a time, earliest due first.
 *
 * A lookup can hang for long and can not be interrupted. So the threads are
 * detached and resolver_stop does not wait for a lookup, only for callbacks:
 * what a lookup brings after that is thrown away.
 */
#pragma once
#include "io/sock.h"

#define RESOLVER_ADDRESSES_MAX 64

/*
 * Addresses of host with that port into out[0..cap); their number, or -errno,
 * or -ENOENT with a text in err. May block. From several threads at once.
 */
typedef int (*resolver_lookup_fn)(const char *host, uint16_t port, struct sock_addr *out, uint32_t cap, char *err,
				  size_t errlen);
/* getaddrinfo(3). */
int resolver_lookup_system(const char *host, uint16_t port, struct sock_addr *out, uint32_t cap, char *err,
			   size_t errlen);

struct resolver;

struct resolver_name {
	const char *host; /* copied */
	uint16_t port;
	uint32_t interval_ms;
	void *owner; /* given to the callbacks */
	uint32_t index;
	bool known; /* there are addresses already: nobody need wait for this one */
};

struct resolver_calls {
	resolver_lookup_fn lookup;
	/* A lookup worked: n >= 1 addresses, sorted, without doubles. On a resolver thread. */
	void (*found)(void *owner, uint32_t index, const struct sock_addr *a, uint32_t n);
	/* The resolver is done with a name given to it: exactly once for each. */
	void (*dropped)(void *owner);
};

/* Starts threads (at least one). 0 or -errno. */
int resolver_start(struct resolver **out, const struct resolver_calls *calls, unsigned threads);
/* Replaces the names; those before are dropped. On failure (-ENOMEM) all of the new ones are dropped and the old stay.
 */
int resolver_set(struct resolver *r, const struct resolver_name *names, size_t n);
/* Waits until each name was asked for once, at most that long. True when so. */
bool resolver_wait_first(struct resolver *r, unsigned timeout_ms);
/* Drops all names; no callback after this returns. *r becomes NULL. */
void resolver_stop(struct resolver **r);
