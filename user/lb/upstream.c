/* SPDX-License-Identifier: Apache-2.0 */
#include "lb/upstream.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "io/tls.h"
#include "lb/state.h"

/* ---- statistics ---- */

struct upstream_stats *upstream_stats_obtain_locked(struct lb *lb, const char *name)
{
	struct upstream_stats *s;
	size_t size = sizeof(*s) + lb->workers * sizeof(s->shard[0]);

	for (s = lb->stats; s; s = s->next)
		if (strcmp(s->name, name) == 0)
			return s;
	/* aligned_alloc wants a multiple of the alignment; the shards' makes it one. */
	s = aligned_alloc(_Alignof(struct upstream_stats), (size + 63) & ~(size_t)63);
	if (!s)
		return NULL;
	memset(s, 0, size);
	s->shards = lb->workers;
	memcpy(s->name, name, strnlen(name, sizeof(s->name) - 1));
	s->next = lb->stats;
	lb->stats = s;
	return s;
}

uint64_t upstream_status_total(const struct upstream_stats *s, unsigned status)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < s->shards && status < UPSTREAM_STATUS_MAX; i++)
		sum += atomic_load_explicit(&s->shard[i].code[status], memory_order_relaxed);
	return sum;
}

/* ---- sets ---- */

static void set_unref_locked(struct upstream_set *s)
{
	if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
		return;
	for (uint32_t i = 0; i < s->n; i++)
		backend_unref_locked(s->member[i].backend);
	free(s->names);
	free(s);
}

static struct upstream_set *set_new(uint32_t cap)
{
	struct upstream_set *s = calloc(1, sizeof(*s) + cap * sizeof(s->member[0]));

	if (!s)
		return NULL;
	s->names = calloc(cap ? cap : 1, sizeof(*s->names));
	if (!s->names) {
		free(s);
		return NULL;
	}
	atomic_init(&s->refs, 1);
	return s;
}

/* An address that two servers (names) share is one backend, with the weight of the first. */
static bool set_has(const struct upstream_set *s, const char *text)
{
	for (uint32_t i = 0; i < s->n; i++)
		if (str_eqz(s->names[i], text))
			return true;
	return false;
}

static int set_add(struct upstream *u, struct upstream_set *s, const struct conf_server *server,
		   const struct sock_addr *addr, const char *text)
{
	const struct backend_key key = {
		.upstream = u->c->name, .text = text, .tls_name = server->tls_name, .addr = addr
	};
	struct backend *b;

	if (set_has(s, text))
		return 0;
	b = backend_obtain_locked(u->lb, &key);
	if (!b)
		return -ENOMEM;
	s->names[s->n] = str_from(b->text);
	s->member[s->n++] = (struct upstream_member){ .backend = b, .server = server, .weight = server->weight };
	return 0;
}

static int set_add_server(struct upstream *u, struct upstream_set *s, uint32_t index)
{
	const struct conf_server *server = &u->c->servers[index];
	const struct upstream_names *names = &u->names[index];
	char text[SOCK_TEXT_MAX];
	struct sock_addr addr;
	int r = 0;

	if (server->kind != CONF_SERVER_NAME) {
		memset(&addr, 0, sizeof(addr));
		memcpy(&addr.ss, &server->addr.ss, sizeof(addr.ss));
		addr.len = server->addr.len;
		return set_add(u, s, server, &addr, server->address);
	}
	for (uint32_t i = 0; i < names->n && r == 0; i++)
		r = set_add(u, s, server, &names->addr[i], sock_text(text, &names->addr[i], true));
	return r;
}

static bool set_same(const struct upstream_set *a, const struct upstream_set *b)
{
	if (!a || a->n != b->n)
		return false;
	for (uint32_t i = 0; i < a->n; i++)
		if (a->member[i].backend != b->member[i].backend || a->member[i].weight != b->member[i].weight)
			return false;
	return true;
}

/* What a configuration says about a backend without being its identity. */
static void set_configure(const struct upstream *u, struct upstream_set *s)
{
	const struct conf_health_check *h = &u->c->health_check;

	for (uint32_t i = 0; i < s->n; i++) {
		struct backend *b = s->member[i].backend;

		atomic_store(&b->fall, h->type == CONF_HEALTH_NONE ? LB_FALL_WITHOUT_CHECK : h->fall);
	}
}

int upstream_rebuild_locked(struct upstream *u)
{
	struct upstream_set *s, *old = u->set;
	uint32_t cap = 0;
	int r = 0;

	for (uint32_t i = 0; i < u->c->server_count; i++)
		cap += u->c->servers[i].kind == CONF_SERVER_NAME ? u->names[i].n : 1;
	s = set_new(cap);
	if (!s)
		return -ENOMEM;
	for (uint32_t i = 0; i < u->c->server_count && r == 0; i++)
		r = set_add_server(u, s, i);
	if (r < 0 || set_same(old, s)) {
		set_unref_locked(s);
		return r;
	}
	set_configure(u, s);
	u->set = s;
	atomic_fetch_add(&u->generation, 1);
	atomic_fetch_add(&u->lb->version, 1);
	set_unref_locked(old);
	return 0;
}

/* ---- upstreams ---- */

struct tls_client_options upstream_tls_options(const struct conf_upstream_tls *t)
{
	static const enum tls_ktls ktls[] = {
		[CONF_KTLS_AUTO] = TLS_KTLS_AUTO,
		[CONF_KTLS_REQUIRE] = TLS_KTLS_REQUIRE,
		[CONF_KTLS_OFF] = TLS_KTLS_OFF,
	};

	return (struct tls_client_options){
		.ca_file = t->ca_file,
		.crl_file = t->crl_file,
		.cert = t->cert,
		.key = t->key,
		.min_version = t->min_version == CONF_TLS_1_3 ? "1.3" : "1.2",
		.verify = t->verify,
		.ktls = ktls[t->ktls],
	};
}

/*
 * Checks ask of TLS what requests ask, the kernel's part included: a backend
 * whose cipher the kernel does not take is down where kTLS is required. A
 * context of their own keeps them out of the workers' caches.
 */
static void upstream_check_tls(struct upstream *u)
{
	const struct conf_upstream_tls *t = &u->c->tls;
	const struct tls_client_options o = upstream_tls_options(t);
	int r;

	if (!t->enabled)
		return;
	r = tls_ctx_new_client(&u->check_tls, &o, u->check_tls_error, sizeof(u->check_tls_error));
	if (r < 0) {
		u->check_tls = NULL;
		if (!u->check_tls_error[0])
			memcpy(u->check_tls_error, "no TLS context", sizeof("no TLS context"));
		log_warn("health_check_tls", "upstream=%s reason=\"%s\"", u->c->name, u->check_tls_error);
	}
}

struct upstream *upstream_new_locked(struct lb *lb, const struct conf *conf, uint32_t index)
{
	struct upstream *u = calloc(1, sizeof(*u));

	if (!u)
		return NULL;
	u->lb = lb;
	u->c = &conf->upstreams[index];
	u->stats = upstream_stats_obtain_locked(lb, u->c->name);
	u->names = calloc(u->c->server_count ? u->c->server_count : 1, sizeof(*u->names));
	if (!u->stats || !u->names) {
		free(u->names);
		free(u);
		return NULL;
	}
	u->conf = conf_ref(conf);
	atomic_init(&u->refs, 1);
	upstream_check_tls(u);
	return u;
}

struct upstream *upstream_ref(struct upstream *u)
{
	atomic_fetch_add_explicit(&u->refs, 1, memory_order_relaxed);
	return u;
}

void upstream_unref_locked(struct upstream *u)
{
	if (!u || atomic_fetch_sub(&u->refs, 1) != 1)
		return;
	set_unref_locked(u->set);
	for (uint32_t i = 0; i < u->c->server_count; i++)
		free(u->names[i].addr);
	free(u->names);
	tls_ctx_unref(u->check_tls);
	conf_unref(u->conf);
	free(u);
}

void upstream_unref(struct upstream *u)
{
	struct lb *lb;

	if (!u)
		return;
	lb = u->lb;
	pthread_mutex_lock(&lb->lock);
	upstream_unref_locked(u);
	pthread_mutex_unlock(&lb->lock);
}

static const struct upstream_names *names_find(const struct upstream *u, const struct conf_server *s)
{
	for (uint32_t i = 0; i < u->c->server_count; i++) {
		const struct conf_server *t = &u->c->servers[i];

		if (t->kind == CONF_SERVER_NAME && t->port == s->port && strcmp(t->host, s->host) == 0)
			return &u->names[i];
	}
	return NULL;
}

void upstream_inherit_names_locked(struct upstream *u, const struct upstream *from)
{
	for (uint32_t i = 0; i < u->c->server_count; i++) {
		const struct upstream_names *names = NULL;
		struct sock_addr *copy;

		if (u->c->servers[i].kind == CONF_SERVER_NAME)
			names = names_find(from, &u->c->servers[i]);
		if (!names || names->n == 0)
			continue;
		/* Without memory the resolver asks again: only a matter of time. */
		copy = malloc(names->n * sizeof(*copy));
		if (!copy)
			continue;
		memcpy(copy, names->addr, names->n * sizeof(*copy));
		free(u->names[i].addr);
		u->names[i] = (struct upstream_names){ copy, names->n };
	}
}

bool upstream_names_missing_locked(const struct upstream *u)
{
	for (uint32_t i = 0; i < u->c->server_count; i++)
		if (u->c->servers[i].kind == CONF_SERVER_NAME && u->names[i].n == 0)
			return true;
	return false;
}

/* ---- a worker's view ---- */

static void view_drop_set(struct upstream_view *v)
{
	struct lb *lb = v->upstream->lb;

	if (!v->set)
		return;
	balancer_deinit(&v->balancer);
	free(v->candidates);
	v->candidates = NULL;
	pthread_mutex_lock(&lb->lock);
	set_unref_locked(v->set);
	pthread_mutex_unlock(&lb->lock);
	v->set = NULL;
}

/* Takes the current set. Without memory the one it has goes on, and the next request tries again. */
static int view_refresh(struct upstream_view *v)
{
	struct upstream *u = v->upstream;
	struct upstream_view fresh = { .upstream = u, .worker = v->worker };
	int r;

	pthread_mutex_lock(&u->lb->lock);
	fresh.generation = atomic_load(&u->generation);
	fresh.set = u->set;
	atomic_fetch_add(&u->set->refs, 1);
	pthread_mutex_unlock(&u->lb->lock);

	fresh.candidates = calloc(fresh.set->n ? fresh.set->n : 1, sizeof(*fresh.candidates));
	r = fresh.candidates ? balancer_init(&fresh.balancer, u->c->balance, fresh.set->names, fresh.set->n,
					     now_ns() + v->worker)
			     : -ENOMEM;
	if (r < 0) {
		view_drop_set(&fresh);
		return r;
	}
	view_drop_set(v);
	*v = fresh;
	return 0;
}

int upstream_view_init(struct upstream_view *v, struct upstream *u, uint32_t worker)
{
	int r;

	*v = (struct upstream_view){ .upstream = upstream_ref(u), .worker = worker };
	r = view_refresh(v);
	if (r < 0) {
		upstream_unref(u);
		v->upstream = NULL;
	}
	return r;
}

void upstream_view_deinit(struct upstream_view *v)
{
	if (!v->upstream)
		return;
	view_drop_set(v);
	upstream_unref(v->upstream);
	*v = (struct upstream_view){ 0 };
}

static bool was_tried(const struct upstream_tried *t, const struct backend *b)
{
	for (uint32_t i = 0; t && i < t->n; i++)
		if (t->backend[i] == b)
			return true;
	return false;
}

struct backend *upstream_choose(struct upstream_view *v, struct str key, const struct upstream_tried *tried)
{
	int i;

	if (atomic_load_explicit(&v->upstream->generation, memory_order_acquire) != v->generation)
		view_refresh(v);
	for (uint32_t j = 0; j < v->set->n; j++) {
		const struct upstream_member *m = &v->set->member[j];

		v->candidates[j] = (struct balancer_candidate){
			.weight = MIN_OF(backend_weight(m->backend, m->weight), CONF_WEIGHT_MAX),
			.active = atomic_load_explicit(&m->backend->active, memory_order_relaxed),
			.usable = backend_usable(m->backend) && !was_tried(tried, m->backend),
		};
	}
	if (v->balancer.policy == CONF_BALANCE_ROUND_ROBIN && (!tried || tried->n == 0))
		i = balancer_turn(&v->balancer, v->candidates,
				  atomic_fetch_add_explicit(&v->set->turn, 1, memory_order_relaxed));
	else
		i = balancer_choose(&v->balancer, v->candidates, key);
	return i < 0 ? NULL : backend_ref(v->set->member[i].backend);
}
