/* SPDX-License-Identifier: Apache-2.0 */
#include "lb/lb.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "kern/bpf.h"
#include "lb/resolver.h"
#include "lb/state.h"

#define RESOLVER_THREADS 4u
#define FIRST_ANSWERS_MS 2000u

/* ---- tables ---- */

static void table_unref_locked(struct lb_table *t)
{
	if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
		return;
	for (uint32_t i = 0; i < t->n; i++)
		upstream_unref_locked(t->upstream[i]);
	conf_unref(t->conf);
	free(t);
}

static const struct upstream *table_find(const struct lb_table *t, const char *name)
{
	for (uint32_t i = 0; t && i < t->n; i++)
		if (strcmp(t->upstream[i]->c->name, name) == 0)
			return t->upstream[i];
	return NULL;
}

static struct lb_table *table_new_locked(struct lb *lb, const struct conf *conf)
{
	struct lb_table *t = calloc(1, sizeof(*t) + conf->upstream_count * sizeof(t->upstream[0]));

	if (!t)
		return NULL;
	atomic_init(&t->refs, 1);
	t->conf = conf_ref(conf);
	for (uint32_t i = 0; i < conf->upstream_count; i++) {
		struct upstream *u = upstream_new_locked(lb, conf, i);
		const struct upstream *before = table_find(lb->table, conf->upstreams[i].name);

		if (!u)
			goto fail;
		t->upstream[t->n++] = u;
		if (before)
			upstream_inherit_names_locked(u, before);
		if (upstream_rebuild_locked(u) < 0)
			goto fail;
	}
	return t;
fail:
	table_unref_locked(t);
	return NULL;
}

struct lb_table *lb_table_get(struct lb *lb)
{
	struct lb_table *t;

	pthread_mutex_lock(&lb->lock);
	t = lb->table;
	atomic_fetch_add(&t->refs, 1);
	pthread_mutex_unlock(&lb->lock);
	return t;
}

void lb_table_unref(struct lb_table *t)
{
	struct lb *lb;

	if (!t)
		return;
	if (t->n == 0) {
		table_unref_locked(t);
		return;
	}
	lb = t->upstream[0]->lb;
	pthread_mutex_lock(&lb->lock);
	table_unref_locked(t);
	pthread_mutex_unlock(&lb->lock);
}

/* ---- names ---- */

static bool names_differ(const struct upstream_names *names, const struct sock_addr *a, uint32_t n)
{
	if (names->n != n)
		return true;
	for (uint32_t i = 0; i < n; i++)
		if (names->addr[i].len != a[i].len || memcmp(&names->addr[i].ss, &a[i].ss, a[i].len) != 0)
			return true;
	return false;
}

/* From a resolver thread. Without memory the old addresses stay until the next answer. */
static void names_found(void *owner, uint32_t index, const struct sock_addr *a, uint32_t n)
{
	struct upstream *u = owner;
	struct upstream_names *names = &u->names[index];
	struct sock_addr *copy = malloc(n * sizeof(*copy)), *old = NULL;
	uint32_t old_n = 0;
	bool changed = false;

	if (!copy)
		return;
	memcpy(copy, a, n * sizeof(*copy));
	pthread_mutex_lock(&u->lb->lock);
	if (names_differ(names, a, n)) {
		old = names->addr;
		old_n = names->n;
		*names = (struct upstream_names){ copy, n };
		changed = upstream_rebuild_locked(u) == 0;
		copy = old;
		if (!changed) {
			copy = names->addr;
			*names = (struct upstream_names){ old, old_n };
		}
	}
	pthread_mutex_unlock(&u->lb->lock);
	free(copy);
	if (!changed)
		return;
	log_info("resolved", "upstream=%s backend=%s addresses=%u", u->c->name, u->c->servers[index].address, n);
	health_wake(u->lb->health);
}

static void names_dropped(void *owner)
{
	upstream_unref(owner);
}

/* Hands all names of the current table to the resolver. 0 or -ENOMEM. */
static int names_watch(struct lb *lb)
{
	struct lb_table *t = lb_table_get(lb);
	struct resolver_name *names;
	size_t n = 0;
	int r;

	for (uint32_t i = 0; i < t->n; i++)
		n += t->upstream[i]->c->server_count;
	names = calloc(n + 1, sizeof(*names));
	n = 0;
	for (uint32_t i = 0; names && i < t->n; i++)
		for (uint32_t j = 0; j < t->upstream[i]->c->server_count; j++) {
			struct upstream *u = t->upstream[i];
			const struct conf_server *s = &u->c->servers[j];

			if (s->kind != CONF_SERVER_NAME)
				continue;
			pthread_mutex_lock(&lb->lock);
			names[n] = (struct resolver_name){
				.host = s->host,
				.port = s->port,
				.interval_ms = u->c->resolve_interval_ms,
				.owner = upstream_ref(u),
				.index = j,
				.known = u->names[j].n > 0,
			};
			n++;
			pthread_mutex_unlock(&lb->lock);
		}
	lb_table_unref(t);
	r = names ? resolver_set(lb->resolver, names, n) : -ENOMEM;
	free(names);
	return r;
}

static void names_wait(struct lb *lb)
{
	struct lb_table *t;

	resolver_wait_first(lb->resolver, FIRST_ANSWERS_MS);
	t = lb_table_get(lb);
	pthread_mutex_lock(&lb->lock);
	for (uint32_t i = 0; i < t->n; i++)
		if (t->upstream[i]->set->n == 0)
			log_warn("upstream_empty",
				 "upstream=%s reason=\"no name has been resolved yet; requests get 503\"",
				 t->upstream[i]->c->name);
	pthread_mutex_unlock(&lb->lock);
	lb_table_unref(t);
}

/* ---- life ---- */

static void lb_free(struct lb *lb)
{
	atomic_store(&lb->frozen, true); /* the table keeps what it knows, for the next process */
	pthread_mutex_lock(&lb->lock);
	table_unref_locked(lb->table);
	pthread_mutex_unlock(&lb->lock);
	health_free(lb->health);
	while (lb->stats) {
		struct upstream_stats *s = lb->stats;

		lb->stats = s->next;
		free(s);
	}
	free(lb->slot_used);
	pthread_mutex_destroy(&lb->lock);
	free(lb);
}

int lb_start_with(struct lb **out, const struct conf *conf, const struct lb_options *o)
{
	const struct resolver_calls calls = { .lookup = o->lookup ? o->lookup : resolver_lookup_system,
					      .found = names_found,
					      .dropped = names_dropped };
	struct lb *lb = calloc(1, sizeof(*lb));
	int r = -ENOMEM;

	if (!lb)
		return -ENOMEM;
	pthread_mutex_init(&lb->lock, NULL);
	lb->workers = conf->threads ? conf->threads : 1;
	atomic_store(&lb->generation, 1);
	lb->slots = o->slots;
	lb->slot_count = o->slots ? o->slot_count : 0;
	lb->slot_used = calloc(lb->slot_count + 1, 1);
	if (!lb->slot_used)
		goto fail;
	pthread_mutex_lock(&lb->lock);
	lb->table = table_new_locked(lb, conf);
	pthread_mutex_unlock(&lb->lock);
	if (!lb->table)
		goto fail;
	r = resolver_start(&lb->resolver, &calls, RESOLVER_THREADS);
	if (r < 0)
		goto fail;
	/* Checks of addresses that need no name start while names are being asked for. */
	r = health_start(&lb->health, lb);
	if (r == 0)
		r = names_watch(lb);
	if (r < 0) {
		lb_freeze(lb);
		goto fail;
	}
	names_wait(lb);
	*out = lb;
	return 0;
fail:
	lb_free(lb);
	return r;
}

int lb_start(struct lb **out, const struct conf *conf, struct kern *k)
{
	struct lb_options o = { 0 };

	if (k)
		o.slots = kern_health(k, &o.slot_count);
	return lb_start_with(out, conf, &o);
}

int lb_apply(struct lb *lb, const struct conf *conf)
{
	struct lb_table *fresh, *old;

	pthread_mutex_lock(&lb->lock);
	fresh = table_new_locked(lb, conf);
	if (fresh) {
		old = lb->table;
		lb->table = fresh;
		atomic_fetch_add(&lb->generation, 1);
		atomic_fetch_add(&lb->version, 1);
		table_unref_locked(old);
	}
	pthread_mutex_unlock(&lb->lock);
	if (!fresh)
		return -ENOMEM;
	if (!atomic_load(&lb->frozen) && names_watch(lb) < 0)
		log_warn("resolve_failed",
			 "reason=\"out of memory; names keep their addresses until the next reload\"");
	health_wake(lb->health);
	return 0;
}

void lb_freeze(struct lb *lb)
{
	if (atomic_exchange(&lb->frozen, true))
		return;
	if (lb->health)
		health_stop(lb->health);
	resolver_stop(&lb->resolver);
}

void lb_stop(struct lb **lbp)
{
	struct lb *lb = *lbp;

	*lbp = NULL;
	if (!lb)
		return;
	lb_freeze(lb);
	lb_free(lb);
}

/* ---- looking ---- */

int lb_find_backend(struct lb *lb, struct str name, struct backend **out)
{
	struct backend *found = NULL;
	int r = 1;

	pthread_mutex_lock(&lb->lock);
	for (uint32_t i = 0; i < lb->table->n; i++) {
		const struct upstream *u = lb->table->upstream[i];
		struct str rest = name, prefix = str_from(u->c->name);
		bool qualified =
			name.n > prefix.n && name.p[prefix.n] == '/' && memcmp(name.p, prefix.p, prefix.n) == 0;

		if (qualified)
			rest = (struct str){ name.p + prefix.n + 1, name.n - prefix.n - 1 };
		for (uint32_t j = 0; j < u->set->n; j++) {
			struct backend *b = u->set->member[j].backend;

			if (!str_eqz(rest, b->text))
				continue;
			r = found ? 2 : 0;
			found = b;
		}
		if (qualified && found)
			break;
	}
	if (r == 0)
		*out = backend_ref(found);
	pthread_mutex_unlock(&lb->lock);
	return r;
}

void lb_each_backend(struct lb *lb, void (*fn)(void *ctx, const struct upstream *u, struct backend *b, uint32_t weight),
		     void *ctx)
{
	pthread_mutex_lock(&lb->lock);
	for (uint32_t i = 0; i < lb->table->n; i++) {
		const struct upstream *u = lb->table->upstream[i];

		for (uint32_t j = 0; j < u->set->n; j++)
			fn(ctx, u, u->set->member[j].backend, u->set->member[j].weight);
	}
	pthread_mutex_unlock(&lb->lock);
}

void lb_restore_status(struct lb *lb, const char *upstream, unsigned status, uint64_t n)
{
	pthread_mutex_lock(&lb->lock);
	for (struct upstream_stats *s = lb->stats; s && status < UPSTREAM_STATUS_MAX; s = s->next)
		if (strcmp(s->name, upstream) == 0)
			atomic_fetch_add_explicit(&s->shard[0].code[status], n, memory_order_relaxed);
	pthread_mutex_unlock(&lb->lock);
}

void lb_restore_health(struct lb *lb, struct str backend, unsigned state, unsigned admin, uint32_t weight)
{
	struct backend *b;

	if (lb_find_backend(lb, backend, &b) != 0)
		return;
	if (admin <= SLUICE_ADMIN_DISABLED)
		backend_set_admin(b, admin);
	backend_set_weight(b, weight);
	if (state == SLUICE_HEALTH_DOWN)
		backend_change_state(b, SLUICE_HEALTH_UNKNOWN, state, "the process before this one knew");
	backend_unref(b);
}

void lb_each_stats(struct lb *lb, void (*fn)(void *ctx, const struct upstream_stats *s), void *ctx)
{
	pthread_mutex_lock(&lb->lock);
	for (const struct upstream_stats *s = lb->stats; s; s = s->next)
		fn(ctx, s);
	pthread_mutex_unlock(&lb->lock);
}
