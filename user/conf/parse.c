/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sections of the file as tables, and the few values that need more than
 * a row: everything but the upstreams, which are in parse_upstream.c. A
 * section that contradicts itself is reported here, where the nodes and so
 * the positions are at hand; what spans sections is check.c's.
 */
#include "conf/parse.h"

#include <stdio.h>

#define SOCKET_PATH_MAX 107

static const char *const log_levels[] = { "error", "warn", "info", "debug", NULL };
static const char *const log_formats[] = { "text", "json", NULL };
static const char *const engine_names[] = { "auto", "sockmap", "splice", "copy", NULL };
const char *const tls_versions[] = { "1.2", "1.3", NULL };

const char *conf_engine_name(enum conf_engine e)
{
	return engine_names[e];
}

static void set_version(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct str s;

	(void)dst;
	(void)f;
	if (field_text(p, v, "1", &s) && !str_eq(s, STR("1")))
		field_fault(p, v, "%s is not a version this program knows, write 1", shown(s.p, s.n).s);
}

static void set_bind(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_addr *addr = dst, parsed = { .len = 0 };
	enum address_fault fault;
	struct str s;

	(void)f;
	if (!field_text(p, v, "an address such as \"0.0.0.0:6188\", \"[::]:6188\" or unix:/path", &s))
		return;
	fault = value_bind(s, &parsed);
	if (fault != ADDRESS_OK) {
		field_fault(p, v, "%s %s", shown(s.p, s.n).s, value_address_text(fault));
		return;
	}
	parsed.text = arena_str(p->keep, s.p, s.n);
	if (!parsed.text) {
		p->report->oom = true;
		return;
	}
	parsed.pos = v->pos;
	*addr = parsed;
	if (parsed.sa.sa_family == AF_UNIX)
		field_note_outside(p, v, OUTSIDE_CREATE, parsed.un.sun_path[0] ? parsed.text + strlen("unix:") : "");
}

static void set_pin_dir(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	if (v->kind == NODE_SCALAR && v->len && v->text[0] != '/' && !node_is_null(v)) {
		field_fault(p, v, "%s is not an absolute path, write one below /sys/fs/bpf",
			    shown(v->text, v->len).s);
		return;
	}
	set_text(p, v, dst, f);
}

static const struct field access_log_fields[] = {
	{ "path", set_text, AT(struct conf_access_log, path), .outside = OUTSIDE_LOG, .want = "a file's path",
	  .need = "path: /var/log/sluice/access.log" },
	{ "format", set_enum, AT(struct conf_access_log, format), .names = log_formats },
	{ 0 },
};

static const struct field admin_fields[] = {
	{ "http", set_bind, AT(struct conf_admin, http) },
	{ "socket", set_text, AT(struct conf_admin, socket), .max = SOCKET_PATH_MAX, .outside = OUTSIDE_CREATE },
	{ 0 },
};

static const struct field bpf_fields[] = {
	{ "pin_dir", set_pin_dir, AT(struct conf, pin_dir), .max = 255, .outside = OUTSIDE_PINS,
	  .want = "a directory on a BPF file system such as /sys/fs/bpf/sluice" },
	{ 0 },
};

static const struct field splice_fields[] = {
	{ "engine", set_enum, AT(struct conf_splice, engine), .names = engine_names },
	{ "min_bytes", set_size, AT(struct conf_splice, min_bytes), 0, 1ull << 50 },
	{ "window", set_size, AT(struct conf_splice, window), 4096, 1ull << 30 },
	{ "memory", set_size, AT(struct conf_splice, memory), 4096, 1ull << 50 },
	{ 0 },
};

static void set_splice(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_splice *s = dst;

	if (field_map(p, v, s, f->fields) && s->memory < s->window)
		field_fault(p, v, "memory (%llu bytes) is less than window (%llu bytes), make memory the larger one",
			    (unsigned long long)s->memory, (unsigned long long)s->window);
}

/* Listeners. */

static const struct field listener_timeout_fields[] = {
	{ "head", set_time, AT(struct conf_listener_timeouts, head_ms), 1, TIME_MAX },
	{ "body", set_time, AT(struct conf_listener_timeouts, body_ms), 1, TIME_MAX },
	{ "idle", set_time, AT(struct conf_listener_timeouts, idle_ms), 1, TIME_MAX },
	{ "write", set_time, AT(struct conf_listener_timeouts, write_ms), 1, TIME_MAX },
	{ 0 },
};

static const struct field min_rate_fields[] = {
	{ "body", set_size, AT(struct conf_min_rate, body), 0, 1ull << 40 },
	{ "write", set_size, AT(struct conf_min_rate, write), 0, 1ull << 40 },
	{ 0 },
};

static const struct field limit_fields[] = {
	{ "head_bytes", set_size32, AT(struct conf_listener_limits, head_bytes), 1024, 1024 * 1024 },
	{ "fields", set_u32, AT(struct conf_listener_limits, fields), 1, 256 },
	{ "body_bytes", set_size, AT(struct conf_listener_limits, body_bytes), 0, 1ull << 50 },
	{ "connections", set_u32, AT(struct conf_listener_limits, connections), 0, COUNT_MAX },
	{ 0 },
};

static const struct field forwarded_fields[] = {
	{ "for", set_bool, AT(struct conf_forwarded, for_) },
	{ "proto", set_bool, AT(struct conf_forwarded, proto) },
	{ "host", set_bool, AT(struct conf_forwarded, host) },
	{ 0 },
};

static const struct field certificate_fields[] = {
	{ "cert", set_text, AT(struct conf_certificate, cert), .outside = OUTSIDE_PEM, .want = "a PEM file's path",
	  .need = "cert: /etc/sluice/site.pem" },
	{ "key", set_text, AT(struct conf_certificate, key), .outside = OUTSIDE_PEM, .want = "a PEM file's path",
	  .need = "key: /etc/sluice/site.key" },
	{ "ocsp", set_text, AT(struct conf_certificate, ocsp), .outside = OUTSIDE_FILE, .want = "a DER file's path" },
	{ 0 },
};

static void set_certificates(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_listener_tls *tls = dst;

	if (!field_list(p, v, "a list such as [{cert: site.pem, key: site.key}]"))
		return;
	tls->certificates = field_alloc(p, v->count * sizeof(*tls->certificates));
	if (!tls->certificates)
		return;
	for (const struct node *c = v->first; c; c = c->next)
		field_map(p, c, &tls->certificates[tls->certificate_count++], f->fields);
}

static const struct field listener_tls_fields[] = {
	{ "certificates", set_certificates, .fields = certificate_fields,
	  .need = "certificates: [{cert: site.pem, key: site.key}]" },
	{ "min_version", set_enum, AT(struct conf_listener_tls, min_version), .names = tls_versions },
	{ 0 },
};

static void set_listener_tls(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_listener_tls *tls = dst;

	tls->enabled = field_map(p, v, tls, f->fields);
}

static void set_route_host(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	static const char want[] = "a host such as example.org or \"*.example.org\", without a port";
	struct conf_route *route = dst;
	struct str s, name;

	(void)f;
	if (!field_text(p, v, want, &s) || str_eq(s, STR("*")))
		return;
	name = s;
	if (s.n > 2 && s.p[0] == '*' && s.p[1] == '.') {
		route->wildcard = true;
		name = (struct str){ s.p + 2, s.n - 2 };
	}
	if (!(route->wildcard ? value_is_name(name) : value_is_host(name, false))) {
		field_fault(p, v, "%s is not a host, write %s", shown(s.p, s.n).s, want);
		return;
	}
	route->host = field_lower(p, route->wildcard ? (struct str){ s.p + 1, s.n - 1 } : s);
}

static void set_path_prefix(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	if (v->kind == NODE_SCALAR && !node_is_null(v) && (v->text[0] != '/' || strpbrk(v->text, "?# "))) {
		field_fault(p, v, "%s is not a path, write one that begins with / and has no ?, # or blank",
			    shown(v->text, v->len).s);
		return;
	}
	set_text(p, v, dst, f);
}

/* Only remembered: upstreams may stand below the listeners in the file. */
static void set_route_upstream(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct pending_route *r;
	struct str s;

	(void)f;
	if (!field_text(p, v, "an upstream's name", &s))
		return;
	r = arena_alloc(p->scratch, sizeof(*r));
	if (!r) {
		p->report->oom = true;
		return;
	}
	*r = (struct pending_route){ .route = dst, .name = v };
	*p->pending_tail = r;
	p->pending_tail = &r->next;
}

static const struct field route_fields[] = {
	{ "host", set_route_host, .offset = 0 },
	{ "path_prefix", set_path_prefix, AT(struct conf_route, path_prefix), .want = "a path such as /api" },
	{ "upstream", set_route_upstream, .need = "upstream: NAME" },
	{ 0 },
};

static void set_routes(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_listener *l = dst;

	if (!field_list(p, v, "a list such as [{upstream: one}]"))
		return;
	l->routes = field_alloc(p, v->count * sizeof(*l->routes));
	if (!l->routes)
		return;
	for (const struct node *c = v->first; c; c = c->next) {
		struct conf_route *r = &l->routes[l->route_count++];

		r->pos = c->pos;
		field_map(p, c, r, f->fields);
	}
}

static void set_via(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	static const char want[] = "a name without blanks such as sluice, or \"\" for no Via";
	struct str s;

	(void)f;
	if (!field_text(p, v, want, &s))
		return;
	if (s.n == 0)
		*(const char **)dst = NULL;
	else if (!value_is_token(s) || s.n > 64)
		field_fault(p, v, "%s can not stand in a Via field, write %s", shown(s.p, s.n).s, want);
	else if (!(*(const char **)dst = arena_str(p->keep, s.p, s.n)))
		p->report->oom = true;
}

static const struct field listener_fields[] = {
	{ "address", set_bind, AT(struct conf_listener, address), .need = "address: 0.0.0.0:6188" },
	{ "proxy_protocol", set_bool, AT(struct conf_listener, proxy_protocol) },
	{ "timeouts", set_map, AT(struct conf_listener, timeouts), .fields = listener_timeout_fields },
	{ "min_rate", set_map, AT(struct conf_listener, min_rate), .fields = min_rate_fields },
	{ "limits", set_map, AT(struct conf_listener, limits), .fields = limit_fields },
	{ "tls", set_listener_tls, AT(struct conf_listener, tls), .fields = listener_tls_fields },
	{ "routes", set_routes, .fields = route_fields },
	{ "forwarded", set_map, AT(struct conf_listener, forwarded), .fields = forwarded_fields },
	{ "via", set_via, AT(struct conf_listener, via) },
	{ 0 },
};

static void set_listeners(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf *c = dst;

	if (!field_list(p, v, "a list such as [{address: 0.0.0.0:6188}]"))
		return;
	c->listeners = field_alloc(p, v->count * sizeof(*c->listeners));
	if (!c->listeners)
		return;
	for (const struct node *n = v->first; n; n = n->next) {
		struct conf_listener *l = &c->listeners[c->listener_count++];

		*l = default_listener;
		l->pos = n->pos;
		field_map(p, n, l, f->fields);
	}
}

/* Top level: Pingora's server settings by their names, then this program's own. */
static const struct field root_fields[] = {
	{ "version", set_version, .need = "version: 1 at the top" },
	{ "threads", set_u32, AT(struct conf, threads), 1, CONF_THREADS_MAX },
	{ "pid_file", set_text, AT(struct conf, pid_file), .outside = OUTSIDE_CREATE },
	{ "error_log", set_text, AT(struct conf, error_log), .outside = OUTSIDE_LOG },
	{ "upgrade_sock", set_text, AT(struct conf, upgrade_sock), .max = SOCKET_PATH_MAX, .outside = OUTSIDE_CREATE },
	{ "user", set_text, AT(struct conf, user), .outside = OUTSIDE_USER, .want = "a user's name or number" },
	{ "group", set_text, AT(struct conf, group), .outside = OUTSIDE_GROUP, .want = "a group's name or number" },
	{ "daemon", set_bool, AT(struct conf, daemon) },
	{ "grace_period_seconds", set_seconds, AT(struct conf, grace_period_ms), 0, 2000000 },
	{ "graceful_shutdown_timeout_seconds", set_seconds, AT(struct conf, graceful_shutdown_timeout_ms), 0, 2000000 },
	{ "upstream_keepalive_pool_size", set_u32, AT(struct conf, upstream_keepalive_pool_size), 0, COUNT_MAX },
	{ "max_retries", set_u32, AT(struct conf, max_retries), 0, 100 },
	{ "ca_file", set_text, AT(struct conf, ca_file), .outside = OUTSIDE_PEM },
	{ "log_level", set_word, AT(struct conf, log_level), .names = log_levels },
	{ "access_log", set_map, AT(struct conf, access_log), .fields = access_log_fields },
	{ "admin", set_map, AT(struct conf, admin), .fields = admin_fields },
	{ "bpf", set_map, .fields = bpf_fields },
	{ "splice", set_splice, AT(struct conf, splice), .fields = splice_fields },
	{ "listeners", set_listeners, .fields = listener_fields },
	{ "upstreams", set_upstreams, .offset = 0 },
	{ 0 },
};

void parse_root(struct parse *p, const struct node *root)
{
	static const struct node empty = { .kind = NODE_MAP, .pos = { 1, 1 } };

	field_map(p, root && !node_is_null(root) ? root : &empty, p->conf, root_fields);
}
