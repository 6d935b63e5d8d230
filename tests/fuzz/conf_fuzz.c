/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a configuration file. Besides what the sanitizers see: an
 * error is always explained in whole lines, and a snapshot that comes out
 * keeps every promise of conf.h.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "conf/conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

#define must(x)                  \
	do {                     \
		if (!(x))        \
			abort(); \
	} while (0)

static void check_errors(struct str e)
{
	must(e.n > 0 && e.p[e.n - 1] == '\n');
	for (size_t i = 0; i < e.n; i++) {
		/* Each line names the file, and nothing in it can fool a terminal. */
		if (i == 0 || e.p[i - 1] == '\n')
			must(e.n - i > 4 && memcmp(e.p + i, "fz:", 3) == 0);
		must((unsigned char)e.p[i] >= 0x20 || e.p[i] == '\n');
		must(e.p[i] != 0x7f);
	}
}

static void check_addr(const struct conf_addr *a)
{
	must(a->len > 0 && a->text[0]);
	must(a->sa.sa_family == AF_INET || a->sa.sa_family == AF_INET6 || a->sa.sa_family == AF_UNIX);
	must(a->sa.sa_family != AF_UNIX || memchr(a->un.sun_path, '\0', sizeof(a->un.sun_path)));
}

static void check_listener(const struct conf *c, const struct conf_listener *l)
{
	static const char *const hosts[] = { "", ".", "example.org", "a.example.org", "[::1]" };
	static const char *const paths[] = { "", "/", "/api", "/api/x", "*" };

	check_addr(&l->address);
	must(l->timeouts.head_ms && l->timeouts.body_ms && l->timeouts.idle_ms && l->timeouts.write_ms);
	must(l->limits.head_bytes >= 1024 && l->limits.fields >= 1 && l->limits.fields <= 256);
	must(!l->tls.enabled || l->tls.certificate_count > 0);
	must(!l->via || l->via[0]);
	must(l->route_count > 0 || c->upstream_count == 0);
	for (uint32_t i = 0; i < l->tls.certificate_count; i++)
		must(l->tls.certificates[i].cert && l->tls.certificates[i].key);
	for (uint32_t i = 0; i < l->route_count; i++) {
		must(l->routes[i].upstream < c->upstream_count);
		must(!l->routes[i].path_prefix || l->routes[i].path_prefix[0] == '/');
	}
	for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
		for (size_t j = 0; j < ARRAY_SIZE(paths); j++) {
			const struct conf_route *r = conf_route_match(l, str_from(hosts[i]), str_from(paths[j]));

			must(!r || (r >= l->routes && r < l->routes + l->route_count));
		}
	}
}

static void check_upstream(const struct conf *c, const struct conf_upstream *u)
{
	must(u->name[0] && strlen(u->name) <= CONF_NAME_MAX);
	must(&c->upstreams[u->index] == u && conf_upstream_find(c, str_from(u->name)) == u);
	must(u->server_count > 0);
	must(u->keepalive_max_idle != UINT32_MAX && u->retries.max <= 100);
	must(u->timeouts.connect_ms && u->timeouts.tls_ms && u->timeouts.read_ms && u->timeouts.write_ms && u->timeouts.idle_ms);
	must(!u->tls.cert == !u->tls.key);
	must(!u->host || !strpbrk(u->host, "\r\n \t"));
	must(conf_balance_name(u->balance) && conf_health_name(u->health_check.type));
	must(u->health_check.type == CONF_HEALTH_NONE ||
	     (u->health_check.rise && u->health_check.fall && u->health_check.interval_ms && u->health_check.expect_count));
	for (uint32_t i = 0; i < u->server_count; i++) {
		const struct conf_server *s = &u->servers[i];

		must(s->address && strlen(s->address) <= CONF_ADDRESS_MAX && s->weight <= CONF_WEIGHT_MAX);
		must(!u->tls.enabled || !u->tls.verify || s->tls_name);
		must(s->kind == CONF_SERVER_UNIX || (s->host && s->port));
		if (s->kind != CONF_SERVER_NAME)
			check_addr(&s->addr);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct buf errors = BUF_INIT;
	struct conf *c;
	int r = conf_load_buffer(&c, "fz", p, n, &errors);

	must(r == 0 || r == 1);
	must(!c == (r == 1));
	if (r == 1) {
		check_errors(buf_str(&errors));
	} else {
		must(errors.len == 0);
		must(c->threads >= 1 && c->threads <= CONF_THREADS_MAX);
		must(c->splice.memory >= c->splice.window && c->pin_dir[0] == '/');
		for (uint32_t i = 0; i < c->listener_count; i++)
			check_listener(c, &c->listeners[i]);
		for (uint32_t i = 0; i < c->upstream_count; i++)
			check_upstream(c, &c->upstreams[i]);
		must(conf_check_serve(c, &errors) == (c->listener_count == 0 || c->upstream_count == 0));
	}
	conf_unref(c);
	buf_deinit(&errors);
	return 0;
}
