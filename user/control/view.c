/* SPDX-License-Identifier: Apache-2.0 */
#include "control/view.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "control/control_inner.h"
#include "proxy/proxy.h"

struct collect {
	struct view *v;
	uint32_t backends_cap, requests_cap;
	int err;
};

/* Makes room for one more in an array of n with place for *cap. The array, perhaps moved, or NULL. */
static void *grow(void *p, uint32_t n, uint32_t *cap, size_t size)
{
	uint32_t more = *cap ? *cap * 2 : 16;
	void *q;

	if (n < *cap)
		return p;
	q = reallocarray(p, more, size);
	if (q)
		*cap = more;
	return q;
}

static void copy_text(char *out, size_t cap, const char *in)
{
	size_t n = strnlen(in, cap - 1);

	memcpy(out, in, n);
	out[n] = 0;
}

static void collect_backend(void *ctx, const struct upstream *u, struct backend *b, uint32_t weight)
{
	struct collect *c = ctx;
	struct view *v = c->v;
	const struct sluice_health *h = b->health;
	struct view_backend *e, *a = grow(v->backends, v->backends_n, &c->backends_cap, sizeof(*a));

	if (!a) {
		c->err = -ENOMEM;
		return;
	}
	v->backends = a;
	e = &a[v->backends_n];
	*e = (struct view_backend){
		.state = backend_state(b),
		.admin = backend_admin(b),
		.weight = backend_weight(b, weight),
		.weight_conf = weight,
		.active = atomic_load_explicit(&b->active, memory_order_relaxed),
		.connections = atomic_load_explicit(&b->connections, memory_order_relaxed),
		.requests = atomic_load_explicit(&b->requests, memory_order_relaxed),
		.checks_ok = __atomic_load_n(&h->checks_ok, __ATOMIC_RELAXED),
		.checks_failed = __atomic_load_n(&h->checks_failed, __ATOMIC_RELAXED),
		.last_change_ns = __atomic_load_n(&h->last_change_ns, __ATOMIC_RELAXED),
		.latency_us = __atomic_load_n(&h->latency_us, __ATOMIC_RELAXED),
	};
	copy_text(e->upstream, sizeof(e->upstream), u->c->name);
	copy_text(e->text, sizeof(e->text), b->text);
	backend_last_error(b, e->last_error, sizeof(e->last_error));
	v->backends_n++;
}

static void collect_stats(void *ctx, const struct upstream_stats *s)
{
	struct collect *c = ctx;
	struct view *v = c->v;

	for (unsigned code = 0; code < UPSTREAM_STATUS_MAX && !c->err; code++) {
		uint64_t n = upstream_status_total(s, code);
		struct view_requests *a;

		if (n == 0)
			continue;
		a = grow(v->requests, v->requests_n, &c->requests_cap, sizeof(*a));
		if (!a) {
			c->err = -ENOMEM;
			return;
		}
		v->requests = a;
		a[v->requests_n] = (struct view_requests){ .code = code, .n = n };
		copy_text(a[v->requests_n].upstream, sizeof(a->upstream), s->name);
		v->requests_n++;
	}
}

/* Upstreams come from the table, so that one whose names do not resolve yet shows with no backends. */
static int collect_lb(struct view *v, struct lb *lb)
{
	struct collect c = { .v = v };
	struct lb_table *t = lb_table_get(lb);

	v->upstreams = calloc(t->n ? t->n : 1, sizeof(*v->upstreams));
	if (!v->upstreams) {
		lb_table_unref(t);
		return -ENOMEM;
	}
	lb_each_backend(lb, collect_backend, &c);
	lb_each_stats(lb, collect_stats, &c);
	for (uint32_t i = 0, at = 0; i < t->n; i++) {
		const struct conf_upstream *u = t->upstream[i]->c;
		struct view_upstream *e = &v->upstreams[i];

		*e = (struct view_upstream){ .tls = u->tls.enabled, .first = at };
		e->balance = conf_balance_name(u->balance);
		e->check = conf_health_name(u->health_check.type);
		copy_text(e->name, sizeof(e->name), u->name);
		while (at < v->backends_n && strcmp(v->backends[at].upstream, e->name) == 0)
			at++;
		e->n = at - e->first;
	}
	v->upstreams_n = t->n;
	lb_table_unref(t);
	return c.err;
}

static int collect_listeners(struct view *v, const struct proxy *p, const struct conf *conf)
{
	v->listeners = calloc(conf->listener_count ? conf->listener_count : 1, sizeof(*v->listeners));
	if (!v->listeners)
		return -ENOMEM;
	v->listeners_n = conf->listener_count;
	for (uint32_t i = 0; i < v->listeners_n; i++) {
		struct view_listener *l = &v->listeners[i];

		copy_text(l->text, sizeof(l->text), proxy_listener_text(p, i));
		l->tls = conf->listeners[i].tls.enabled;
		proxy_listener_counts(p, i, &l->open, &l->accepted);
	}
	return 0;
}

static uint64_t resident_bytes(void)
{
	char z[128];
	unsigned long long pages = 0;
	int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, z, sizeof(z) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	z[n] = 0;
	if (sscanf(z, "%*s %llu", &pages) != 1)
		return 0;
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static int64_t open_descriptors(void)
{
	struct stat st;
	int64_t n = 0;
	DIR *d;

	/* Since Linux 6.2 the directory's size is their number; before that it is 0 and they must be counted. */
	if (stat("/proc/self/fd", &st) == 0 && st.st_size > 0)
		return st.st_size;
	d = opendir("/proc/self/fd");
	if (!d)
		return -1;
	while (readdir(d))
		n++;
	closedir(d);
	return n - 3; /* ".", ".." and the directory itself */
}

static void collect_process(struct view *v, const struct control *c)
{
	struct timespec ts;
	struct rusage u = { 0 };

	v->version = SLUICE_VERSION;
	v->pid = (int)getpid();
	clock_gettime(CLOCK_REALTIME, &ts);
	v->now_ns = (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
	v->started_ns = c->started_ns;
	v->uptime_ns = now_ns() - c->started_mono_ns;
	getrusage(RUSAGE_SELF, &u);
	v->cpu_ns = (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * NS_PER_S +
		    (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;
	v->rss_bytes = resident_bytes();
	v->open_fds = open_descriptors();
	v->log_lost = log_lost();
	v->reloads = c->reloads;
	v->reloads_failed = c->reloads_failed;
	v->reload_failed = c->reload_failed;
	v->reload_ns = c->reload_ns;
}

int view_collect(struct view *v, const struct control *c)
{
	const struct proxy *p = c->proxy;
	const struct conf *conf = proxy_conf(p);
	struct kern *k = proxy_kern(p);
	struct lb *lb = proxy_lb(p);
	int r;

	*v = (struct view){ 0 };
	collect_process(v, c);
	copy_text(v->conf_path, sizeof(v->conf_path), conf->path ? conf->path : "");
	v->workers = proxy_workers(p);
	v->sessions = proxy_sessions(p);
	v->idle_upstreams = proxy_idle_upstreams(p);
	v->draining = proxy_draining(p);
	v->engine_limit = conf_engine_name(conf->splice.engine);
	v->window = conf->splice.window;
	v->memory = conf->splice.memory;
	if (k) {
		v->features = *kern_features(k);
		kern_counters_sum(k, &v->counters);
		v->outstanding = kern_outstanding(k);
	}
	r = collect_listeners(v, p, conf);
	if (r == 0 && lb)
		r = collect_lb(v, lb);
	return r;
}

void view_deinit(struct view *v)
{
	free(v->listeners);
	free(v->upstreams);
	free(v->backends);
	free(v->requests);
	*v = (struct view){ 0 };
}

bool view_draining(const struct control *c)
{
	return proxy_draining(c->proxy);
}
