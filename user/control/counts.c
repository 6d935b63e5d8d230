/* SPDX-License-Identifier: Apache-2.0 */
#include "control/counts.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <search.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/list.h"
#include "base/log.h"

#define TELL_MS 1000
#define LAST_WORD_MS 2000 /* of an ending process, for a reader that is behind */
#define MESSAGE_MAX 4096u
#define LINE_MAX_BYTES 320u

/* One thing that is counted, by the beginning of its line. */
struct told {
	uint64_t n;
	char what[];
};

struct source {
	struct watch watch;
	struct list link;
	struct counts *counts;
	bool watched;
	struct defer defer;
};

struct counts {
	struct loop *loop;
	struct kern *kern;
	struct lb *lb;
	struct proxy *proxy;
	struct list sources;
	int out, lent; /* our end, and the other one until the new process has it; -1 */
	void *told;    /* tsearch(3) */
	struct timer again;
};

/* ---- telling ---- */

struct telling {
	struct counts *c;
	int err;
	char text[MESSAGE_MAX];
	size_t len;
	struct {
		struct told *told;
		uint64_t n;
	} in[MESSAGE_MAX / 8];
	unsigned lines;
};

static int compare_told(const void *a, const void *b)
{
	return strcmp(((const struct told *)a)->what, ((const struct told *)b)->what);
}

static struct told *told_find(struct counts *c, const char *what)
{
	size_t n = strlen(what) + 1;
	struct told *t = calloc(1, sizeof(*t) + n), **at;

	if (!t)
		return NULL;
	memcpy(t->what, what, n);
	at = tsearch(t, &c->told, compare_told);
	if (!at || *at != t)
		free(t);
	return at ? *at : NULL;
}

static void forget_told(struct counts *c)
{
	tdestroy(c->told, free);
	c->told = NULL;
}

/* Only what was sent is told: the rest is tried again later. */
static void message_send(struct telling *t)
{
	if (t->err == 0 && t->len && send(t->c->out, t->text, t->len, MSG_NOSIGNAL) < 0)
		t->err = -errno;
	for (unsigned i = 0; i < t->lines && t->err == 0; i++)
		t->in[i].told->n = t->in[i].n;
	t->len = t->lines = 0;
}

static void tell(struct telling *t, uint64_t n, const char *fmt, ...) _printf_(3, 4);
static void tell(struct telling *t, uint64_t n, const char *fmt, ...)
{
	char what[LINE_MAX_BYTES];
	struct told *told;
	va_list ap;
	int len;

	if (n == 0 || t->err)
		return;
	va_start(ap, fmt);
	len = vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (len >= (int)sizeof(what))
		return;
	told = told_find(t->c, what);
	if (!told) {
		t->err = -ENOMEM;
		return;
	}
	if (told->n >= n)
		return;
	if (t->len + (size_t)len + 24 > sizeof(t->text) || t->lines == ARRAY_SIZE(t->in))
		message_send(t);
	t->len += (size_t)snprintf(t->text + t->len, sizeof(t->text) - t->len, "%s %" PRIu64 "\n", what, n - told->n);
	t->in[t->lines].told = told;
	t->in[t->lines++].n = n;
}

static void tell_stats(void *ctx, const struct upstream_stats *s)
{
	for (unsigned code = 0; code < UPSTREAM_STATUS_MAX; code++)
		tell(ctx, upstream_status_total(s, code), "status %s %u", s->name, code);
}

static void tell_backend(void *ctx, const struct upstream *u, struct backend *b, _unused_ uint32_t weight)
{
	tell(ctx, atomic_load_explicit(&b->requests, memory_order_relaxed), "backend %s/%s", u->c->name, b->text);
}

/* Not a count, but it goes the same way, and once only. */
static void tell_health(void *ctx, const struct upstream *u, struct backend *b, _unused_ uint32_t weight)
{
	tell(ctx, backend_weight(b, 0) + 1ull, "health %s/%s %u %u", u->c->name, b->text, backend_state(b), backend_admin(b));
}

static void tell_memory(struct telling *t)
{
	struct sluice_counters sum;

	kern_counters_sum(t->c->kern, &sum);
	for (size_t i = 0; i < kern_counter_names_n; i++)
		tell(t, kern_counter_get(&sum, i), "counter %s", kern_counter_names[i].name);
}

static void tell_all(struct counts *c, bool first)
{
	struct telling t = { .c = c };

	if (c->out < 0)
		return;
	lb_each_stats(c->lb, tell_stats, &t);
	lb_each_backend(c->lb, tell_backend, &t);
	for (unsigned i = 0; c->proxy && i < proxy_conf(c->proxy)->listener_count; i++) {
		uint64_t accepted;
		unsigned open;

		proxy_listener_counts(c->proxy, i, &open, &accepted);
		tell(&t, accepted, "listener %s", proxy_listener_text(c->proxy, i));
	}
	if (!kern_features(c->kern)->bpf_maps) {
		tell_memory(&t);
		if (first)
			lb_each_backend(c->lb, tell_health, &t);
	}
	message_send(&t);
	if (t.err && t.err != -EAGAIN)
		log_debug("counts", "reason=\"the next process does not hear: %s\"", strerror(-t.err));
}

static void tell_again(struct timer *t)
{
	struct counts *c = container_of(t, struct counts, again);

	tell_all(c, false);
	timer_set(c->loop, t, loop_now(c->loop) + TELL_MS * NS_PER_MS);
}

/* ---- hearing ---- */

static void add_counter(struct counts *c, const char *name, uint64_t n)
{
	char *entry = (char *)kern_counters(c->kern, kern_workers(c->kern));

	for (size_t i = 0; i < kern_counter_names_n; i++)
		if (strcmp(kern_counter_names[i].name, name) == 0)
			__atomic_fetch_add((__u64 *)(void *)(entry + kern_counter_names[i].offset), n, __ATOMIC_RELAXED);
}

static void hear_line(struct counts *c, const char *line)
{
	char name[256];
	struct backend *b;
	unsigned x, y;
	uint64_t n;

	if (sscanf(line, "status %255s %u %" SCNu64, name, &x, &n) == 3) {
		lb_restore_status(c->lb, name, x, n);
	} else if (sscanf(line, "health %255s %u %u %" SCNu64, name, &x, &y, &n) == 4) {
		lb_restore_health(c->lb, str_from(name), x, y, (uint32_t)n - 1);
	} else if (sscanf(line, "backend %255s %" SCNu64, name, &n) == 2) {
		if (lb_find_backend(c->lb, str_from(name), &b) == 0) {
			atomic_fetch_add_explicit(&b->requests, n, memory_order_relaxed);
			backend_unref(b);
		}
	} else if (sscanf(line, "listener %255s %" SCNu64, name, &n) == 2) {
		proxy_restore_accepted(c->proxy, name, n);
	} else if (sscanf(line, "counter %255s %" SCNu64, name, &n) == 2) {
		add_counter(c, name, n);
	}
}

static void source_free(struct defer *d)
{
	free(container_of(d, struct source, defer));
}

static void source_drop(struct source *s)
{
	if (s->watched)
		loop_del(s->counts->loop, &s->watch);
	close(s->watch.fd);
	list_unlink(&s->link);
	s->defer.free = source_free;
	loop_defer(s->counts->loop, &s->defer);
}

/* All that is there. False: there is no more to come. */
static bool source_read(struct source *s)
{
	char text[MESSAGE_MAX + 1], *save = NULL;
	ssize_t n;

	while ((n = recv(s->watch.fd, text, MESSAGE_MAX, MSG_DONTWAIT)) > 0) {
		text[n] = 0;
		for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
			hear_line(s->counts, line);
	}
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void source_event(struct watch *w, _unused_ uint32_t events)
{
	struct source *s = container_of(w, struct source, watch);

	if (!source_read(s))
		source_drop(s);
}

static void source_watch(struct source *s)
{
	if (!source_read(s) || loop_add(s->counts->loop, &s->watch, EPOLLIN) < 0)
		source_drop(s);
	else
		s->watched = true;
}

void counts_take(struct counts *c, struct handed *set)
{
	int fd;

	while ((fd = handed_take(set, HANDED_COUNTS, NULL)) >= 0) {
		struct source *s = calloc(1, sizeof(*s));

		if (!s) {
			close(fd);
			continue;
		}
		s->watch = (struct watch){ .fd = fd, .cb = source_event };
		s->counts = c;
		list_push_back(&c->sources, &s->link);
		source_watch(s);
	}
}

/* ---- an upgrade ---- */

static void close_pair(struct counts *c)
{
	if (c->out >= 0)
		close(c->out);
	if (c->lent >= 0)
		close(c->lent);
	c->out = c->lent = -1;
	forget_told(c);
}

int counts_offer(struct counts *c, struct handed *set)
{
	struct list *it, *next;
	int sv[2], r = 0;

	close_pair(c);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return -errno;
	c->out = sv[0];
	c->lent = sv[1];
	r = handed_add(set, c->lent, HANDED_COUNTS, 0, "");
	list_for_each_safe(it, next, &c->sources)
		if (r == 0)
			r = handed_add(set, list_entry(it, struct source, link)->watch.fd, HANDED_COUNTS, 0, "");
	return r;
}

void counts_ready(struct counts *c)
{
	struct list *it, *next;

	list_for_each_safe(it, next, &c->sources) {
		struct source *s = list_entry(it, struct source, link);

		source_read(s);
		loop_del(c->loop, &s->watch);
		s->watched = false;
	}
	tell_all(c, true);
}

void counts_failed(struct counts *c)
{
	struct list *it, *next;

	close_pair(c);
	list_for_each_safe(it, next, &c->sources) {
		struct source *s = list_entry(it, struct source, link);

		if (!s->watched)
			source_watch(s);
	}
}

static void drop_sources(struct counts *c)
{
	struct list *it, *next;

	list_for_each_safe(it, next, &c->sources)
		source_drop(list_entry(it, struct source, link));
}

void counts_handed_over(struct counts *c)
{
	if (!c || c->lent < 0)
		return;
	drop_sources(c);
	close(c->lent);
	c->lent = -1;
	timer_set(c->loop, &c->again, loop_now_fresh(c->loop));
}

/* ---- life ---- */

int counts_new(struct counts **out, struct loop *l, struct kern *k, struct lb *lb, struct proxy *p)
{
	struct counts *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	*c = (struct counts){ .loop = l, .kern = k, .lb = lb, .proxy = p, .out = -1, .lent = -1 };
	list_init(&c->sources);
	timer_init(&c->again, tell_again);
	*out = c;
	return 0;
}

void counts_end(struct counts *c)
{
	if (!c)
		return;
	if (c->lent < 0)
		tell_all(c, false);
	c->proxy = NULL;
}

void counts_free(struct counts **pc)
{
	struct counts *c = *pc;
	struct timeval limit = { .tv_sec = LAST_WORD_MS / 1000 };

	*pc = NULL;
	if (!c)
		return;
	if (c->out >= 0 && c->lent < 0) {
		fcntl(c->out, F_SETFL, 0);
		setsockopt(c->out, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
		tell_all(c, false);
	}
	timer_remove(c->loop, &c->again);
	drop_sources(c);
	close_pair(c);
	free(c);
}
