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
#include "proxy/listener.h"
#include "proxy/site.h"
#include "proxy/worker_inner.h"

#define BACKLOG 4096

struct proxy {
	struct kern *kern;
	struct lb *lb;
	const struct conf *conf; /* one reference */
	struct list addresses;	 /* struct listener_address */
	struct listener_address **current; /* conf->listener_count */
	struct worker *workers;
	unsigned n;
	bool started, draining;
	int drained_fd;
	atomic_uint drained; /* workers */
	atomic_int access_log;
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

static int post(struct worker *w, enum order order, struct message fill)
{
	struct message *m = malloc(sizeof(*m));

	if (!m)
		return -ENOMEM;
	*m = fill;
	m->task.run = run_message;
	m->worker = w;
	m->order = order;
	loop_post(w->loop, &m->task);
	return 0;
}

/* ---- addresses ---- */

static void address_free(struct listener_address *a)
{
	if (!a)
		return;
	list_unlink(&a->link);
	for (unsigned i = 0; i < a->n; i++)
		if (a->fd[i] >= 0)
			close(a->fd[i]);
	if (strncmp(a->text, "unix:", 5) == 0 && a->owns_path)
		unlink(a->text + 5);
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

static int address_new(struct listener_address **out, const struct conf_listener *c, unsigned workers, char *err,
		       size_t errlen)
{
	struct listener_address *a = calloc(1, sizeof(*a));
	struct sock_addr want = { .len = c->address.len };

	if (!a)
		return -ENOMEM;
	list_init(&a->link);
	memcpy(&want.ss, &c->address.ss, sizeof(want.ss));
	a->is_tcp = sock_is_tcp(&want);
	a->fd = calloc(workers, sizeof(*a->fd));
	if (!a->fd) {
		free(a);
		return -ENOMEM;
	}
	snprintf(a->configured, sizeof(a->configured), "%s", c->address.text);
	for (unsigned i = 0; i < (a->is_tcp ? workers : 1); i++) {
		int fd = sock_listen(&want, BACKLOG, a->is_tcp);

		if (fd < 0) {
			address_free(a);
			return fail(err, errlen, fd, "cannot listen on %s: %s; %s", c->address.text, strerror(-fd),
				    listen_hint(-fd));
		}
		a->fd[a->n++] = fd;
		if (i == 0) {
			sock_local(fd, &want); /* a port chosen by the kernel is the same for all */
			sock_text(a->text, &want, true);
			a->owns_path = !a->is_tcp;
		}
	}
	*out = a;
	return 0;
}

/* The addresses of conf, old ones kept. On failure nothing that was there is touched. */
static int addresses_for(struct proxy *p, const struct conf *conf, struct listener_address ***out, char *err,
			 size_t errlen)
{
	struct listener_address **list = calloc(conf->listener_count ? conf->listener_count : 1, sizeof(*list));
	struct list *it, *next;
	int r = 0;

	if (!list)
		return -ENOMEM;
	for (uint32_t i = 0; i < conf->listener_count && r == 0; i++) {
		list_for_each_safe(it, next, &p->addresses) {
			struct listener_address *a = list_entry(it, struct listener_address, link);
			if (strcmp(a->configured, conf->listeners[i].address.text) == 0)
				list[i] = a;
		}
		if (!list[i]) {
			r = address_new(&list[i], &conf->listeners[i], p->n, err, errlen);
			if (r == 0) {
				list_push_back(&p->addresses, &list[i]->link);
				list[i]->fresh = true;
			}
		}
	}
	list_for_each_safe(it, next, &p->addresses) {
		struct listener_address *a = list_entry(it, struct listener_address, link);
		if (r < 0 && a->fresh)
			address_free(a);
		else
			a->fresh = false;
	}
	if (r < 0)
		free(list);
	else
		*out = list;
	return r;
}

/* ---- life ---- */

static unsigned listener_port(const struct listener_address *a)
{
	struct sock_addr bound;

	return sock_local(a->fd[0], &bound) == 0 ? sock_port(&bound) : 0;
}

static int open_access_log(struct proxy *p, const struct conf *conf, char *err, size_t errlen)
{
	int fd, cur = atomic_load(&p->access_log);

	if (!conf->access_log.path)
		return 0;
	fd = access_log_open(conf->access_log.path);
	if (fd < 0)
		return fail(err, errlen, fd, "cannot open access log %s: %s", conf->access_log.path, strerror(-fd));
	if (cur < 0) {
		atomic_store(&p->access_log, fd);
		return 0;
	}
	dup3(fd, cur, O_CLOEXEC);
	close(fd);
	return 0;
}

int proxy_new(struct proxy **out, const struct conf *conf, struct kern *k, char *err, size_t errlen)
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
	r = open_access_log(p, conf, err, errlen);
	if (r == 0)
		r = addresses_for(p, conf, &p->current, err, errlen);
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
	r = loop_run(w->loop);
	if (r < 0)
		log_error("worker_failed", "worker=%u errno=%d reason=\"%s\"", w->index, -r, strerror(-r));
	return NULL;
}

static struct listener_address **copy_addresses(const struct proxy *p, struct listener_address **list, uint32_t n)
{
	struct listener_address **copy = calloc(n ? n : 1, sizeof(*copy));

	(void)p;
	if (copy && n)
		memcpy(copy, list, n * sizeof(*copy));
	return copy;
}

/* Everything the workers need is made first; only then any of them is told. */
static int switch_site(struct proxy *p, struct site *site, struct listener_address **addresses)
{
	struct message *m = calloc(p->n, sizeof(*m));
	int r = m ? 0 : -ENOMEM;

	for (unsigned i = 0; i < p->n && r == 0; i++) {
		r = worker_site_new(&m[i].site, site, i);
		m[i].addresses = copy_addresses(p, addresses, site->conf->listener_count);
		if (!m[i].addresses)
			r = -ENOMEM;
	}
	for (unsigned i = 0; m && i < p->n; i++) {
		if (r == 0 && post(&p->workers[i], ORDER_APPLY, m[i]) == 0)
			continue;
		worker_site_unref(m[i].site);
		free(m[i].addresses);
	}
	free(m);
	return r;
}

int proxy_start(struct proxy *p, struct lb *lb, char *err, size_t errlen)
{
	struct site *site;
	sigset_t all, before;
	int r;

	p->lb = lb;
	p->workers = calloc(p->n, sizeof(*p->workers));
	if (!p->workers)
		return fail(err, errlen, -ENOMEM, "out of memory");
	r = site_new(&site, p->conf, lb, err, errlen);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < p->n && r == 0; i++)
		r = worker_init(&p->workers[i], p, i, p->kern);
	if (r == 0)
		r = switch_site(p, site, p->current);
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
	p->started = true;
	for (uint32_t i = 0; i < p->conf->listener_count; i++)
		log_info("listening", "listener=%s port=%u workers=%u tls=%s", p->current[i]->text,
			 listener_port(p->current[i]), p->n, p->conf->listeners[i].tls.enabled ? "yes" : "no");
	return 0;
}

int proxy_reload(struct proxy *p, const struct conf *conf, char *err, size_t errlen)
{
	struct listener_address **addresses = NULL;
	struct list *it, *next;
	struct site *site;
	int r;

	if (conf->threads != p->n)
		log_warn("reload", "threads=%u reason=\"the number of threads changes with a restart or an upgrade\"", p->n);
	r = addresses_for(p, conf, &addresses, err, errlen);
	if (r < 0)
		return r;
	r = lb_apply(p->lb, conf);
	if (r < 0)
		goto undo;
	r = site_new(&site, conf, p->lb, err, errlen);
	if (r < 0) {
		lb_apply(p->lb, p->conf);
		goto undo;
	}
	r = switch_site(p, site, addresses);
	site_unref(site);
	if (r < 0) {
		lb_apply(p->lb, p->conf);
		fail(err, errlen, r, "out of memory");
		goto undo;
	}
	if (open_access_log(p, conf, err, errlen) < 0)
		log_warn("reload", "reason=\"%s\"", err);
	conf_unref(p->conf);
	p->conf = conf_ref(conf);
	free(p->current);
	p->current = addresses;
	return 0;
undo:
	/* What was opened for nothing is closed again; nobody has seen it. */
	list_for_each_safe(it, next, &p->addresses) {
		struct listener_address *a = list_entry(it, struct listener_address, link);
		bool old = false;

		for (uint32_t i = 0; i < p->conf->listener_count; i++)
			old |= p->current[i] == a;
		if (!old)
			address_free(a);
	}
	free(addresses);
	if (!err[0])
		fail(err, errlen, r, "%s", strerror(-r));
	return r;
}

void proxy_drain(struct proxy *p, bool close_idle)
{
	p->draining = true;
	for (unsigned i = 0; i < p->n; i++)
		post(&p->workers[i], ORDER_DRAIN, (struct message){ .close_idle = close_idle });
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
	struct list *it, *next;

	*pp = NULL;
	if (!p)
		return;
	for (unsigned i = 0; p->workers && i < p->n; i++)
		if (p->workers[i].running)
			post(&p->workers[i], ORDER_END, (struct message){ 0 });
	for (unsigned i = 0; p->workers && i < p->n; i++)
		if (p->workers[i].running)
			pthread_join(p->workers[i].thread, NULL);
	for (unsigned i = 0; p->workers && i < p->n; i++)
		worker_deinit(&p->workers[i]);
	free(p->workers);
	list_for_each_safe(it, next, &p->addresses)
		address_free(list_entry(it, struct listener_address, link));
	free(p->current);
	if (p->access_log >= 0)
		close(p->access_log);
	close(p->drained_fd);
	conf_unref(p->conf);
	free(p);
}

int proxy_reopen_logs(struct proxy *p)
{
	char err[256] = "";
	int r = open_access_log(p, p->conf, err, sizeof(err));

	if (r < 0)
		log_error("reopen_failed", "reason=\"%s\"", err);
	return r;
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

void proxy_listener_counts(const struct proxy *p, unsigned i, unsigned *open, uint64_t *accepted)
{
	*open = atomic_load(&p->current[i]->open);
	*accepted = atomic_load(&p->current[i]->accepted);
}
