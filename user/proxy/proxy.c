/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy: addresses, sites and workers, seen from the main thread. Orders
 * reach a worker as posted messages; nothing of a worker's is touched from
 * here while its thread runs.
 */
#include "proxy/proxy.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "io/sock.h"
#include "proxy/access_log.h"
#include "proxy/addresses.h"
#include "proxy/listener.h"
#include "proxy/site.h"
#include "proxy/tickets.h"
#include "proxy/worker_inner.h"

struct proxy {
	struct kern *kern;
	struct kern_listen *listen;
	struct lb *lb;
	const struct conf *conf; /* one reference */
	struct list addresses;	 /* struct listener_address */
	struct listener_address **current; /* conf->listener_count */
	struct worker *workers;
	unsigned n;
	bool draining;
	struct proxy_change *first; /* until proxy_accept */
	struct descriptors fds; /* for connections */
	int drained_fd;
	atomic_uint drained; /* workers */
	atomic_int access_log;
	struct tickets tickets;
};

enum order { ORDER_APPLY, ORDER_DRAIN, ORDER_END };

struct message {
	struct task task;
	struct worker *worker;
	enum order order;
	bool close_idle;
	struct worker_site *site;
	struct listener_address **addresses;
};

static int fail(char *err, size_t errlen, int r, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static int fail(char *err, size_t errlen, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err, errlen, fmt, ap);
	va_end(ap);
	return r;
}

static void run_message(struct task *t)
{
	struct message *m = container_of(t, struct message, task);
	struct worker *w = m->worker;

	switch (m->order) {
	case ORDER_APPLY:
		worker_apply(w, m->site, m->addresses);
		break;
	case ORDER_DRAIN:
		worker_drain(w, m->close_idle);
		break;
	case ORDER_END:
		worker_end(w);
		break;
	}
	free(m->addresses);
	free(m);
}

static struct message *message_new(struct worker *w, enum order order)
{
	struct message *m = calloc(1, sizeof(*m));

	if (m) {
		m->task.run = run_message;
		m->worker = w;
		m->order = order;
	}
	return m;
}

/* A stopping process without memory for the order to stop has nothing better to do than to end. */
static void order_all(struct proxy *p, enum order order, bool close_idle)
{
	for (unsigned i = 0; p->workers && i < p->n; i++) {
		struct message *m;

		if (!p->workers[i].running)
			continue;
		m = message_new(&p->workers[i], order);
		if (!m) {
			log_error("out_of_memory", "what=\"order to a worker\" action=\"the process ends\"");
			abort();
		}
		m->close_idle = close_idle;
		loop_post(p->workers[i].loop, &m->task);
	}
}

/* ---- life ---- */

static unsigned listener_port(const struct listener_address *a)
{
	struct sock_addr bound;

	return sock_local(a->fd[0], &bound) == 0 ? sock_port(&bound) : 0;
}

/* The access log that conf names, or what stands for none. A descriptor or -errno. */
static int open_access_log(const struct conf *conf, char *err, size_t errlen)
{
	const char *path = conf->access_log.path;
	int fd = path ? access_log_open(path) : access_log_none();

	return fd < 0 ? fail(err, errlen, fd, "cannot open access log %s: %s", path ? path : "", strerror(-fd)) : fd;
}

static bool same_access_log(const struct conf *a, const struct conf *b)
{
	return a->access_log.path && b->access_log.path && strcmp(a->access_log.path, b->access_log.path) == 0;
}

/* Under the number that the workers know, so that none of them writes to a closed one. */
static void use_access_log(struct proxy *p, int fd)
{
	int cur = atomic_load(&p->access_log);

	if (cur < 0) {
		atomic_store(&p->access_log, fd);
		return;
	}
	dup3(fd, cur, O_CLOEXEC);
	close(fd);
}

int proxy_new(struct proxy **out, const struct conf *conf, struct kern *k, struct handed *handed, char *err,
	      size_t errlen)
{
	struct proxy *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return fail(err, errlen, -ENOMEM, "out of memory");
	p->kern = k;
	p->conf = conf_ref(conf);
	p->n = conf->threads;
	p->drained_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	p->access_log = -1;
	list_init(&p->addresses);
	r = tickets_init(&p->tickets, handed);
	if (r < 0) {
		fail(err, errlen, r, "no random numbers for session ticket keys");
		proxy_stop(&p);
		return r;
	}
	r = kern_listen_open(&p->listen, k);
	if (r < 0)
		fail(err, errlen, r, "out of memory");
	else
		r = open_access_log(conf, err, errlen);
	if (r >= 0) {
		use_access_log(p, r);
		r = addresses_for(&p->addresses, conf, p->n, handed, &p->current, err, errlen);
	}
	if (r < 0) {
		proxy_stop(&p);
		return r;
	}
	*out = p;
	return 0;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	char name[16];
	int r;

	snprintf(name, sizeof(name), "worker-%u", w->index);
	pthread_setname_np(pthread_self(), name);
	pipe_pool_init(&w->pipes, w->proxy->n); /* after privileges were given up: they bound it */
	r = loop_run(w->loop);
	if (r < 0)
		log_error("worker_failed", "worker=%u errno=%d reason=\"%s\"", w->index, -r, strerror(-r));
	return NULL;
}

struct proxy_change {
	struct proxy *proxy;
	const struct conf *conf; /* one reference */
	struct listener_address **addresses;
	int access_log;
	bool applied;		 /* lb has gone over already */
	struct message *message[]; /* one per worker */
};

static void change_free(struct proxy_change *c)
{
	for (unsigned i = 0; i < c->proxy->n; i++) {
		if (!c->message[i])
			continue;
		worker_site_unref(c->message[i]->site);
		free(c->message[i]->addresses);
		free(c->message[i]);
	}
	if (c->access_log >= 0)
		close(c->access_log);
	free(c->addresses);
	conf_unref(c->conf);
	free(c);
}

static struct proxy_change *change_new(struct proxy *p, const struct conf *conf)
{
	struct proxy_change *c = calloc(1, sizeof(*c) + p->n * sizeof(c->message[0]));

	if (!c)
		return NULL;
	c->proxy = p;
	c->conf = conf_ref(conf);
	c->access_log = -1;
	return c;
}

/* The orders for the workers, with everything they will need. */
static int change_address_workers(struct proxy_change *c, struct site *site)
{
	uint32_t n = site->conf->listener_count;

	for (unsigned i = 0; i < c->proxy->n; i++) {
		struct message *m = c->message[i] = message_new(&c->proxy->workers[i], ORDER_APPLY);
		int r = m ? worker_site_new(&m->site, site, i) : -ENOMEM;

		if (r == 0)
			m->addresses = calloc(n + 1, sizeof(*m->addresses));
		if (r < 0 || !m->addresses)
			return r < 0 ? r : -ENOMEM;
		memcpy(m->addresses, c->addresses, n * sizeof(*m->addresses));
	}
	return 0;
}

/* Frees the change; the messages are the workers' then. */
static void change_send(struct proxy_change *c)
{
	for (unsigned i = 0; i < c->proxy->n; i++) {
		struct message *m = c->message[i];

		c->message[i] = NULL;
		loop_post(m->worker->loop, &m->task);
	}
	change_free(c);
}

static struct listener_address **copy_addresses(struct listener_address **list, uint32_t n)
{
	struct listener_address **copy = calloc(n + 1, sizeof(*copy));

	if (copy)
		memcpy(copy, list, n * sizeof(*copy));
	return copy;
}

int proxy_start(struct proxy *p, struct lb *lb, char *err, size_t errlen)
{
	struct site *site;
	sigset_t all, before;
	int r;

	p->lb = lb;
	p->workers = calloc(p->n, sizeof(*p->workers));
	p->first = change_new(p, p->conf);
	if (!p->workers || !p->first)
		return fail(err, errlen, -ENOMEM, "out of memory");
	p->first->addresses = copy_addresses(p->current, p->conf->listener_count);
	r = site_new(&site, p->conf, lb, p->tickets.keys, err, errlen);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < p->n && r == 0; i++)
		r = worker_init(&p->workers[i], p, i, p->kern);
	if (r == 0)
		r = p->first->addresses ? change_address_workers(p->first, site) : -ENOMEM;
	site_unref(site);
	if (r < 0)
		return fail(err, errlen, r, "cannot prepare the workers: %s", strerror(-r));
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (unsigned i = 0; i < p->n && r == 0; i++) {
		r = -pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]);
		if (r == 0)
			p->workers[i].running = true;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r < 0)
		return fail(err, errlen, r, "cannot start a worker thread: %s", strerror(-r));
	return 0;
}

struct descriptors *proxy_descriptors(struct proxy *p)
{
	return &p->fds;
}

struct kern_listen *proxy_listen(struct proxy *p)
{
	return p->listen;
}

/* New connections go to the worker with the fewest; where that can not be had, the kernel chooses by hash. */
static void spread_connections(struct proxy *p)
{
	for (uint32_t i = 0; i < p->conf->listener_count; i++) {
		struct listener_address *a = p->current[i];
		int r;

		if (a->spread || !a->is_tcp)
			continue;
		a->spread = true;
		r = kern_listen_add(p->listen, a->fd, a->n);
		if (r < 0)
			log_info("spread", "listener=%s by=hash reason=\"%s\"", a->text,
				 kern_listen_reason(p->listen)[0] ? kern_listen_reason(p->listen) : strerror(-r));
		else
			log_debug("spread", "listener=%s by=load sockets=%u", a->text, a->n);
	}
}

#define DESCRIPTORS_FEW 256

static void share_descriptors(struct proxy *p)
{
	long n = descriptors_init(&p->fds, p->n);

	if (n < DESCRIPTORS_FEW)
		log_warn("descriptors", "for_connections=%ld clients_at_once=%ld reason=\"RLIMIT_NOFILE is low; further clients wait\"",
			 n, n / (long)DESCRIPTORS_SESSION);
}

void proxy_accept(struct proxy *p)
{
	struct proxy_change *first = p->first;

	p->first = NULL;
	share_descriptors(p);
	addresses_listen(&p->addresses);
	change_send(first);
	spread_connections(p);
	addresses_settle(&p->addresses, p->current, p->conf->listener_count);
	for (uint32_t i = 0; i < p->conf->listener_count; i++)
		log_info("listening", "listener=%s port=%u workers=%u tls=%s", p->current[i]->text,
			 listener_port(p->current[i]), p->n, p->conf->listeners[i].tls.enabled ? "yes" : "no");
}

static int change_prepare(struct proxy_change *c, char *err, size_t errlen)
{
	struct proxy *p = c->proxy;
	struct site *site;
	int r;

	r = addresses_for(&p->addresses, c->conf, p->n, NULL, &c->addresses, err, errlen);
	if (r < 0)
		return r;
	r = c->access_log = open_access_log(c->conf, err, errlen);
	if (r < 0 && !same_access_log(p->conf, c->conf))
		return r;
	if (r < 0) /* rotated away, where this user may not make another one: no reason to refuse the rest */
		log_warn("reopen_failed", "reason=\"%s\" action=\"the open file is written to\"", err);
	r = lb_apply(p->lb, c->conf);
	if (r < 0)
		return fail(err, errlen, r, "upstreams: %s", strerror(-r));
	c->applied = true;
	r = site_new(&site, c->conf, p->lb, p->tickets.keys, err, errlen);
	if (r < 0)
		return r;
	r = change_address_workers(c, site);
	site_unref(site);
	return r < 0 ? fail(err, errlen, r, "%s", strerror(-r)) : 0;
}

int proxy_reload_prepare(struct proxy_change **out, struct proxy *p, const struct conf *conf, char *err, size_t errlen)
{
	struct proxy_change *c = change_new(p, conf);
	int r;

	*out = NULL;
	if (!c)
		return fail(err, errlen, -ENOMEM, "out of memory");
	r = change_prepare(c, err, errlen);
	if (r < 0) {
		proxy_reload_abort(&c);
		return r;
	}
	*out = c;
	return 0;
}

void proxy_reload_abort(struct proxy_change **change)
{
	struct proxy_change *c = *change;

	*change = NULL;
	if (!c)
		return;
	if (c->applied && lb_apply(c->proxy->lb, c->proxy->conf) < 0)
		log_error("reload_failed", "reason=\"the old upstreams could not be restored\"");
	addresses_forget_fresh(&c->proxy->addresses);
	change_free(c);
}

void proxy_reload_commit(struct proxy_change **change)
{
	struct proxy_change *c = *change;
	struct proxy *p = c->proxy;

	*change = NULL;
	if (c->conf->threads != p->n)
		log_warn("reload", "threads=%u reason=\"the number of threads changes with a restart or an upgrade\"", p->n);
	if (c->access_log >= 0)
		use_access_log(p, c->access_log);
	c->access_log = -1;
	free(p->current);
	p->current = c->addresses;
	c->addresses = NULL;
	conf_unref(p->conf);
	p->conf = conf_ref(c->conf);
	addresses_settle(&p->addresses, p->current, p->conf->listener_count);
	change_send(c);
	spread_connections(p);
}

int proxy_collect(const struct proxy *p, struct handed *set)
{
	for (uint32_t i = 0; i < p->conf->listener_count; i++) {
		const struct listener_address *a = p->current[i];

		for (unsigned k = 0; k < a->n; k++)
			if (handed_add(set, a->fd[k], HANDED_LISTENER, a->owns_path ? HANDED_OWNS_PATH : 0, a->configured) < 0)
				return -ENOMEM;
	}
	return tickets_collect(&p->tickets, set);
}

void proxy_disown_paths(struct proxy *p)
{
	for (uint32_t i = 0; i < p->conf->listener_count; i++)
		p->current[i]->owns_path = false;
}

void proxy_drain(struct proxy *p, bool close_idle)
{
	struct list *it, *next;

	p->draining = true;
	list_for_each_safe(it, next, &p->addresses)
		atomic_store(&list_entry(it, struct listener_address, link)->retired, true);
	order_all(p, ORDER_DRAIN, close_idle);
}

void proxy_worker_drained(struct proxy *p)
{
	uint64_t one = 1;

	if (atomic_fetch_add(&p->drained, 1) + 1 == p->n && write(p->drained_fd, &one, sizeof(one)) < 0)
		log_error("bug", "reason=\"eventfd refused a count\"");
}

int proxy_drained_fd(const struct proxy *p)
{
	return p->drained_fd;
}

void proxy_stop(struct proxy **pp)
{
	struct proxy *p = *pp;

	*pp = NULL;
	if (!p)
		return;
	if (p->first)
		change_free(p->first);
	order_all(p, ORDER_END, false);
	for (unsigned i = 0; p->workers && i < p->n; i++)
		if (p->workers[i].running)
			pthread_join(p->workers[i].thread, NULL);
	for (unsigned i = 0; p->workers && i < p->n; i++)
		worker_deinit(&p->workers[i]);
	free(p->workers);
	addresses_free(&p->addresses);
	kern_listen_close(p->listen);
	free(p->current);
	if (p->access_log >= 0)
		close(p->access_log);
	close(p->drained_fd);
	tickets_deinit(&p->tickets);
	conf_unref(p->conf);
	free(p);
}

int proxy_reopen_logs(struct proxy *p)
{
	char err[256] = "";
	int r = open_access_log(p->conf, err, sizeof(err));

	if (r < 0) {
		log_error("reopen_failed", "reason=\"%s\" action=\"the open file is written to\"", err);
		return r;
	}
	use_access_log(p, r);
	return 0;
}

atomic_int *proxy_access_log_fd(struct proxy *p)
{
	return &p->access_log;
}

unsigned proxy_workers(const struct proxy *p)
{
	return p->n;
}

unsigned proxy_sessions(const struct proxy *p)
{
	unsigned n = 0;

	for (unsigned i = 0; p->workers && i < p->n; i++)
		n += __atomic_load_n(&p->workers[i].session_count, __ATOMIC_RELAXED);
	return n;
}

unsigned proxy_idle_upstreams(const struct proxy *p)
{
	unsigned n = 0;

	for (unsigned i = 0; p->workers && i < p->n; i++)
		n += __atomic_load_n(&p->workers[i].pool_idle, __ATOMIC_RELAXED);
	return n;
}

const struct conf *proxy_conf(const struct proxy *p)
{
	return p->conf;
}

struct kern *proxy_kern(const struct proxy *p)
{
	return p->kern;
}

struct lb *proxy_lb(const struct proxy *p)
{
	return p->lb;
}

bool proxy_draining(const struct proxy *p)
{
	return p->draining;
}

const char *proxy_listener_text(const struct proxy *p, unsigned i)
{
	return p->current[i]->text;
}

void proxy_restore_accepted(struct proxy *p, const char *listener, uint64_t n)
{
	for (uint32_t i = 0; i < p->conf->listener_count; i++)
		if (strcmp(p->current[i]->text, listener) == 0)
			atomic_fetch_add(&p->current[i]->accepted, n);
}

void proxy_listener_counts(const struct proxy *p, unsigned i, unsigned *open, uint64_t *accepted)
{
	*open = atomic_load(&p->current[i]->open);
	*accepted = atomic_load(&p->current[i]->accepted);
}
