/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The health thread: one loop that checks every backend of the current table.
 *
 * Each backend in it has one struct health_check, owned by this thread alone.
 * At most CHECKS_AT_A_TIME run at once; the others wait their turn in a queue,
 * so that thousands of backends need neither thousands of descriptors nor a
 * storm. A check that is done sets the time of the next.
 *
 *   off --(member of a set)--> due --> [queued] --> running --> due ...
 *   Without a health_check in the configuration a check is due only while the
 *   backend is DOWN (requests could not connect): then once a second.
 *
 * This thread is the only one of the process that writes its fields in the
 * health table. Once a second, and whenever woken, it compares the table with
 * what it knows: operator fields that changed are logged, its own fields that
 * somebody overwrote are put back.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "base/log.h"
#include "lb/check.h"
#include "lb/state.h"

#define CHECKS_AT_A_TIME 256u
#define TICK_NS NS_PER_S
#define PROBE_NS NS_PER_S /* interval and timeout of the probe without a health_check */
#define REAP_TICK 5u      /* when the names are known; */
#define REAP_TICK_LATEST 60u

struct health {
	struct lb *lb;
	struct loop *loop;
	pthread_t thread;
	struct task wake, stop;
	atomic_bool wake_posted;
	struct timer tick;
	unsigned ticks;

	struct list checks; /* all */
	struct list queue;  /* due, waiting for a place */
	unsigned running;
	uint32_t epoch;   /* of the last look at the table */
	uint32_t version; /* of lb's sets at that time */
	uint64_t rand;
};

struct health_check {
	struct check check;
	struct timer next;
	struct defer defer;
	struct list link, queue;
	struct health *h;
	struct backend *b;                /* one reference */
	struct upstream *u;               /* one reference */
	const struct conf_server *server; /* of u */
	uint32_t weight, epoch;
	struct buf request;

	uint32_t rise, fall; /* in a row */
	uint64_t passed, failed;
	uint32_t latency_us;
	uint64_t changed_real_ns;
	uint32_t seen_state, seen_admin, seen_weight;
	char last_error[sizeof(((struct sluice_health *)NULL)->last_error)];
	bool inconclusive; /* and said so */
};

static uint64_t now_real_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static const struct conf_health_check *config(const struct health_check *c)
{
	return &c->u->c->health_check;
}

/* ---- the table ---- */

/* Others look at the table while this writes: a byte at a time, so that they see an old byte or a new one. */
static void put_text(char *out, size_t cap, const char *text)
{
	size_t n = strnlen(text, cap - 1);

	if (strncmp(out, text, cap) == 0)
		return;
	for (size_t i = 0; i < cap; i++)
		__atomic_store_n(&out[i], i < n ? text[i] : 0, __ATOMIC_RELAXED);
}

#define PUT(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

static void notice_operator(struct health_check *c)
{
	struct backend *b = c->b;
	uint32_t admin = backend_admin(b), weight = backend_weight(b, 0);

	if (admin > SLUICE_ADMIN_DISABLED) {
		__atomic_store_n(&b->health->admin, c->seen_admin, __ATOMIC_RELAXED);
		log_warn("backend_admin", "upstream=%s backend=%s reason=\"admin=%u means nothing; put back\"",
			 b->upstream, b->text, admin);
		admin = c->seen_admin;
	}
	if (admin == c->seen_admin && weight == c->seen_weight)
		return;
	c->seen_admin = admin;
	c->seen_weight = weight;
	log_info("backend_admin", "upstream=%s backend=%s admin=%s weight=%u", b->upstream, b->text,
		 backend_admin_name(admin), backend_weight(b, c->weight));
}

static void mirror(struct health_check *c)
{
	struct sluice_health *h = c->b->health;
	uint32_t state = backend_state(c->b);

	if (state != c->seen_state) {
		c->seen_state = state;
		c->changed_real_ns = now_real_ns();
	}
	put_text(h->upstream, sizeof(h->upstream), c->b->upstream);
	put_text(h->backend, sizeof(h->backend), c->b->text);
	put_text(h->last_error, sizeof(h->last_error), c->last_error);
	PUT(h->state, state);
	PUT(h->weight_conf, c->weight);
	PUT(h->rise_count, c->rise);
	PUT(h->fall_count, c->fall);
	PUT(h->checks_ok, c->passed);
	PUT(h->checks_failed, c->failed);
	PUT(h->requests, atomic_load_explicit(&c->b->requests, memory_order_relaxed));
	PUT(h->last_change_ns, c->changed_real_ns);
	PUT(h->latency_us, c->latency_us);
	PUT(h->generation, atomic_load(&c->h->lb->generation));
}

/* ---- when ---- */

static bool wanted(const struct health_check *c)
{
	return config(c)->type != CONF_HEALTH_NONE || backend_state(c->b) == SLUICE_HEALTH_DOWN;
}

/* The interval, up to a tenth more or less, so that checks of many backends (and proxies) spread out. */
static uint64_t interval(struct health_check *c)
{
	uint64_t ns = config(c)->type == CONF_HEALTH_NONE ? PROBE_NS : config(c)->interval_ms * NS_PER_MS;

	return ns - ns / 10 + rand_next(&c->h->rand) % (ns / 5 + 1);
}

/* Without memory for the timer the next tick tries again. */
static void due_in(struct health_check *c, uint64_t ns)
{
	timer_set(c->h->loop, &c->next, loop_now(c->h->loop) + ns);
}

static bool is_idle(const struct health_check *c)
{
	return !check_running(&c->check) && list_empty(&c->queue) && c->next.deadline == UINT64_MAX;
}

static void result(struct health_check *c, enum check_outcome outcome, const char *reason, uint64_t took_ns);

static void plan(const struct health_check *c, struct check_plan *p)
{
	const struct conf_health_check *conf = config(c);

	*p = (struct check_plan){
		.addr = c->b->addr,
		.tls = c->u->check_tls,
		.tls_name = c->b->tls_name,
		.request = buf_str(&c->request),
		.expect = conf,
		.timeout_ns = conf->type == CONF_HEALTH_NONE ? PROBE_NS : conf->timeout_ms * NS_PER_MS,
	};
	if (conf->port && p->addr.sa.sa_family == AF_INET)
		p->addr.in.sin_port = htons(conf->port);
	else if (conf->port && p->addr.sa.sa_family == AF_INET6)
		p->addr.in6.sin6_port = htons(conf->port);
}

static void start(struct health_check *c)
{
	struct check_plan p;

	if (c->u->c->tls.enabled && !c->u->check_tls) {
		result(c, CHECK_FAILED, c->u->check_tls_error, 0);
		return;
	}
	plan(c, &p);
	if (check_start(&c->check, &p) < 0)
		due_in(c, interval(c));
	else
		c->h->running++;
}

static void start_queued(struct health *h)
{
	while (h->running < CHECKS_AT_A_TIME && !list_empty(&h->queue)) {
		struct health_check *c = list_entry(h->queue.next, struct health_check, queue);

		list_unlink(&c->queue);
		start(c);
	}
}

static void on_next(struct timer *t)
{
	struct health_check *c = container_of(t, struct health_check, next);

	if (check_running(&c->check) || !list_empty(&c->queue) || !wanted(c))
		return;
	list_push_back(&c->h->queue, &c->queue);
	start_queued(c->h);
}

/* ---- what a result means ---- */

static void passed(struct health_check *c, uint64_t took_ns)
{
	uint32_t state = backend_state(c->b), enough = state == SLUICE_HEALTH_DOWN ? config(c)->rise : 1;

	if (config(c)->type == CONF_HEALTH_NONE)
		enough = 1;
	/* Just taken down by a worker: what passed before that does not count. */
	if (state == SLUICE_HEALTH_DOWN && c->seen_state != SLUICE_HEALTH_DOWN)
		c->rise = 0;
	c->passed++;
	c->fall = 0;
	if (c->rise < UINT32_MAX)
		c->rise++;
	c->latency_us = (uint32_t)MIN_OF(took_ns / 1000, UINT32_MAX);
	if (state == SLUICE_HEALTH_UP || c->rise < enough)
		return;
	atomic_store(&c->b->failures, 0);
	if (backend_change_state(c->b, state, SLUICE_HEALTH_UP, ""))
		c->last_error[0] = 0;
}

static void failed(struct health_check *c, const char *reason)
{
	uint32_t state = backend_state(c->b);

	c->failed++;
	c->rise = 0;
	if (c->fall < UINT32_MAX)
		c->fall++;
	put_text(c->last_error, sizeof(c->last_error), reason);
	if (state != SLUICE_HEALTH_DOWN && c->fall >= config(c)->fall)
		backend_change_state(c->b, state, SLUICE_HEALTH_DOWN, reason);
}

static void result(struct health_check *c, enum check_outcome outcome, const char *reason, uint64_t took_ns)
{
	if (outcome == CHECK_INCONCLUSIVE) {
		if (!c->inconclusive)
			log_warn("health_check_skipped", "upstream=%s backend=%s reason=\"%s\"", c->b->upstream,
				 c->b->text, reason);
	} else if (outcome == CHECK_PASSED) {
		passed(c, took_ns);
	} else {
		failed(c, reason);
	}
	c->inconclusive = outcome == CHECK_INCONCLUSIVE;
	mirror(c);
	if (wanted(c))
		due_in(c, interval(c));
}

static void on_done(struct check *check, enum check_outcome outcome)
{
	struct health_check *c = container_of(check, struct health_check, check);

	c->h->running--;
	result(c, outcome, check->reason, check->took_ns);
	start_queued(c->h);
}

/* ---- who is checked ---- */

static int build_request(struct health_check *c)
{
	const struct conf_health_check *conf = config(c);
	const char *host = conf->host ? conf->host : c->server->address;

	buf_deinit(&c->request);
	if (conf->type != CONF_HEALTH_HTTP)
		return 0;
	if (!conf->host && c->server->kind == CONF_SERVER_UNIX)
		host = "localhost";
	return buf_printf(&c->request,
			  "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: sluice-health/" SLUICE_VERSION
			  "\r\nAccept: */*\r\nConnection: close\r\n\r\n",
			  conf->path, host);
}

static void free_deferred(struct defer *d)
{
	free(container_of(d, struct health_check, defer));
}

static void health_check_drop(struct health_check *c)
{
	if (check_running(&c->check))
		c->h->running--;
	check_cancel(&c->check);
	timer_remove(c->h->loop, &c->next);
	list_unlink(&c->queue);
	list_unlink(&c->link);
	buf_deinit(&c->request);
	c->b->check = NULL;
	upstream_unref(c->u);
	backend_unref(c->b);
	c->defer.free = free_deferred;
	loop_defer(c->h->loop, &c->defer);
}

static struct health_check *health_check_new(struct health *h, struct backend *b)
{
	struct health_check *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->h = h;
	c->b = backend_ref(b);
	c->seen_state = backend_state(b);
	c->seen_admin = backend_admin(b) <= SLUICE_ADMIN_DISABLED ? backend_admin(b) : SLUICE_ADMIN_ENABLED;
	c->seen_weight = backend_weight(b, 0);
	/* Adopted entries go on counting. */
	c->passed = b->health->checks_ok;
	c->failed = b->health->checks_failed;
	c->changed_real_ns = b->health->last_change_ns;
	put_text(c->last_error, sizeof(c->last_error), "");
	check_init(&c->check, h->loop, on_done);
	timer_init(&c->next, on_next);
	list_init(&c->queue);
	list_push_back(&h->checks, &c->link);
	b->check = c;
	return c;
}

/* One member of the current table, and the references this thread holds for it. */
struct seen {
	struct upstream *u;
	struct upstream_member member;
};

/* False: no memory. */
static bool member_seen(struct health *h, const struct seen *s)
{
	struct health_check *c = s->member.backend->check;

	if (!c) {
		c = health_check_new(h, s->member.backend);
		if (!c)
			return false;
	}
	c->epoch = h->epoch;
	c->weight = s->member.weight;
	if (c->u == s->u && c->server)
		return true;
	/* New, or its configuration is: what runs now was planned by the old one. */
	if (check_running(&c->check)) {
		check_cancel(&c->check);
		h->running--;
	}
	upstream_unref(c->u);
	c->u = upstream_ref(s->u);
	c->server = s->member.server;
	if (build_request(c) < 0) {
		c->server = NULL;
		return false;
	}
	mirror(c);
	due_in(c, 0);
	return true;
}

/* All members of the current table, each with references. NULL: no memory. */
static struct seen *members_take(struct lb *lb, size_t *n, uint32_t *version)
{
	struct lb_table *t;
	struct seen *all;
	size_t cap = 0, at = 0;

	pthread_mutex_lock(&lb->lock);
	t = lb->table;
	*version = atomic_load(&lb->version);
	for (uint32_t i = 0; i < t->n; i++)
		cap += t->upstream[i]->set->n;
	all = calloc(cap + 1, sizeof(*all));
	for (uint32_t i = 0; all && i < t->n; i++)
		for (uint32_t j = 0; j < t->upstream[i]->set->n; j++) {
			all[at] = (struct seen){ upstream_ref(t->upstream[i]), t->upstream[i]->set->member[j] };
			backend_ref(all[at++].member.backend);
		}
	pthread_mutex_unlock(&lb->lock);
	*n = at;
	return all;
}

static void look_at_members(struct health *h)
{
	struct list *it, *tmp;
	struct seen *all;
	uint32_t version;
	bool complete = true;
	size_t n;

	all = members_take(h->lb, &n, &version);
	if (!all)
		return;
	h->epoch++;
	for (size_t i = 0; i < n; i++) {
		complete &= member_seen(h, &all[i]);
		upstream_unref(all[i].u);
		backend_unref(all[i].member.backend);
	}
	free(all);
	list_for_each_safe(it, tmp, &h->checks)
	{
		struct health_check *c = list_entry(it, struct health_check, link);

		if (c->epoch != h->epoch)
			health_check_drop(c);
	}
	if (complete)
		h->version = version;
}

static void look(struct health *h)
{
	struct list *it, *tmp;

	if (atomic_load(&h->lb->version) != h->version)
		look_at_members(h);
	list_for_each_safe(it, tmp, &h->checks)
	{
		struct health_check *c = list_entry(it, struct health_check, link);

		notice_operator(c);
		if (backend_state(c->b) != c->seen_state) {
			/* A worker took it down. It has to earn its way back; where there are checks, from now on. */
			c->rise = 0;
			strncpy(c->last_error, "requests can not connect", sizeof(c->last_error) - 1);
			if (!check_running(&c->check))
				due_in(c, config(c)->type == CONF_HEALTH_NONE ? PROBE_NS : 0);
		}
		mirror(c);
		if (wanted(c) && is_idle(c))
			due_in(c, 0);
	}
}

/*
 * What an earlier process left and nobody claimed is forgotten, but not while
 * a name that might claim some of it has no answer yet.
 */
static void reap(struct health *h)
{
	bool missing = false;

	pthread_mutex_lock(&h->lb->lock);
	for (uint32_t i = 0; i < h->lb->table->n; i++)
		missing |= upstream_names_missing_locked(h->lb->table->upstream[i]);
	if (!missing || h->ticks >= REAP_TICK_LATEST)
		backend_reap_slots_locked(h->lb);
	pthread_mutex_unlock(&h->lb->lock);
}

static void on_tick(struct timer *t)
{
	struct health *h = container_of(t, struct health, tick);

	h->ticks++;
	timer_set(h->loop, &h->tick, loop_now(h->loop) + TICK_NS);
	look(h);
	if (h->ticks == REAP_TICK || h->ticks == REAP_TICK_LATEST)
		reap(h);
}

/* ---- the thread ---- */

static void on_wake(struct task *t)
{
	struct health *h = container_of(t, struct health, wake);

	/* First, so that what comes while we look wakes us again. */
	atomic_store(&h->wake_posted, false);
	look(h);
}

static void on_stop(struct task *t)
{
	loop_stop(container_of(t, struct health, stop)->loop);
}

static void *health_thread(void *arg)
{
	struct health *h = arg;
	int r;

	look(h);
	r = loop_run(h->loop);
	if (r < 0)
		log_error("health_thread", "reason=\"%s; backends keep their state\"", strerror(-r));
	return NULL;
}

void health_wake(struct health *h)
{
	if (h && !atomic_exchange(&h->wake_posted, true))
		loop_post(h->loop, &h->wake);
}

int health_start(struct health **out, struct lb *lb)
{
	struct health *h = calloc(1, sizeof(*h));
	sigset_t all, old;
	int r;

	if (!h)
		return -ENOMEM;
	h->lb = lb;
	h->wake.run = on_wake;
	h->stop.run = on_stop;
	h->rand = hash_u64(now_ns()) | 1;
	list_init(&h->checks);
	list_init(&h->queue);
	timer_init(&h->tick, on_tick);
	r = loop_new(&h->loop);
	if (r == 0)
		r = timer_set(h->loop, &h->tick, now_ns() + TICK_NS);
	if (r == 0) {
		*out = h;
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		r = -pthread_create(&h->thread, NULL, health_thread, h);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	if (r < 0) {
		*out = NULL;
		health_free(h);
	}
	return r;
}

void health_stop(struct health *h)
{
	struct list *it, *tmp;

	loop_post(h->loop, &h->stop);
	pthread_join(h->thread, NULL);
	list_for_each_safe(it, tmp, &h->checks) health_check_drop(list_entry(it, struct health_check, link));
	/* Nothing runs the loop any more: what was just deferred goes with it, wake-ups stay unread. */
	atomic_store(&h->wake_posted, true);
}

void health_free(struct health *h)
{
	if (!h)
		return;
	loop_free(h->loop);
	free(h);
}
