/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What only makes sense with the whole file read: names that refer to other
 * sections, defaults that one key gives to another, and contradictions.
 * Everything here is decided from the file alone; files.c looks at the system.
 */
#include "conf/parse.h"

#include <stdio.h>

static void resolve_routes(struct parse *p)
{
	struct conf *c = p->conf;

	for (struct pending_route *r = p->pending; r; r = r->next) {
		struct str name = { r->name->text, r->name->len };
		const struct conf_upstream *u = conf_upstream_find(c, name);
		struct shown read = shown(name.p, name.n);
		const char *near = NULL;

		if (u) {
			r->route->upstream = u->index;
			continue;
		}
		for (uint32_t i = 0; i < c->upstream_count; i++)
			near = value_nearest(name, near, c->upstreams[i].name);
		if (near)
			field_fault(p, r->name, "there is no upstream %s, did you mean \"%s\"?", read.s, near);
		else
			field_fault(p, r->name, "there is no upstream %s, add it under upstreams", read.s);
	}
}

static bool route_text_equal(const char *a, const char *b)
{
	return a == b || (a && b && strcmp(a, b) == 0);
}

/* Later routes that an earlier one leaves nothing: it takes everything, or the very same. */
static void check_reach(struct parse *p, const struct conf_listener *l)
{
	for (uint32_t i = 1; i < l->route_count; i++) {
		for (uint32_t j = 0; j < i; j++) {
			const struct conf_route *a = &l->routes[j], *b = &l->routes[i];
			bool all = !a->host && !a->path_prefix;

			if (!all && !(route_text_equal(a->host, b->host) && a->wildcard == b->wildcard &&
				      route_text_equal(a->path_prefix, b->path_prefix)))
				continue;
			report_at(p->report, b->pos,
				  "this route is never reached, the one at line %u takes %s: move it above",
				  a->pos.line, all ? "everything" : "the same requests");
			break;
		}
	}
}

static bool addr_equal(const struct conf_addr *a, const struct conf_addr *b)
{
	if (a->len != b->len || a->len == 0)
		return false;
	/* The kernel chooses another each time. */
	if (a->sa.sa_family == AF_INET && a->in.sin_port == 0)
		return false;
	if (a->sa.sa_family == AF_INET6 && a->in6.sin6_port == 0)
		return false;
	return memcmp(&a->ss, &b->ss, a->len) == 0;
}

static void check_listener(struct parse *p, uint32_t index)
{
	struct conf *c = p->conf;
	struct conf_listener *l = &c->listeners[index];

	for (uint32_t i = 0; i < index; i++)
		if (addr_equal(&c->listeners[i].address, &l->address))
			report_at(p->report, l->address.pos,
				  "listeners[%u].address: \"%s\" is taken by the listener at line %u, write another",
				  index, l->address.text, c->listeners[i].pos.line);
	if (addr_equal(&c->admin.http, &l->address))
		report_at(p->report, l->address.pos,
			  "listeners[%u].address: \"%s\" is taken by admin.http, write another", index,
			  l->address.text);
	check_reach(p, l);
	if (l->route_count || c->upstream_count == 0)
		return;
	if (c->upstream_count > 1) {
		report_at(p->report, l->pos,
			  "listeners[%u]: has no routes and there are %u upstreams, add routes: [{upstream: %s}]",
			  index, c->upstream_count, c->upstreams[0].name);
		return;
	}
	l->routes = field_alloc(p, sizeof(*l->routes));
	if (!l->routes)
		return;
	l->routes[0] = (struct conf_route){ .upstream = 0, .pos = l->pos };
	l->route_count = 1;
}

/* The name to ask for and to verify; see conf_server.tls_name. */
static const char *tls_name(struct parse *p, const struct conf_upstream *u, const struct conf_server *s)
{
	if (u->tls.sni)
		return u->tls.sni;
	if (u->host) {
		struct str alone = value_host_alone(str_from(u->host));

		return value_is_name(alone) ? field_lower(p, alone) : NULL;
	}
	return s->kind == CONF_SERVER_NAME ? s->host : NULL;
}

static void check_server(struct parse *p, struct conf_upstream *u, uint32_t index)
{
	struct conf_server *s = &u->servers[index];

	for (uint32_t i = 0; i < index; i++) {
		if (strcmp(u->servers[i].address, s->address) != 0)
			continue;
		report_at(
			p->report, s->pos,
			"upstreams.%s.servers[%u]: \"%s\" is listed at line %u already, use weight for a larger share",
			u->name, index, s->address, u->servers[i].pos.line);
	}
	if (u->health_check.port && s->kind == CONF_SERVER_UNIX)
		report_at(p->report, s->pos,
			  "upstreams.%s.servers[%u]: a unix socket has no port, leave health_check.port out", u->name,
			  index);
	if (!u->tls.enabled)
		return;
	s->tls_name = tls_name(p, u, s);
	if (!s->tls_name && u->tls.verify)
		report_at(p->report, s->pos,
			  "upstreams.%s.servers[%u]: nothing says which name its certificate must have, add tls.sni: "
			  "NAME, or verify: false to trust any",
			  u->name, index);
}

static void check_upstream(struct parse *p, struct conf_upstream *u)
{
	struct conf *c = p->conf;
	uint32_t weight = 0;

	if (u->keepalive_max_idle == CONF_INHERIT)
		u->keepalive_max_idle = c->upstream_keepalive_pool_size;
	if (u->retries.max == CONF_INHERIT)
		u->retries.max = c->max_retries;
	if (!u->tls.ca_file)
		u->tls.ca_file = c->ca_file;
	if (!u->health_check.host)
		u->health_check.host = u->host;
	for (uint32_t i = 0; i < u->server_count; i++) {
		weight += u->servers[i].weight;
		check_server(p, u, i);
	}
	if (weight == 0)
		report_at(p->report, u->pos, "upstreams.%s: every server has weight 0, give one of them at least 1",
			  u->name);
}

void check_all(struct parse *p)
{
	struct conf *c = p->conf;

	/* Where upstreams itself could not be read, every name would look unknown. */
	if (c->upstream_count || p->report->errors == 0)
		resolve_routes(p);
	if (p->report->errors)
		return;
	for (uint32_t i = 0; i < c->upstream_count; i++)
		check_upstream(p, &c->upstreams[i]);
	for (uint32_t i = 0; i < c->listener_count; i++)
		check_listener(p, i);
}

int conf_check_serve(const struct conf *c, struct buf *missing)
{
	int r = 0;

	if (c->listener_count == 0)
		r = buf_printf(missing,
			       "%s: there are no listeners, add for example:\nlisteners:\n  - address: 0.0.0.0:6188\n",
			       c->path);
	if (r == 0 && c->upstream_count == 0)
		r = buf_printf(missing,
			       "%s: there are no upstreams, add for example:\nupstreams:\n  one:\n    servers:\n      "
			       "- address: \"127.0.0.1:8080\"\n",
			       c->path);
	if (r < 0)
		return r;
	return c->listener_count == 0 || c->upstream_count == 0;
}
