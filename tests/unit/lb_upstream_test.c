/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Upstreams as workers see them: names that come and change, reloads, what is
 * adopted, and all of it from many threads. Addresses are loopback ones on a
 * port where nobody listens, as what is down gets probed.
 */
#include <pthread.h>
#include "lb_fixture.h"
#include "lb/state.h"

/* ---- a name server of our own ---- */

static pthread_mutex_t dns_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t dns_changed = PTHREAD_COND_INITIALIZER;
static const char *dns_answer; /* space-separated addresses; "hang"; NULL: no such name */
static unsigned dns_asked;

static void dns_set(const char *answer)
{
	pthread_mutex_lock(&dns_lock);
	dns_answer = answer;
	pthread_cond_broadcast(&dns_changed);
	pthread_mutex_unlock(&dns_lock);
}

/* Returns when lookups that began after this call have been answered n times. */
static void dns_await(unsigned n)
{
	struct timespec until;
	unsigned from;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT_MS / 1000;
	pthread_mutex_lock(&dns_lock);
	from = dns_asked;
	while (dns_asked < from + n)
		if (pthread_cond_timedwait(&dns_changed, &dns_lock, &until) != 0)
			fail_msg("no lookup came");
	pthread_mutex_unlock(&dns_lock);
}

static int dns_lookup(const char *host, uint16_t port, struct sock_addr *out, uint32_t cap, char *err, size_t errlen)
{
	char copy[256], *save = NULL, text[64];
	uint32_t n = 0;

	assert_string_equal(host, "app.example");
	pthread_mutex_lock(&dns_lock);
	while (dns_answer && strcmp(dns_answer, "hang") == 0)
		pthread_cond_wait(&dns_changed, &dns_lock);
	snprintf(copy, sizeof(copy), "%s", dns_answer ? dns_answer : "");
	dns_asked++;
	pthread_cond_broadcast(&dns_changed);
	pthread_mutex_unlock(&dns_lock);
	for (char *word = strtok_r(copy, " ", &save); word && n < cap; word = strtok_r(NULL, " ", &save)) {
		snprintf(text, sizeof(text), strchr(word, ':') ? "[%s]:%u" : "%s:%u", word, port);
		assert_int_equal(sock_parse(&out[n++], text), 0);
	}
	snprintf(err, errlen, "no such name");
	return n ? (int)n : -ENOENT;
}

/* ---- helpers ---- */

static struct upstream_view view_of(struct lb *lb, uint32_t index)
{
	struct lb_table *t = lb_table_get(lb);
	struct upstream_view v;

	assert_int_equal(upstream_view_init(&v, t->upstream[index], 0), 0);
	lb_table_unref(t);
	return v;
}

/* The next n choices as "a b c", "-" for none. */
static const char *choices(struct upstream_view *v, int n)
{
	static char text[1024];
	size_t at = 0;

	text[0] = 0;
	for (int i = 0; i < n; i++) {
		struct backend *b = upstream_choose(v, STR_NONE, NULL);

		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%s", i ? " " : "", b ? b->text : "-");
		backend_unref(b);
	}
	return text;
}

#define NAMED \
	"version: 1\nupstreams:\n  one:\n    servers: [{address: \"app.example:1\"}]\n    resolve_interval: 100ms\n"

/* ---- tests ---- */

static void all_addresses_of_a_name_are_used_and_followed(void **state)
{
	const struct lb_options o = { .lookup = dns_lookup };
	const struct conf *c = conf_text(NAMED);
	struct upstream_view v;
	uint64_t generation;
	struct lb *lb;
	(void)state;

	dns_set("127.0.0.2 127.0.0.1 2001:db8::1 127.0.0.1");
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	v = view_of(lb, 0);
	assert_string_equal(choices(&v, 4), "127.0.0.1:1 127.0.0.2:1 [2001:db8::1]:1 127.0.0.1:1");

	/* Another order is no change. */
	generation = atomic_load(&v.upstream->generation);
	dns_set("2001:db8::1 127.0.0.1 127.0.0.2");
	dns_await(3);
	assert_int_equal(atomic_load(&v.upstream->generation), generation);

	log_forget(NULL);
	dns_set("127.0.0.9");
	log_await("event=resolved", "addresses=1");
	assert_string_equal(choices(&v, 2), "127.0.0.9:1 127.0.0.9:1");

	/* A name that stops resolving keeps its addresses, and is complained about once. */
	dns_set(NULL);
	log_await("event=resolve_failed", "name=app.example reason=\"no such name\"");
	dns_await(3);
	assert_string_equal(choices(&v, 1), "127.0.0.9:1");
	dns_set("127.0.0.9");
	log_await_but("resolve_failed", "event=resolve_works", "app.example");

	upstream_view_deinit(&v);
	lb_stop(&lb);
	conf_unref(c);
}

static void names_that_come_late_are_picked_up(void **state)
{
	const struct lb_options o = { .lookup = dns_lookup };
	const struct conf *c = conf_text(NAMED);
	struct upstream_view v;
	struct lb *lb;
	(void)state;

	dns_set("hang");
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	log_await("event=upstream_empty", "upstream=one");
	v = view_of(lb, 0);
	assert_string_equal(choices(&v, 2), "- -");
	dns_set("127.0.0.1");
	log_await("event=resolved", "addresses=1");
	assert_string_equal(choices(&v, 2), "127.0.0.1:1 127.0.0.1:1");
	/* A lookup that hangs does not keep us from stopping. */
	dns_set("hang");
	upstream_view_deinit(&v);
	lb_stop(&lb);
	dns_set(NULL);
	conf_unref(c);
}

static void what_was_tried_is_not_tried_again(void **state)
{
	const struct lb_options o = { 0 };
	const struct conf *c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:1\"}, "
					 "{address: \"127.0.0.2:1\"}, {address: \"127.0.0.3:1\", weight: 0}]\n");
	struct upstream_tried tried = { 0 };
	struct upstream_view v;
	struct backend *a, *b;
	struct lb *lb;
	(void)state;

	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	v = view_of(lb, 0);
	a = upstream_choose(&v, STR_NONE, &tried);
	upstream_tried_add(&tried, a);
	b = upstream_choose(&v, STR_NONE, &tried);
	assert_string_equal(a->text, "127.0.0.1:1");
	assert_string_equal(b->text, "127.0.0.2:1");
	upstream_tried_add(&tried, b);
	assert_null(upstream_choose(&v, STR_NONE, &tried));
	backend_unref(a);
	backend_unref(b);
	upstream_view_deinit(&v);
	lb_stop(&lb);
	conf_unref(c);
}

static void reload_keeps_what_did_not_change(void **state)
{
	struct sluice_health table[8] = { 0 };
	const struct lb_options o = { .slots = table, .slot_count = ARRAY_SIZE(table), .lookup = dns_lookup };
	const struct conf *c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:1\"}, "
					 "{address: \"127.0.0.2:1\"}, {address: \"app.example:1\"}]\n");
	const struct conf *d = conf_text("version: 1\nupstreams:\n  zero:\n    servers: [{address: \"127.0.0.1:1\"}]\n"
					 "  one:\n    servers: [{address: \"127.0.0.2:1\", weight: 3}, "
					 "{address: \"127.0.0.4:1\"}, {address: \"app.example:1\"}]\n");
	struct upstream_view old, fresh;
	struct backend *kept, *gone, *again;
	struct lb *lb;
	(void)state;

	dns_set("127.0.0.7");
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	old = view_of(lb, 0);
	kept = find(lb, "one/127.0.0.2:1");
	gone = find(lb, "one/127.0.0.1:1");
	for (int i = 0; i < 3; i++)
		backend_note_connect_failure(kept, ECONNREFUSED);
	backend_set_weight(kept, 5);
	upstream_count_status(&old, 200);
	assert_int_equal(state_of(lb, "127.0.0.2:1"), SLUICE_HEALTH_DOWN);

	/* No answer at the moment: the address known from before goes on. */
	dns_set("hang");
	assert_int_equal(lb_apply(lb, d), 0);
	fresh = view_of(lb, 1);
	again = find(lb, "one/127.0.0.2:1");
	assert_ptr_equal(again, kept);
	assert_int_equal(backend_state(again), SLUICE_HEALTH_DOWN);
	assert_int_equal(backend_weight(again, 3), 5);
	backend_unref(again);
	assert_int_equal(lb_find_backend(lb, STR("one/127.0.0.1:1"), &again), 1);
	assert_int_equal(lb_find_backend(lb, STR("one/127.0.0.4:1"), &again), 0);
	backend_unref(again);
	assert_string_equal(choices(&fresh, 3), "127.0.0.4:1 127.0.0.7:1 127.0.0.4:1");
	/* A worker that has not gone over yet serves from the old one. */
	assert_string_equal(choices(&old, 3), "127.0.0.1:1 127.0.0.7:1 127.0.0.1:1");
	assert_int_equal(upstream_status_total(fresh.upstream->stats, 200), 1);
	upstream_view_deinit(&old);

	/* Its entry in the table goes with the last holder of the backend. */
	assert_string_equal(gone->health->upstream, "one");
	backend_unref(gone);
	log_await("event=backend_gone", "backend=127.0.0.1:1");
	backend_unref(kept);
	upstream_view_deinit(&fresh);
	dns_set(NULL);
	lb_stop(&lb);
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		assert_false(strcmp(table[i].upstream, "one") == 0 && strcmp(table[i].backend, "127.0.0.1:1") == 0);
	conf_unref(c);
	conf_unref(d);
}

static void put_entry(struct sluice_health *h, const char *upstream, const char *backend, uint32_t state,
		      uint32_t admin, uint32_t weight)
{
	snprintf(h->upstream, sizeof(h->upstream), "%s", upstream);
	snprintf(h->backend, sizeof(h->backend), "%s", backend);
	h->state = state;
	h->admin = admin;
	h->weight = weight;
	h->checks_ok = 1000;
}

static void entries_of_an_earlier_process_are_adopted_by_name(void **state)
{
	struct sluice_health table[4] = { 0 };
	const struct lb_options o = { .slots = table, .slot_count = ARRAY_SIZE(table) };
	const struct conf *c =
		conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:1\"}, {address: "
			  "\"127.0.0.2:1\"}, {address: \"127.0.0.3:1\"}, {address: \"127.0.0.4:1\"}, "
			  "{address: \"127.0.0.5:1\"}]\n");
	struct upstream_view v;
	struct lb *lb;
	(void)state;

	put_entry(&table[0], "other", "127.0.0.1:1", SLUICE_HEALTH_UP, SLUICE_ADMIN_DISABLED, 0);
	put_entry(&table[1], "one", "127.0.0.3:1", SLUICE_HEALTH_DOWN, SLUICE_ADMIN_ENABLED, 0);
	put_entry(&table[2], "one", "127.0.0.2:1", SLUICE_HEALTH_UP, SLUICE_ADMIN_DRAIN, 7);
	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	/* Four entries: the stale one makes room, the fifth backend does without. */
	log_await("event=health_table_full", "4 entries");
	v = view_of(lb, 0);
	assert_string_equal(choices(&v, 4), "127.0.0.1:1 127.0.0.4:1 127.0.0.5:1 127.0.0.1:1");
	assert_int_equal(state_of(lb, "127.0.0.3:1"), SLUICE_HEALTH_DOWN);
	assert_int_equal(table[2].weight, 7);
	upstream_view_deinit(&v);
	lb_stop(&lb);
	assert_string_equal(table[2].backend, "127.0.0.2:1");
	assert_int_equal(table[2].checks_ok, 1000);
	conf_unref(c);
}

static void backends_are_found_by_name(void **state)
{
	static const struct {
		const char *name;
		int want;
	} rows[] = {
		{ "one/127.0.0.1:1", 0 },
		{ "two/127.0.0.1:1", 0 },
		{ "127.0.0.1:1", 2 },
		{ "127.0.0.2:1", 0 },
		{ "unix:/run/x", 0 },
		{ "two/unix:/run/x", 0 },
		{ "one/unix:/run/x", 1 },
		{ "one/", 1 },
		{ "", 1 },
		{ "three/127.0.0.1:1", 1 },
		{ "127.0.0.1", 1 },
	};
	const struct lb_options o = { 0 };
	const struct conf *c =
		conf_text("version: 1\nupstreams:\n"
			  "  one:\n    servers: [{address: \"127.0.0.1:1\"}]\n"
			  "  two:\n    servers: [{address: \"127.0.0.1:1\"}, {address: \"127.0.0.2:1\"}, "
			  "{address: \"unix:/run/x\"}]\n");
	struct lb *lb;
	(void)state;

	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct backend *b = NULL;
		int r = lb_find_backend(lb, str_from(rows[i].name), &b);

		if (r != rows[i].want)
			fail_msg("%s: %d, want %d", rows[i].name, r, rows[i].want);
		if (r == 0 && rows[i].name[3] == '/')
			assert_memory_equal(b->upstream, rows[i].name, 3);
		backend_unref(b);
	}
	lb_stop(&lb);
	conf_unref(c);
}

/* After a hand-over the table is the other process's. */
static void frozen_writes_nothing(void **state)
{
	struct sluice_health table[1] = { 0 }, before;
	const struct lb_options o = { .slots = table, .slot_count = 1 };
	const struct conf *c = conf_text("version: 1\nupstreams:\n  one:\n    servers: [{address: \"127.0.0.1:1\"}]\n");
	struct backend *b;
	struct lb *lb;
	(void)state;

	assert_int_equal(lb_start_with(&lb, c, &o), 0);
	b = find(lb, "127.0.0.1:1");
	lb_freeze(lb);
	put_entry(&table[0], "one", "127.0.0.1:1", SLUICE_HEALTH_UP, SLUICE_ADMIN_DRAIN, 4);
	before = table[0];
	for (int i = 0; i < 10; i++)
		backend_note_connect_failure(b, ECONNREFUSED);
	assert_int_not_equal(backend_state(b), SLUICE_HEALTH_DOWN);
	backend_unref(b);
	lb_stop(&lb);
	assert_memory_equal(&before, &table[0], sizeof(before));
	conf_unref(c);
}

/* ---- everything at once ---- */

struct worker {
	pthread_t thread;
	struct lb *lb;
	uint32_t index;
	unsigned chosen;
	atomic_bool *stop;
};

static void *worker_run(void *arg)
{
	struct worker *w = arg;
	struct upstream_view v = { 0 };

	for (int i = 0; !atomic_load(w->stop); i++) {
		struct backend *b;

		/* A worker goes over to a new table now and then. */
		if (i % 100 == 0) {
			struct lb_table *t = lb_table_get(w->lb);

			upstream_view_deinit(&v);
			if (upstream_view_init(&v, t->upstream[0], w->index) < 0)
				abort();
			lb_table_unref(t);
		}
		b = upstream_choose(&v, STR("key"), NULL);
		if (!b)
			continue;
		w->chosen++;
		backend_request_begin(b);
		backend_connection_opened(b);
		upstream_count_status(&v, 200);
		if (i % 7 == 0)
			backend_note_connect_failure(b, ECONNREFUSED);
		else
			backend_note_ok(b);
		backend_connection_closed(b);
		backend_request_end(b);
		backend_unref(b);
	}
	upstream_view_deinit(&v);
	return NULL;
}

struct totals {
	uint64_t requests, active, connections;
};

static void add_up(void *ctx, const struct upstream *u, struct backend *b, uint32_t weight)
{
	struct totals *t = ctx;
	(void)u;
	(void)weight;

	t->requests += atomic_load(&b->requests);
	t->active += atomic_load(&b->active);
	t->connections += atomic_load(&b->connections);
}

static void workers_names_reloads_and_operators_at_once(void **state)
{
	struct sluice_health table[16] = { 0 };
	const struct lb_options o = { .slots = table, .slot_count = ARRAY_SIZE(table), .lookup = dns_lookup };
	unsigned port;
	int fd = port_accepting(&port);
	const struct conf *c[2];
	struct worker w[4];
	struct totals totals = { 0 };
	atomic_bool stop = false;
	uint64_t counted;
	struct lb *lb;
	(void)state;

	for (int i = 0; i < 2; i++)
		c[i] = conf_text(
			"version: 1\nthreads: 4\nupstreams:\n  one:\n    balance: %s\n    resolve_interval: 100ms\n"
			"    servers: [{address: \"127.0.0.1:%u\"}, {address: \"app.example:%u\", weight: %d}]\n"
			"    health_check: {type: tcp, interval: 10ms, timeout: 5s}\n",
			i ? "maglev" : "least_conn", port, port, i + 1);
	dns_set("127.0.0.2 127.0.0.3");
	log_set_level("error");
	assert_int_equal(lb_start_with(&lb, c[0], &o), 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(w); i++) {
		w[i] = (struct worker){ .lb = lb, .index = i, .stop = &stop };
		assert_int_equal(pthread_create(&w[i].thread, NULL, worker_run, &w[i]), 0);
	}
	for (int i = 0; i < 30; i++) {
		struct backend *b = NULL;

		dns_set(i % 2 ? "127.0.0.2 127.0.0.3" : "127.0.0.3");
		dns_await(1);
		assert_int_equal(lb_apply(lb, c[(i / 3) % 2]), 0);
		if (lb_find_backend(lb, STR("one/127.0.0.3"), &b) == 0)
			fail_msg("found without its port");
		__atomic_store_n(&table[i % 4].admin, i % 3, __ATOMIC_RELAXED);
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < ARRAY_SIZE(w); i++)
		pthread_join(w[i].thread, NULL);
	lb_each_backend(lb, add_up, &totals);
	counted = upstream_status_total(lb->stats, 200);
	assert_int_equal(counted, w[0].chosen + w[1].chosen + w[2].chosen + w[3].chosen);
	assert_int_equal(totals.active, 0);
	assert_int_equal(totals.connections, 0);
	assert_true(totals.requests <= counted);
	lb_stop(&lb);
	log_set_level("debug");
	conf_unref(c[0]);
	conf_unref(c[1]);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(all_addresses_of_a_name_are_used_and_followed, log_forget),
		cmocka_unit_test_setup(names_that_come_late_are_picked_up, log_forget),
		cmocka_unit_test_setup(what_was_tried_is_not_tried_again, log_forget),
		cmocka_unit_test_setup(reload_keeps_what_did_not_change, log_forget),
		cmocka_unit_test_setup(entries_of_an_earlier_process_are_adopted_by_name, log_forget),
		cmocka_unit_test_setup(backends_are_found_by_name, log_forget),
		cmocka_unit_test_setup(frozen_writes_nothing, log_forget),
		cmocka_unit_test_setup(workers_names_reloads_and_operators_at_once, log_forget),
	};

	log_capture();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
