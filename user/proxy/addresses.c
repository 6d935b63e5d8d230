/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/addresses.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "io/sock.h"

#define BACKLOG 4096
/* Of a process that was killed a moment ago. */
#define DEATH_LOOKS 20u
#define DEATH_LOOK_US 20000u

static int no_memory(char *err, size_t errlen)
{
	snprintf(err, errlen, "out of memory");
	return -ENOMEM;
}

static void address_free(struct listener_address *a)
{
	if (!a)
		return;
	list_unlink(&a->link);
	listener_address_close(a);
	free(a->fd);
	free(a);
}

static const char *listen_hint(int err)
{
	switch (err) {
	case EADDRINUSE:
		return "another process listens there; stop it or choose another port";
	case EACCES:
	case EPERM:
		return "ports below 1024 need root or CAP_NET_BIND_SERVICE";
	case EADDRNOTAVAIL:
		return "this host does not have that address";
	case EMFILE:
		return "raise the limit on open files";
	default:
		return "see errno";
	}
}

static int cannot_listen(int r, const char *text, char *err, size_t errlen)
{
	snprintf(err, errlen, "cannot listen on %s: %s; %s", text, strerror(-r), listen_hint(-r));
	return r;
}

static int address_add(struct listener_address *a, int fd)
{
	int *more = realloc(a->fd, (a->n + 1) * sizeof(*more));

	if (!more) {
		close(fd);
		return -ENOMEM;
	}
	a->fd = more;
	a->fd[a->n++] = fd;
	return 0;
}

/* Takes what was handed to us for this address. 0 or -ENOMEM. */
static int address_adopt(struct listener_address *a, const struct sock_addr *want, struct handed *handed)
{
	int fd, r = 0, one = 1;
	unsigned flags = 0;

	while (r == 0 && (fd = handed_take_listener(handed, want, a->configured, &flags)) >= 0) {
		if (a->is_tcp) /* what is accepted inherits it */
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		r = address_add(a, fd);
		a->owns_path = !a->is_tcp && (flags & HANDED_OWNS_PATH);
	}
	return r;
}

static int address_new(struct listener_address **out, const struct conf_listener *c, unsigned workers,
		       struct handed *handed, char *err, size_t errlen)
{
	struct listener_address *a = calloc(1, sizeof(*a));
	struct sock_addr want = { .len = c->address.len };
	unsigned adopted;

	if (!a)
		return no_memory(err, errlen);
	list_init(&a->link);
	memcpy(&want.ss, &c->address.ss, sizeof(want.ss));
	a->is_tcp = sock_is_tcp(&want);
	snprintf(a->configured, sizeof(a->configured), "%s", c->address.text);
	if (address_adopt(a, &want, handed) < 0) {
		address_free(a);
		return no_memory(err, errlen);
	}
	adopted = a->n;
	if (adopted)
		sock_local(a->fd[0], &want);
	while (a->n < (a->is_tcp ? workers : 1)) {
		/*
		 * Next to sockets that another process accepts on, a further one must not get
		 * connections before we accept: if we do not come up they would be lost.
		 */
		int fd = sock_listen(&want, adopted ? -1 : BACKLOG, a->is_tcp);

		if (fd < 0 && adopted) {
			/* Opened by another user, or without SO_REUSEPORT: the workers share what there is. */
			log_info("listener_shared", "listener=%s sockets=%u workers=%u reason=\"%s\"", a->configured, a->n,
				 workers, strerror(-fd));
			break;
		}
		if (fd < 0) {
			address_free(a);
			return cannot_listen(fd, c->address.text, err, errlen);
		}
		a->owns_path = !a->is_tcp;
		if (a->n == 0)
			sock_local(fd, &want); /* a port chosen by the kernel is the same for all */
		if (address_add(a, fd) < 0) {
			address_free(a);
			return no_memory(err, errlen);
		}
	}
	sock_text(a->text, &want, true);
	a->listening = adopted ? adopted : a->n;
	a->places = MAX_OF(a->n, workers);
	atomic_store(&a->accepting, a->places);
	atomic_store(&a->refs, a->places);
	*out = a;
	return 0;
}

/* One of ours, perhaps for all addresses of the host, or on its way out, has the port. */
static bool port_is_ours(struct list *table, uint16_t port)
{
	struct list *it, *next;

	list_for_each_safe(it, next, table) {
		const struct listener_address *a = list_entry(it, struct listener_address, link);
		struct sock_addr bound;

		if (a->is_tcp && sock_parse(&bound, a->text) == 0 && sock_port(&bound) == port)
			return true;
	}
	return false;
}

/* handed NULL: a reload, which waits for nobody. Who was handed sockets shares addresses with who handed them. */
static bool address_is_taken(struct list *table, const struct conf_addr *c, const struct handed *handed)
{
	struct sock_addr want = { .len = c->len };
	bool taken;

	memcpy(&want.ss, &c->ss, sizeof(want.ss));
	if (!sock_is_tcp(&want) || (handed && handed->n) || port_is_ours(table, sock_port(&want)))
		return false;
	taken = sock_is_listened_on(&want);
	for (unsigned i = 0; taken && handed && i < DEATH_LOOKS; i++) {
		usleep(DEATH_LOOK_US);
		taken = sock_is_listened_on(&want);
	}
	return taken;
}

/* The one of the table that serves `configured`; NULL: none. */
static struct listener_address *address_find(struct list *table, const char *configured)
{
	struct list *it, *next;

	list_for_each_safe(it, next, table) {
		struct listener_address *a = list_entry(it, struct listener_address, link);

		if (!atomic_load(&a->retired) && strcmp(a->configured, configured) == 0)
			return a;
	}
	return NULL;
}

void addresses_forget_fresh(struct list *table)
{
	struct list *it, *next;

	list_for_each_safe(it, next, table) {
		struct listener_address *a = list_entry(it, struct listener_address, link);

		if (a->fresh)
			address_free(a);
	}
}

int addresses_for(struct list *table, const struct conf *conf, unsigned workers, struct handed *handed,
		  struct listener_address ***out, char *err, size_t errlen)
{
	struct listener_address **list = calloc(conf->listener_count + 1, sizeof(*list));

	if (!list)
		return no_memory(err, errlen);
	for (uint32_t i = 0; i < conf->listener_count; i++) {
		int r;

		list[i] = address_find(table, conf->listeners[i].address.text);
		if (list[i])
			continue;
		r = address_is_taken(table, &conf->listeners[i].address, handed)
			    ? cannot_listen(-EADDRINUSE, conf->listeners[i].address.text, err, errlen)
			    : address_new(&list[i], &conf->listeners[i], workers, handed, err, errlen);
		if (r < 0) {
			addresses_forget_fresh(table);
			free(list);
			return r;
		}
		list_push_back(table, &list[i]->link);
		list[i]->fresh = true;
	}
	*out = list;
	return 0;
}

void addresses_listen(struct list *table)
{
	struct list *it, *next;

	list_for_each_safe(it, next, table) {
		struct listener_address *a = list_entry(it, struct listener_address, link);

		for (; a->listening < a->n; a->listening++)
			if (listen(a->fd[a->listening], BACKLOG) < 0)
				log_error("listen_failed", "listener=%s errno=%d reason=\"%s\"", a->text, errno,
					  strerror(errno));
	}
}

void addresses_settle(struct list *table, struct listener_address **list, uint32_t n)
{
	struct list *it, *next;

	list_for_each_safe(it, next, table) {
		struct listener_address *a = list_entry(it, struct listener_address, link);
		bool named = false;

		a->fresh = false;
		for (uint32_t i = 0; i < n; i++)
			named |= list[i] == a;
		if (atomic_load(&a->retired) && atomic_load(&a->refs) == 0)
			address_free(a);
		else if (!named)
			atomic_store(&a->retired, true);
	}
}

void addresses_free(struct list *table)
{
	struct list *it, *next;

	list_for_each_safe(it, next, table)
		address_free(list_entry(it, struct listener_address, link));
}
