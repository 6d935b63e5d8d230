/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The upstreams section: servers, balancing, TLS towards them, health checks.
 */
#include "conf/parse.h"
#include <arpa/inet.h>

#include <stdio.h>

static const char *const ktls_names[] = { "auto", "require", "off", NULL };
static const char *const balance_names[] = { "round_robin", "random", "least_conn", "p2c",
					     "fnv",	    "ketama", "maglev",	    NULL };
static const char *const health_names[] = { "tcp", "http", NULL };
static const char *const retry_names[] = { "connect_failure", "reused_connection", NULL };

const char *conf_balance_name(enum conf_balance b)
{
	return balance_names[b];
}

const char *conf_health_name(enum conf_health h)
{
	return h == CONF_HEALTH_NONE ? "none" : health_names[h - 1];
}

static void set_server_address(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_server *server = dst;
	enum address_fault fault;
	struct value_server a;
	struct str s;

	(void)f;
	if (!field_text(p, v, "an address such as \"127.0.0.1:8080\", \"name:80\" or unix:/path", &s))
		return;
	fault = value_server(s, &a);
	if (fault != ADDRESS_OK) {
		field_fault(p, v, "%s %s", shown(s.p, s.n).s, value_address_text(fault));
		return;
	}
	if (s.n > CONF_ADDRESS_MAX) {
		field_fault(p, v, "has %zu bytes, write an address of at most %d", s.n, CONF_ADDRESS_MAX);
		return;
	}
	server->address = arena_str(p->keep, s.p, s.n);
	server->host = a.host.n ? field_lower(p, a.host) : NULL;
	if (!server->address || (a.host.n && !server->host)) {
		p->report->oom = true;
		return;
	}
	server->kind = a.kind;
	server->addr = a.addr;
	server->addr.text = a.kind == CONF_SERVER_NAME ? "" : server->address;
	server->addr.pos = v->pos;
	server->port = a.port;
}

static const struct field server_fields[] = {
	{ "address", set_server_address, .need = "address: \"127.0.0.1:8080\"" },
	{ "weight", set_u32, AT(struct conf_server, weight), 0, CONF_WEIGHT_MAX },
	{ 0 },
};

static void set_servers(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_upstream *u = dst;

	if (!field_list(p, v, "a list such as [{address: \"127.0.0.1:8080\"}]"))
		return;
	u->servers = field_alloc(p, v->count * sizeof(*u->servers));
	if (!u->servers)
		return;
	for (const struct node *n = v->first; n; n = n->next) {
		struct conf_server *s = &u->servers[u->server_count++];

		*s = default_server;
		s->pos = n->pos;
		field_map(p, n, s, f->fields);
	}
}

static void set_hash_key(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	static const char want[] = "source_ip, uri, header:NAME or cookie:NAME";
	struct conf_hash_key *h = dst;
	struct str s, name;

	(void)f;
	if (!field_text(p, v, want, &s))
		return;
	if (str_eq(s, STR("source_ip"))) {
		h->kind = CONF_HASH_SOURCE_IP;
		return;
	}
	if (str_eq(s, STR("uri"))) {
		h->kind = CONF_HASH_URI;
		return;
	}
	if (s.n > 7 && (memcmp(s.p, "header:", 7) == 0 || memcmp(s.p, "cookie:", 7) == 0)) {
		name = (struct str){ s.p + 7, s.n - 7 };
		if (value_is_token(name)) {
			h->kind = s.p[0] == 'h' ? CONF_HASH_HEADER : CONF_HASH_COOKIE;
			h->name = arena_str(p->keep, name.p, name.n);
			if (!h->name)
				p->report->oom = true;
			return;
		}
	}
	field_fault(p, v, "%s is no key to hash, write %s", shown(s.p, s.n).s, want);
}

static const struct field hash_fields[] = {
	{ "key", set_hash_key, .need = "key: source_ip" },
	{ 0 },
};

static bool is_address(struct str s)
{
	unsigned char a[sizeof(struct in6_addr)];
	char text[INET6_ADDRSTRLEN];

	if (s.n >= sizeof(text))
		return false;
	memcpy(text, s.p, s.n);
	text[s.n] = '\0';
	return inet_pton(AF_INET, text, a) == 1 || inet_pton(AF_INET6, text, a) == 1;
}

static void set_sni(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct str s;

	(void)f;
	if (!field_text(p, v, "a host name such as example.org", &s))
		return;
	/* An address is verified only: it can not be asked for (RFC 6066 section 3). */
	if (!value_is_name(s) && !is_address(s)) {
		field_fault(p, v, "%s is no host name or address, write one such as example.org, without a port",
			    shown(s.p, s.n).s);
		return;
	}
	*(const char **)dst = field_lower(p, s);
}

static const struct field tls_fields[] = {
	{ "sni", set_sni, AT(struct conf_upstream_tls, sni) },
	{ "verify", set_bool, AT(struct conf_upstream_tls, verify) },
	{ "ca_file", set_text, AT(struct conf_upstream_tls, ca_file), .outside = OUTSIDE_PEM },
	{ "crl_file", set_text, AT(struct conf_upstream_tls, crl_file), .outside = OUTSIDE_PEM },
	{ "cert", set_text, AT(struct conf_upstream_tls, cert), .outside = OUTSIDE_PEM },
	{ "key", set_text, AT(struct conf_upstream_tls, key), .outside = OUTSIDE_PEM },
	{ "ktls", set_enum, AT(struct conf_upstream_tls, ktls), .names = ktls_names },
	{ "min_version", set_enum, AT(struct conf_upstream_tls, min_version), .names = tls_versions },
	{ 0 },
};

static void set_tls(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_upstream_tls *tls = dst;

	if (!field_map(p, v, tls, f->fields))
		return;
	tls->enabled = true;
	if (!node_get(v, "cert") != !node_get(v, "key"))
		field_fault(p, v, "a client certificate needs both, add %s", node_get(v, "cert") ? "key" : "cert");
}

static void set_host(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct str s;

	(void)f;
	if (!field_text(p, v, "a host such as example.org or example.org:8080", &s))
		return;
	if (!value_is_host(s, true)) {
		field_fault(p, v, "%s can not stand in a Host field, write a name such as example.org or example.org:8080",
			    shown(s.p, s.n).s);
		return;
	}
	*(const char **)dst = arena_str(p->keep, s.p, s.n);
	if (!*(const char **)dst)
		p->report->oom = true;
}

static void set_check_path(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	bool bad = false;

	/* It goes on the wire as it is: RFC 9112 section 3.2.1, origin-form. */
	for (size_t i = 0; v->kind == NODE_SCALAR && i < v->len; i++)
		bad |= (unsigned char)v->text[i] <= ' ' || (unsigned char)v->text[i] >= 0x7f || v->text[i] == '#';
	if (v->kind == NODE_SCALAR && !node_is_null(v) && (bad || v->text[0] != '/')) {
		field_fault(p, v, "%s is not a request target, write one such as /health", shown(v->text, v->len).s);
		return;
	}
	set_text(p, v, dst, f);
}

static bool parse_status(struct str s, uint16_t *out)
{
	uint64_t n;

	if (s.n != 3 || value_u64(s, &n) < 0 || n < 100 || n > 599)
		return false;
	*out = (uint16_t)n;
	return true;
}

static void add_status(struct parse *p, const struct node *v, struct conf_health_check *h)
{
	static const char want[] = "a status such as 200 or a range such as 200-399";
	struct conf_status_range r;
	struct str s, first, last;
	const char *dash;

	if (!field_text(p, v, want, &s))
		return;
	dash = memchr(s.p, '-', s.n);
	first = last = s;
	if (dash) {
		first.n = (size_t)(dash - s.p);
		last = (struct str){ dash + 1, s.n - first.n - 1 };
	}
	if (!parse_status(first, &r.first) || !parse_status(last, &r.last) || r.first > r.last)
		field_fault(p, v, "%s is no status from 100 to 599, write %s", shown(s.p, s.n).s, want);
	else
		h->expect[h->expect_count++] = r;
}

static void set_expect(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf_health_check *h = dst;

	(void)f;
	h->expect_count = 0;
	if (v->kind != NODE_LIST) {
		add_status(p, v, h);
		return;
	}
	if (!field_list(p, v, "a status such as 200 or a range such as 200-399"))
		return;
	if (v->count > CONF_STATUS_RANGES) {
		field_fault(p, v, "has %u entries, write at most %d", v->count, CONF_STATUS_RANGES);
		return;
	}
	for (const struct node *n = v->first; n; n = n->next)
		add_status(p, n, h);
}

static void set_health_type(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	int i = field_word(p, v, f->names);

	if (i >= 0)
		*(enum conf_health *)dst = i == 0 ? CONF_HEALTH_TCP : CONF_HEALTH_HTTP;
}

static const struct field health_fields[] = {
	{ "type", set_health_type, AT(struct conf_health_check, type), .names = health_names },
	{ "path", set_check_path, AT(struct conf_health_check, path), .max = 1024, .want = "a request target such as /health" },
	{ "host", set_host, AT(struct conf_health_check, host) },
	{ "expect_status", set_expect, .offset = 0 },
	{ "interval", set_time, AT(struct conf_health_check, interval_ms), 10, TIME_MAX },
	{ "timeout", set_time, AT(struct conf_health_check, timeout_ms), 1, TIME_MAX },
	{ "rise", set_u32, AT(struct conf_health_check, rise), 1, 1000 },
	{ "fall", set_u32, AT(struct conf_health_check, fall), 1, 1000 },
	{ "port", set_u16, AT(struct conf_health_check, port), 1, UINT16_MAX },
	{ 0 },
};

static void set_health(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	static const char *const http_only[] = { "path", "host", "expect_status" };
	struct conf_health_check *h = dst;

	*h = default_health_check;
	if (!field_map(p, v, h, f->fields) || h->type == CONF_HEALTH_HTTP)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(http_only); i++) {
		const struct node *n = node_get(v, http_only[i]);

		if (n)
			field_fault(p, n, "has no meaning for a tcp check, write type: http or leave it out");
	}
}

static const struct field upstream_timeout_fields[] = {
	{ "connect", set_time, AT(struct conf_upstream_timeouts, connect_ms), 1, TIME_MAX },
	{ "tls", set_time, AT(struct conf_upstream_timeouts, tls_ms), 1, TIME_MAX },
	{ "read", set_time, AT(struct conf_upstream_timeouts, read_ms), 1, TIME_MAX },
	{ "write", set_time, AT(struct conf_upstream_timeouts, write_ms), 1, TIME_MAX },
	{ "idle", set_time, AT(struct conf_upstream_timeouts, idle_ms), 1, TIME_MAX },
	{ 0 },
};

static const struct field keepalive_fields[] = {
	{ "max_idle", set_u32, AT(struct conf_upstream, keepalive_max_idle), 0, COUNT_MAX },
	{ 0 },
};

static void set_retry_on(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	uint32_t on = 0;
	int i;

	if (v->kind != NODE_LIST) {
		i = field_word(p, v, f->names);
		on = i < 0 ? 0 : 1u << i;
	} else {
		for (const struct node *n = v->first; n; n = n->next) {
			i = field_word(p, n, f->names);
			on |= i < 0 ? 0 : 1u << i;
		}
	}
	*(uint32_t *)dst = on;
}
_Static_assert(CONF_RETRY_CONNECT_FAILURE == 1 << 0 && CONF_RETRY_REUSED_CONNECTION == 1 << 1, "bits in the words' order");

static const struct field retry_fields[] = {
	{ "max", set_u32, AT(struct conf_retries, max), 0, 100 },
	{ "on", set_retry_on, AT(struct conf_retries, on), .names = retry_names },
	{ 0 },
};

static const struct field upstream_fields[] = {
	{ "balance", set_enum, AT(struct conf_upstream, balance), .names = balance_names },
	{ "hash", set_map, AT(struct conf_upstream, hash), .fields = hash_fields },
	{ "tls", set_tls, AT(struct conf_upstream, tls), .fields = tls_fields },
	{ "host", set_host, AT(struct conf_upstream, host) },
	{ "servers", set_servers, .fields = server_fields, .need = "servers: [{address: \"127.0.0.1:8080\"}]" },
	{ "resolve_interval", set_time, AT(struct conf_upstream, resolve_interval_ms), 100, TIME_MAX },
	{ "health_check", set_health, AT(struct conf_upstream, health_check), .fields = health_fields },
	{ "timeouts", set_map, AT(struct conf_upstream, timeouts), .fields = upstream_timeout_fields },
	{ "keepalive", set_map, .fields = keepalive_fields },
	{ "retries", set_map, AT(struct conf_upstream, retries), .fields = retry_fields },
	{ 0 },
};

static bool name_is_good(const struct node *key)
{
	for (size_t i = 0; i < key->len; i++)
		if (key->text[i] == '\0' || (!strchr("._-", key->text[i]) && !(key->text[i] >= '0' && key->text[i] <= '9') &&
					     !((key->text[i] | 32) >= 'a' && (key->text[i] | 32) <= 'z')))
			return false;
	return key->len > 0 && key->len <= CONF_NAME_MAX;
}

void set_upstreams(struct parse *p, const struct node *v, void *dst, const struct field *f)
{
	struct conf *c = dst;

	(void)f;
	if (v->kind != NODE_MAP || v->count == 0) {
		field_fault(p, v, "is %s, write a map such as {one: {servers: [{address: \"127.0.0.1:8080\"}]}}",
			    v->kind == NODE_LIST && v->count ? "a list" : v->count || v->len ? "a single value" : "empty");
		return;
	}
	c->upstreams = field_alloc(p, v->count * sizeof(*c->upstreams));
	if (!c->upstreams)
		return;
	for (const struct node *n = v->first; n; n = n->next) {
		struct conf_upstream *u = &c->upstreams[c->upstream_count];
		const struct node *hash;

		*u = default_upstream;
		u->index = c->upstream_count++;
		u->pos = n->key->pos;
		u->name = arena_str(p->keep, n->key->text, n->key->len);
		if (!u->name) {
			p->report->oom = true;
			return;
		}
		if (!name_is_good(n->key))
			report_at(p->report, u->pos, "upstreams: %s is no name, write 1 to %d letters, digits, . _ or -",
				  shown(n->key->text, n->key->len).s, CONF_NAME_MAX);
		if (!field_map(p, n, u, upstream_fields))
			continue;
		hash = node_get(n, "hash");
		if (hash && !conf_balance_hashes(u->balance))
			field_fault(p, hash, "has no meaning for balance: %s, write balance: fnv, ketama or maglev",
				    balance_names[u->balance]);
	}
}
