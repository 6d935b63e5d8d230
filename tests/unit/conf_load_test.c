/* SPDX-License-Identifier: Apache-2.0 */
/* What a good file becomes: every key's value, every default, sharing, and what is still missing to serve. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <arpa/inet.h>
#include <cmocka.h>

#include "base/fault.h"
#include "conf/conf.h"

#define ONE_SERVER "upstreams: {one: {servers: [{address: \"127.0.0.1:1\"}]}}\n"

static struct conf *load(const char *text)
{
	struct buf errors = BUF_INIT;
	struct conf *c;

	if (conf_load_buffer(&c, "t.yaml", text, strlen(text), &errors) != 0)
		fail_msg(STR_FMT, STR_ARG(buf_str(&errors)));
	buf_deinit(&errors);
	return c;
}

static struct conf *load_file(const char *path)
{
	struct buf errors = BUF_INIT;
	struct conf *c;

	if (conf_load(&c, path, &errors) != 0)
		fail_msg(STR_FMT, STR_ARG(buf_str(&errors)));
	buf_deinit(&errors);
	return c;
}

static void a_byte_order_mark_is_no_text(void **state)
{
	static const char text[] = "\xef\xbb\xbf"
				   "version: 1\nthreads: 3\n";
	struct conf *c = load(text);

	(void)state;
	assert_int_equal(c->threads, 3);
	conf_unref(c);
}

static void pingoras_example_loads_and_says_what_is_missing(void **state)
{
	struct conf *c = load("---\n"
			      "version: 1\n"
			      "threads: 2\n"
			      "pid_file: /tmp/load_balancer.pid\n"
			      "error_log: /tmp/load_balancer_err.log\n"
			      "upgrade_sock: /tmp/load_balancer.sock\n");
	struct buf missing = BUF_INIT;

	(void)state;
	assert_int_equal(c->threads, 2);
	assert_string_equal(c->pid_file, "/tmp/load_balancer.pid");
	assert_string_equal(c->error_log, "/tmp/load_balancer_err.log");
	assert_string_equal(c->upgrade_sock, "/tmp/load_balancer.sock");
	assert_int_equal(conf_check_serve(c, &missing), 1);
	assert_true(str_eqz(buf_str(&missing), "t.yaml: there are no listeners, add for example:\n"
					       "listeners:\n"
					       "  - address: 0.0.0.0:6188\n"
					       "t.yaml: there are no upstreams, add for example:\n"
					       "upstreams:\n"
					       "  one:\n"
					       "    servers:\n"
					       "      - address: \"127.0.0.1:8080\"\n"));
	buf_deinit(&missing);
	conf_unref(c);
}

/* What check_serve says to add is enough, word for word. */
static void the_advice_makes_it_serve(void **state)
{
	struct buf file = BUF_INIT, missing = BUF_INIT;
	struct conf *c = load("version: 1\n");
	char *line, *save = NULL, *copy;

	(void)state;
	assert_int_equal(conf_check_serve(c, &missing), 1);
	conf_unref(c);
	buf_append(&file, "version: 1\n", 11);
	copy = str_dup(buf_str(&missing));
	for (line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		if (strncmp(line, "t.yaml: ", 8) != 0)
			buf_printf(&file, "%s\n", line);
	buf_append(&file, "", 1);
	c = load(buf_data(&file));
	missing.len = 0;
	assert_int_equal(conf_check_serve(c, &missing), 0);
	assert_int_equal(missing.len, 0);
	conf_unref(c);
	free(copy);
	buf_deinit(&file);
	buf_deinit(&missing);
}

static void every_default_is_filled_in(void **state)
{
	struct conf *c = load("version: 1\n" ONE_SERVER "listeners: [{address: 127.0.0.1:6188}]\n");
	const struct conf_listener *l = &c->listeners[0];
	const struct conf_upstream *u = &c->upstreams[0];

	(void)state;
	assert_in_range(c->threads, 1, 16);
	assert_null(c->pid_file);
	assert_null(c->error_log);
	assert_null(c->upgrade_sock);
	assert_null(c->ca_file);
	assert_null(c->user);
	assert_null(c->group);
	assert_false(c->daemon);
	assert_int_equal(c->grace_period_ms, 0);
	assert_int_equal(c->graceful_shutdown_timeout_ms, 300000);
	assert_string_equal(c->log_level, "info");
	assert_null(c->access_log.path);
	assert_int_equal(c->admin.http.len, 0);
	assert_null(c->admin.socket);
	assert_string_equal(c->pin_dir, "/sys/fs/bpf/sluice");
	assert_int_equal(c->splice.engine, CONF_ENGINE_AUTO);
	assert_int_equal(c->splice.min_bytes, 65536);
	assert_int_equal(c->splice.window, 1 << 20);
	assert_true(c->splice.memory >= c->splice.window);

	assert_int_equal(c->listener_count, 1);
	assert_string_equal(l->address.text, "127.0.0.1:6188");
	assert_int_equal(ntohs(l->address.in.sin_port), 6188);
	assert_int_equal(l->timeouts.head_ms, 15000);
	assert_int_equal(l->timeouts.body_ms, 30000);
	assert_int_equal(l->timeouts.idle_ms, 60000);
	assert_int_equal(l->timeouts.write_ms, 60000);
	assert_int_equal(l->min_rate.body, 240);
	assert_int_equal(l->min_rate.write, 240);
	assert_int_equal(l->limits.head_bytes, 65536);
	assert_int_equal(l->limits.fields, 128);
	assert_int_equal(l->limits.body_bytes, 0);
	assert_int_equal(l->limits.connections, 0);
	assert_false(l->tls.enabled);
	assert_true(l->forwarded.for_ && l->forwarded.proto && l->forwarded.host);
	assert_string_equal(l->via, "sluice");
	/* Without routes everything goes to the only upstream. */
	assert_int_equal(l->route_count, 1);
	assert_ptr_equal(conf_route_match(l, STR("x"), STR("/y")), &l->routes[0]);

	assert_string_equal(u->name, "one");
	assert_int_equal(u->balance, CONF_BALANCE_ROUND_ROBIN);
	assert_false(u->tls.enabled);
	assert_null(u->host);
	assert_int_equal(u->server_count, 1);
	assert_int_equal(u->servers[0].weight, 1);
	assert_null(u->servers[0].tls_name);
	assert_int_equal(u->resolve_interval_ms, 30000);
	assert_int_equal(u->health_check.type, CONF_HEALTH_NONE);
	assert_int_equal(u->timeouts.connect_ms, 5000);
	assert_int_equal(u->timeouts.tls_ms, 5000);
	assert_int_equal(u->timeouts.read_ms, 60000);
	assert_int_equal(u->timeouts.write_ms, 60000);
	assert_int_equal(u->timeouts.idle_ms, 60000);
	assert_int_equal(u->keepalive_max_idle, 128);
	assert_int_equal(u->retries.max, 2);
	assert_int_equal(u->retries.on, CONF_RETRY_CONNECT_FAILURE | CONF_RETRY_REUSED_CONNECTION);
	conf_unref(c);
}

static void every_key_arrives(void **state)
{
	struct conf *c = load(
		"version: 1\nthreads: 3\npid_file: a\nerror_log: b\nupgrade_sock: c\nuser: d\ngroup: e\ndaemon: true\n"
		"grace_period_seconds: 4\ngraceful_shutdown_timeout_seconds: 5\nupstream_keepalive_pool_size: 6\nmax_retries: 7\n"
		"ca_file: f\nlog_level: debug\naccess_log: {path: g, format: json}\nadmin: {http: \"[::1]:1\", socket: h}\n"
		"bpf: {pin_dir: /i}\nsplice: {engine: copy, min_bytes: 8, window: 8KiB, memory: 9KiB}\n"
		"listeners:\n"
		"  - {address: \"unix:/j\", proxy_protocol: true, timeouts: {head: 10ms, body: 11s, idle: 12m, write: 13h},\n"
		"     min_rate: {body: 14, write: 15}, limits: {head_bytes: 16KiB, fields: 17, body_bytes: 18MB, connections: 19},\n"
		"     tls: {certificates: [{cert: k, key: l, ocsp: m}, {cert: n, key: o}], min_version: \"1.3\"}, via: \"\",\n"
		"     forwarded: {for: false, proto: false, host: false},\n"
		"     routes: [{host: \"*.P.q\", path_prefix: /r, upstream: y}, {upstream: x}]}\n"
		"upstreams:\n"
		"  x: {servers: [{address: \"s:20\"}]}\n"
		"  y: {balance: ketama, hash: {key: \"header:X-User\"}, host: \"t:21\", resolve_interval: 22s,\n"
		"     tls: {sni: U.v, verify: false, ca_file: w, crl_file: aa, cert: bb, key: cc, ktls: require, min_version: 1.3},\n"
		"     servers: [{address: \"unix:/dd\", weight: 0}, {address: \"[::2]:23\", weight: 256}, {address: \"ee:24\"}],\n"
		"     health_check: {type: http, path: /ff, host: gg, expect_status: [200, 301-302], interval: 25s, timeout: 26s, rise: 27, fall: 28},\n"
		"     timeouts: {connect: 29s, tls: 30s, read: 31s, write: 32s, idle: 33s}, keepalive: {max_idle: 0},\n"
		"     retries: {max: 0, on: []}}\n");
	const struct conf_listener *l = &c->listeners[0];
	const struct conf_upstream *x = &c->upstreams[0], *y = &c->upstreams[1];

	(void)state;
	assert_int_equal(c->threads, 3);
	assert_string_equal(c->user, "d");
	assert_string_equal(c->group, "e");
	assert_true(c->daemon);
	assert_int_equal(c->grace_period_ms, 4000);
	assert_int_equal(c->graceful_shutdown_timeout_ms, 5000);
	assert_string_equal(c->log_level, "debug");
	assert_string_equal(c->access_log.path, "g");
	assert_int_equal(c->access_log.format, CONF_LOG_JSON);
	assert_int_equal(c->admin.http.sa.sa_family, AF_INET6);
	assert_string_equal(c->admin.socket, "h");
	assert_string_equal(c->pin_dir, "/i");
	assert_int_equal(c->splice.engine, CONF_ENGINE_COPY);
	assert_int_equal(c->splice.min_bytes, 8);
	assert_int_equal(c->splice.window, 8192);
	assert_int_equal(c->splice.memory, 9216);

	assert_int_equal(l->address.sa.sa_family, AF_UNIX);
	assert_string_equal(l->address.un.sun_path, "/j");
	assert_true(l->proxy_protocol);
	assert_int_equal(l->timeouts.head_ms, 10);
	assert_int_equal(l->timeouts.body_ms, 11000);
	assert_int_equal(l->timeouts.idle_ms, 720000);
	assert_int_equal(l->timeouts.write_ms, 46800000);
	assert_int_equal(l->min_rate.body, 14);
	assert_int_equal(l->min_rate.write, 15);
	assert_int_equal(l->limits.head_bytes, 16384);
	assert_int_equal(l->limits.fields, 17);
	assert_int_equal(l->limits.body_bytes, 18000000);
	assert_int_equal(l->limits.connections, 19);
	assert_true(l->tls.enabled);
	assert_int_equal(l->tls.min_version, CONF_TLS_1_3);
	assert_int_equal(l->tls.certificate_count, 2);
	assert_string_equal(l->tls.certificates[0].ocsp, "m");
	assert_string_equal(l->tls.certificates[1].key, "o");
	assert_null(l->tls.certificates[1].ocsp);
	assert_null(l->via);
	assert_false(l->forwarded.for_ || l->forwarded.proto || l->forwarded.host);
	assert_int_equal(l->route_count, 2);
	assert_true(l->routes[0].wildcard);
	assert_string_equal(l->routes[0].host, ".p.q");
	assert_string_equal(l->routes[0].path_prefix, "/r");
	assert_int_equal(l->routes[0].upstream, 1);
	assert_int_equal(l->routes[1].upstream, 0);

	/* What x does not say it has from the top level. */
	assert_int_equal(x->keepalive_max_idle, 6);
	assert_int_equal(x->retries.max, 7);
	assert_string_equal(x->tls.ca_file, "f");
	assert_int_equal(x->servers[0].kind, CONF_SERVER_NAME);
	assert_string_equal(x->servers[0].host, "s");
	assert_int_equal(x->servers[0].port, 20);
	assert_int_equal(x->servers[0].addr.len, 0);

	assert_ptr_equal(conf_upstream_find(c, STR("y")), y);
	assert_null(conf_upstream_find(c, STR("yy")));
	assert_int_equal(y->index, 1);
	assert_int_equal(y->balance, CONF_BALANCE_KETAMA);
	assert_int_equal(y->hash.kind, CONF_HASH_HEADER);
	assert_string_equal(y->hash.name, "X-User");
	assert_string_equal(y->host, "t:21");
	assert_int_equal(y->resolve_interval_ms, 22000);
	assert_true(y->tls.enabled);
	assert_false(y->tls.verify);
	assert_string_equal(y->tls.sni, "u.v");
	assert_string_equal(y->tls.ca_file, "w");
	assert_string_equal(y->tls.crl_file, "aa");
	assert_string_equal(y->tls.cert, "bb");
	assert_string_equal(y->tls.key, "cc");
	assert_int_equal(y->tls.ktls, CONF_KTLS_REQUIRE);
	assert_int_equal(y->tls.min_version, CONF_TLS_1_3);
	assert_int_equal(y->server_count, 3);
	assert_int_equal(y->servers[0].kind, CONF_SERVER_UNIX);
	assert_int_equal(y->servers[0].weight, 0);
	assert_int_equal(y->servers[1].weight, 256);
	assert_string_equal(y->servers[1].tls_name, "u.v");
	assert_int_equal(y->health_check.type, CONF_HEALTH_HTTP);
	assert_string_equal(y->health_check.path, "/ff");
	assert_string_equal(y->health_check.host, "gg");
	assert_true(conf_status_expected(&y->health_check, 200));
	assert_false(conf_status_expected(&y->health_check, 201));
	assert_true(conf_status_expected(&y->health_check, 302));
	assert_false(conf_status_expected(&y->health_check, 303));
	assert_int_equal(y->health_check.interval_ms, 25000);
	assert_int_equal(y->health_check.timeout_ms, 26000);
	assert_int_equal(y->health_check.rise, 27);
	assert_int_equal(y->health_check.fall, 28);
	assert_int_equal(y->timeouts.connect_ms, 29000);
	assert_int_equal(y->timeouts.tls_ms, 30000);
	assert_int_equal(y->timeouts.read_ms, 31000);
	assert_int_equal(y->timeouts.write_ms, 32000);
	assert_int_equal(y->timeouts.idle_ms, 33000);
	assert_int_equal(y->keepalive_max_idle, 0);
	assert_int_equal(y->retries.max, 0);
	assert_int_equal(y->retries.on, 0);
	conf_unref(c);
}

static void the_name_to_verify_comes_from_sni_host_or_server(void **state)
{
	static const struct {
		const char *upstream, *name;
	} cases[] = {
		{ "tls: {sni: a.b}, host: c.d, servers: [{address: \"e.f:1\"}]", "a.b" },
		{ "tls: {}, host: \"C.d:8443\", servers: [{address: \"e.f:1\"}]", "c.d" },
		{ "tls: {}, servers: [{address: \"E.f:1\"}]", "e.f" },
		{ "tls: {verify: false}, servers: [{address: \"127.0.0.1:1\"}]", NULL },
		{ "tls: {verify: false}, host: 10.0.0.1, servers: [{address: \"127.0.0.1:1\"}]", NULL },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct buf b = BUF_INIT;
		struct conf *c;

		buf_printf(&b, "version: 1\nupstreams: {u: {%s}}\n", cases[i].upstream);
		c = load(buf_data(&b));
		if (cases[i].name)
			assert_string_equal(c->upstreams[0].servers[0].tls_name, cases[i].name);
		else
			assert_null(c->upstreams[0].servers[0].tls_name);
		conf_unref(c);
		buf_deinit(&b);
	}
}

static void quickstart_and_example_serve(void **state)
{
	static const char *const files[] = { "conf/quickstart.yaml", "conf/example.yaml" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		struct conf *c = load_file(files[i]);
		struct buf missing = BUF_INIT;

		assert_string_equal(c->path, files[i]);
		assert_int_equal(conf_check_serve(c, &missing), 0);
		conf_unref(c);
	}
}

/* Where the example does not say otherwise it shows the defaults; so it must still be them. */
static void the_example_shows_the_defaults(void **state)
{
	struct conf *d = load("version: 1\n" ONE_SERVER "listeners: [{address: 0.0.0.0:6188}]\n");
	struct conf *e = load_file("conf/example.yaml");
	const struct conf_listener *dl = &d->listeners[0], *el = &e->listeners[0];
	const struct conf_upstream *du = &d->upstreams[0], *eu = &e->upstreams[0];

	(void)state;
	assert_int_equal(e->daemon, d->daemon);
	assert_int_equal(e->grace_period_ms, d->grace_period_ms);
	assert_int_equal(e->graceful_shutdown_timeout_ms, d->graceful_shutdown_timeout_ms);
	assert_int_equal(e->upstream_keepalive_pool_size, d->upstream_keepalive_pool_size);
	assert_int_equal(e->max_retries, d->max_retries);
	assert_string_equal(e->log_level, d->log_level);
	assert_string_equal(e->pin_dir, d->pin_dir);
	assert_int_equal(e->splice.engine, d->splice.engine);
	assert_int_equal(e->splice.min_bytes, d->splice.min_bytes);
	assert_int_equal(e->splice.window, d->splice.window);
	assert_memory_equal(&el->timeouts, &dl->timeouts, sizeof(el->timeouts));
	assert_memory_equal(&el->min_rate, &dl->min_rate, sizeof(el->min_rate));
	assert_memory_equal(&el->forwarded, &dl->forwarded, sizeof(el->forwarded));
	assert_int_equal(el->limits.head_bytes, dl->limits.head_bytes);
	assert_int_equal(el->limits.fields, dl->limits.fields);
	assert_int_equal(el->limits.body_bytes, dl->limits.body_bytes);
	assert_int_equal(el->limits.connections, dl->limits.connections);
	assert_int_equal(el->proxy_protocol, dl->proxy_protocol);
	assert_int_equal(el->tls.min_version, dl->tls.min_version);
	assert_string_equal(el->via, dl->via);
	assert_int_equal(eu->balance, du->balance);
	assert_int_equal(eu->tls.verify, du->tls.verify);
	assert_int_equal(eu->tls.ktls, du->tls.ktls);
	assert_int_equal(eu->tls.min_version, du->tls.min_version);
	assert_int_equal(eu->servers[0].weight, du->servers[0].weight);
	assert_int_equal(eu->resolve_interval_ms, du->resolve_interval_ms);
	assert_memory_equal(&eu->timeouts, &du->timeouts, sizeof(eu->timeouts));
	assert_memory_equal(&eu->retries, &du->retries, sizeof(eu->retries));
	assert_int_equal(eu->keepalive_max_idle, du->keepalive_max_idle);
	conf_unref(d);

	/* A check's defaults show only where there is one. */
	d = load("version: 1\nupstreams: {u: {servers: [{address: \"a:1\"}], health_check: {type: http}}}\n");
	du = &d->upstreams[0];
	assert_string_equal(eu->health_check.path, du->health_check.path);
	assert_int_equal(eu->health_check.expect_count, 1);
	assert_memory_equal(eu->health_check.expect, du->health_check.expect, sizeof(eu->health_check.expect));
	assert_int_equal(eu->health_check.interval_ms, du->health_check.interval_ms);
	assert_int_equal(eu->health_check.timeout_ms, du->health_check.timeout_ms);
	assert_int_equal(eu->health_check.rise, du->health_check.rise);
	assert_int_equal(eu->health_check.fall, du->health_check.fall);
	conf_unref(d);
	conf_unref(e);
}

static void *ref_and_unref(void *arg)
{
	for (int i = 0; i < 1000; i++)
		conf_unref(conf_ref(arg));
	conf_unref(arg);
	return NULL;
}

/* Under the sanitizers this also shows that the last of several threads frees it. */
static void a_snapshot_lives_until_its_last_reference(void **state)
{
	struct conf *c = load("version: 1\n");
	pthread_t threads[2];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		conf_ref(c);
		assert_int_equal(pthread_create(&threads[i], NULL, ref_and_unref, c), 0);
	}
	conf_unref(c);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	conf_unref(NULL);
}

/* Each allocation of ours fails once: no snapshot, no leak, no other answer than -ENOMEM. */
static void running_out_of_memory_anywhere_is_reported(void **state)
{
	static const char text[] = "version: 1\nlisteners: [{address: 127.0.0.1:1, routes: [{host: a, upstream: one}]}]\n" ONE_SERVER;
	int failed = 0;

	(void)state;
	for (int n = 1; n < 1000; n++) {
		struct buf errors = BUF_INIT;
		struct conf *c;
		char spec[32];
		int r;

		snprintf(spec, sizeof(spec), "alloc:%d", n);
		assert_int_equal(fault_init(spec), 0);
		r = conf_load_buffer(&c, "t.yaml", text, strlen(text), &errors);
		fault_armed = false;
		buf_deinit(&errors);
		if (r == 0) {
			conf_unref(c);
			assert_true(failed >= 4);
			return;
		}
		assert_int_equal(r, -ENOMEM);
		assert_null(c);
		failed++;
	}
	fail_msg("it never succeeded");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_byte_order_mark_is_no_text),
		cmocka_unit_test(pingoras_example_loads_and_says_what_is_missing),
		cmocka_unit_test(the_advice_makes_it_serve),
		cmocka_unit_test(every_default_is_filled_in),
		cmocka_unit_test(every_key_arrives),
		cmocka_unit_test(the_name_to_verify_comes_from_sni_host_or_server),
		cmocka_unit_test(quickstart_and_example_serve),
		cmocka_unit_test(the_example_shows_the_defaults),
		cmocka_unit_test(a_snapshot_lives_until_its_last_reference),
		cmocka_unit_test(running_out_of_memory_anywhere_is_reported),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
