/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of backends and their entries in the health table.
 *
 * A backend is in the registry as long as it lives, whoever holds it: so a
 * server that a reload takes out and the next puts back is the same backend
 * while some connection kept it. The last reference may be dropped by any
 * thread; a lookup that comes at that moment does not revive it.
 *
 * An entry of the table belongs to the backend that claimed it. At first the
 * table may hold what an earlier process left: claiming by name adopts it.
 */
#include "lb/backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "lb/check.h"
#include "lb/state.h"

#define NO_SLOT UINT32_MAX

static const char *const state_names[] = {
	[SLUICE_HEALTH_FREE] = "free",
	[SLUICE_HEALTH_UNKNOWN] = "unknown",
	[SLUICE_HEALTH_UP] = "up",
	[SLUICE_HEALTH_DOWN] = "down",
};
static const char *const admin_names[] = {
	[SLUICE_ADMIN_ENABLED] = "enabled",
	[SLUICE_ADMIN_DRAIN] = "drain",
	[SLUICE_ADMIN_DISABLED] = "disabled",
};

const char *backend_state_name(uint32_t state)
{
	return state < ARRAY_SIZE(state_names) ? state_names[state] : "invalid";
}

const char *backend_admin_name(uint32_t admin)
{
	return admin < ARRAY_SIZE(admin_names) ? admin_names[admin] : "invalid";
}

static bool same_text(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

static uint32_t bucket_of(const char *upstream, const char *text)
{
	return (uint32_t)(hash_u64(hash_bytes(upstream, strlen(upstream)) + hash_bytes(text, strlen(text))) %
			  LB_BUCKETS);
}

/* ---- entries of the health table ---- */

static bool slot_is(const struct sluice_health *h, const struct backend_key *key)
{
	return h->state != SLUICE_HEALTH_FREE && strncmp(h->upstream, key->upstream, sizeof(h->upstream)) == 0 &&
	       strncmp(h->backend, key->text, sizeof(h->backend)) == 0;
}

/* Takes an empty entry; atomically, as during an upgrade two processes use the table. */
static bool slot_take(struct sluice_health *h)
{
	enum sluice_health_state empty = SLUICE_HEALTH_FREE, taken = SLUICE_HEALTH_UNKNOWN;

	return __atomic_compare_exchange(&h->state, &empty, &taken, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint32_t slot_claim(struct lb *lb, const struct backend_key *key)
{
	for (uint32_t i = 0; i < lb->slot_count; i++)
		if (!lb->slot_used[i] && slot_is(&lb->slots[i], key))
			return i;
	for (uint32_t i = 0; i < lb->slot_count; i++)
		if (!lb->slot_used[i] && slot_take(&lb->slots[i]))
			return i;
	return NO_SLOT;
}

/* The operator's fields may be written by others at the same time. */
static void slot_clear(struct sluice_health *h)
{
	memset(h, 0, offsetof(struct sluice_health, state));
	__atomic_store_n(&h->admin, SLUICE_ADMIN_ENABLED, __ATOMIC_RELAXED);
	__atomic_store_n(&h->weight, 0, __ATOMIC_RELAXED);
	memset(&h->weight_conf, 0, sizeof(*h) - offsetof(struct sluice_health, weight_conf));
	__atomic_store_n(&h->state, SLUICE_HEALTH_FREE, __ATOMIC_RELEASE);
}

void backend_reap_slots_locked(struct lb *lb)
{
	if (atomic_load(&lb->frozen))
		return;
	for (uint32_t i = 0; i < lb->slot_count; i++)
		if (!lb->slot_used[i] && lb->slots[i].state != SLUICE_HEALTH_FREE)
			slot_clear(&lb->slots[i]);
}

/* Gives b an entry: the one of its name, an empty one, or memory of its own when the table is full. */
static int slot_attach(struct lb *lb, struct backend *b, const struct backend_key *key)
{
	uint32_t slot = slot_claim(lb, key);

	if (slot == NO_SLOT && lb->slots) {
		backend_reap_slots_locked(lb);
		slot = slot_claim(lb, key);
	}
	b->slot = slot;
	if (slot == NO_SLOT) {
		b->health = calloc(1, sizeof(*b->health));
		if (!b->health)
			return -ENOMEM;
		if (lb->slots && !lb->slots_full_told) {
			log_warn("health_table_full",
				 "backend=%s reason=\"%u entries; further backends work but are not "
				 "visible in the map\"",
				 b->text, lb->slot_count);
			lb->slots_full_told = true;
		}
	} else {
		b->health = &lb->slots[slot];
		lb->slot_used[slot] = 1;
	}
	return 0;
}

static void copy_text(char *out, size_t cap, const char *text)
{
	size_t n = strnlen(text, cap - 1);

	memcpy(out, text, n);
	memset(out + n, 0, cap - n);
}

/* What an earlier process knew stays true until a check says otherwise; nonsense in operator fields does not. */
static void slot_adopt(struct backend *b)
{
	struct sluice_health *h = b->health;
	uint32_t state = h->state;

	if (state != SLUICE_HEALTH_DOWN && state != SLUICE_HEALTH_UP)
		state = SLUICE_HEALTH_UNKNOWN;
	atomic_store(&b->state, state);
	if (atomic_load(&b->lb->frozen))
		return;
	if (backend_admin(b) > SLUICE_ADMIN_DISABLED)
		__atomic_store_n(&h->admin, SLUICE_ADMIN_ENABLED, __ATOMIC_RELAXED);
	copy_text(h->upstream, sizeof(h->upstream), b->upstream);
	copy_text(h->backend, sizeof(h->backend), b->text);
	h->state = state;
}

static void slot_release(struct lb *lb, struct backend *b)
{
	if (b->slot == NO_SLOT) {
		free(b->health);
		return;
	}
	lb->slot_used[b->slot] = 0;
	if (!atomic_load(&lb->frozen))
		slot_clear(b->health);
}

/* ---- registry ---- */

static void backend_free(struct backend *b)
{
	free((char *)(uintptr_t)b->upstream);
	free((char *)(uintptr_t)b->text);
	free((char *)(uintptr_t)b->tls_name);
	free(b);
}

/* Takes a reference unless the last one is just being dropped. */
static bool ref_unless_dead(struct backend *b)
{
	unsigned n = atomic_load(&b->refs);

	while (n > 0)
		if (atomic_compare_exchange_weak(&b->refs, &n, n + 1))
			return true;
	return false;
}

static struct backend *backend_new(struct lb *lb, const struct backend_key *key)
{
	struct backend *b = aligned_alloc(_Alignof(struct backend), sizeof(*b));

	if (!b)
		return NULL;
	memset(b, 0, sizeof(*b));
	b->lb = lb;
	b->id = ++lb->next_id;
	b->addr = *key->addr;
	b->upstream = str_dup(str_from(key->upstream));
	b->text = str_dup(str_from(key->text));
	b->tls_name = key->tls_name ? str_dup(str_from(key->tls_name)) : NULL;
	atomic_init(&b->refs, 1);
	atomic_init(&b->fall, LB_FALL_WITHOUT_CHECK);
	if (!b->upstream || !b->text || (key->tls_name && !b->tls_name) || slot_attach(lb, b, key) < 0) {
		backend_free(b);
		return NULL;
	}
	slot_adopt(b);
	return b;
}

struct backend *backend_obtain_locked(struct lb *lb, const struct backend_key *key)
{
	struct backend **bucket = &lb->registry[bucket_of(key->upstream, key->text)], *b, *twin = NULL;

	for (b = *bucket; b; b = b->next) {
		if (strcmp(b->upstream, key->upstream) != 0 || strcmp(b->text, key->text) != 0)
			continue;
		if (same_text(b->tls_name, key->tls_name) && ref_unless_dead(b))
			return b;
		twin = b;
	}
	b = backend_new(lb, key);
	if (!b)
		return NULL;
	/* The same address under another TLS name: the operator's word about it goes on. */
	if (twin && !atomic_load(&lb->frozen)) {
		__atomic_store_n(&b->health->admin, backend_admin(twin), __ATOMIC_RELAXED);
		__atomic_store_n(&b->health->weight, backend_weight(twin, 0), __ATOMIC_RELAXED);
	}
	b->next = *bucket;
	*bucket = b;
	return b;
}

static void backend_destroy_locked(struct backend *b)
{
	struct backend **at = &b->lb->registry[bucket_of(b->upstream, b->text)];

	while (*at != b)
		at = &(*at)->next;
	*at = b->next;
	slot_release(b->lb, b);
	log_debug("backend_gone", "upstream=%s backend=%s", b->upstream, b->text);
	backend_free(b);
}

struct backend *backend_ref(struct backend *b)
{
	atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
	return b;
}

void backend_unref_locked(struct backend *b)
{
	if (b && atomic_fetch_sub(&b->refs, 1) == 1)
		backend_destroy_locked(b);
}

void backend_unref(struct backend *b)
{
	struct lb *lb;

	if (!b || atomic_fetch_sub(&b->refs, 1) != 1)
		return;
	lb = b->lb;
	pthread_mutex_lock(&lb->lock);
	backend_destroy_locked(b);
	pthread_mutex_unlock(&lb->lock);
}

/* ---- state ---- */

bool backend_change_state(struct backend *b, uint32_t from, uint32_t to, const char *reason)
{
	char quoted[256];
	unsigned expected = from;

	if (from == to || !atomic_compare_exchange_strong(&b->state, &expected, to))
		return false;
	/* The health thread mirrors the rest; that a backend is down is in the table at once. */
	__atomic_store_n(&b->health->state, to, __ATOMIC_RELAXED);
	atomic_store(&b->changed_ns, now_ns());
	if (to == SLUICE_HEALTH_DOWN)
		log_warn("backend_down", "upstream=%s backend=%s reason=%s", b->upstream, b->text,
			 log_quote(quoted, sizeof(quoted), str_from(reason)));
	else if (from == SLUICE_HEALTH_DOWN)
		log_info("backend_up", "upstream=%s backend=%s", b->upstream, b->text);
	else
		log_debug("backend_first_check", "upstream=%s backend=%s", b->upstream, b->text);
	return true;
}

void backend_note_connect_failure(struct backend *b, int err)
{
	uint32_t state;
	char reason[128];

	/* Our own shortage must not take the backends away as well; a frozen process has nobody to bring them back. */
	if (check_error_is_ours(err) || atomic_load_explicit(&b->lb->frozen, memory_order_relaxed))
		return;
	atomic_store_explicit(&b->last_error, err < 0 ? -err : err, memory_order_relaxed);
	if (atomic_fetch_add(&b->failures, 1) + 1 < atomic_load(&b->fall))
		return;
	state = backend_state(b);
	if (state == SLUICE_HEALTH_DOWN)
		return;
	snprintf(reason, sizeof(reason), "requests can not connect: %s", strerror(err < 0 ? -err : err));
	if (backend_change_state(b, state, SLUICE_HEALTH_DOWN, reason))
		health_wake(b->lb->health);
}

void backend_note_ok_slow(struct backend *b)
{
	atomic_store_explicit(&b->failures, 0, memory_order_relaxed);
}

void backend_set_admin(struct backend *b, uint32_t admin)
{
	__atomic_store_n(&b->health->admin, admin, __ATOMIC_RELAXED);
	health_wake(b->lb->health);
}

void backend_set_weight(struct backend *b, uint32_t weight)
{
	__atomic_store_n(&b->health->weight, weight, __ATOMIC_RELAXED);
	health_wake(b->lb->health);
}

void backend_last_error(const struct backend *b, char *out, size_t cap)
{
	const char *text = b->health->last_error;
	size_t n = 0;

	while (n + 1 < cap && n < sizeof(b->health->last_error)) {
		out[n] = __atomic_load_n(&text[n], __ATOMIC_RELAXED);
		if (!out[n])
			return;
		n++;
	}
	out[n] = 0;
}
