/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /metrics: a view as Prometheus text, format 0.0.4. Families are contiguous,
 * each with HELP and TYPE once; times are seconds, sizes bytes; a label's
 * values come from a bounded set (configuration, counters, status codes).
 *
 * The counters of sluice_counters.def show by themselves: as a member of a
 * labelled family where their name begins with that family's prefix, else as
 * sluice_NAME_total.
 */
#include <stdio.h>

#include "control/text.h"
#include "control/view.h"

static const struct counter {
	const char *name, *help;
	size_t offset;
} counters[] = {
#define X(field, text) { #field, text, offsetof(struct sluice_counters, field) },
#include "sluice_counters.def"
#undef X
};

static uint64_t counter_get(const struct view *v, const struct counter *c)
{
	return *(const uint64_t *)(const void *)((const char *)&v->counters + c->offset);
}

static const struct counter_family {
	const char *prefix, *suffix; /* of the counters' names; what is between is the label's value */
	const char *name, *label, *help;
} families[] = {
	{ "ktls_", "", "sluice_ktls_connections_total", "direction", "TLS connections by what the kernel encrypts for them." },
	{ "user_tls_", "", "sluice_ktls_fallbacks_total", "reason", "TLS connections not wholly in the kernel, by why." },
	{ "fallback_", "", "sluice_fallbacks_total", "reason", "Bodies that were moved by a lower engine, by why." },
	{ "verdict_", "_bytes", "sluice_verdict_bytes_total", "verdict", "Bytes the BPF program decided on, by verdict." },
	{ "verdict_", "", "sluice_verdicts_total", "verdict", "Packet buffers the BPF program decided on, by verdict." },
};

/* Shown otherwise: as body_bytes, as requests by upstream, as the proxy's own gauge. */
static bool is_elsewhere(const char *name)
{
	return strncmp(name, "body_", 5) == 0 || strcmp(name, "requests") == 0 || strcmp(name, "connections_active") == 0;
}

/* The family a counter belongs to (the first that fits), and the label's value; NULL: none. */
static const struct counter_family *family_of(const char *name, struct str *value)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
		size_t pre = strlen(families[i].prefix), suf = strlen(families[i].suffix);

		if (n <= pre + suf || strncmp(name, families[i].prefix, pre) != 0 ||
		    strcmp(name + n - suf, families[i].suffix) != 0)
			continue;
		*value = (struct str){ name + pre, n - pre - suf };
		return &families[i];
	}
	return NULL;
}

/* help holds neither backslash nor line feed, which would have to be escaped. */
static void family(struct text *t, const char *name, const char *type, const char *help)
{
	text_printf(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: backslash, quote and line feed are escaped, nothing else. */
static void label(struct text *t, const char *sep, const char *name, const char *value)
{
	text_printf(t, "%s%s=\"", sep, name);
	while (*value) {
		size_t plain = strcspn(value, "\\\"\n");

		text_printf(t, "%.*s", (int)plain, value);
		value += plain;
		if (*value)
			text_printf(t, "\\%c", *value == '\n' ? 'n' : *value);
		value += *value != 0;
	}
	text_printf(t, "\"");
}

static void number(struct text *t, const char *name, const char *type, const char *help, uint64_t value)
{
	family(t, name, type, help);
	text_printf(t, "%s %llu\n", name, (unsigned long long)value);
}

static void seconds(struct text *t, const char *name, const char *type, const char *help, uint64_t ns)
{
	family(t, name, type, help);
	text_printf(t, "%s %llu.%06llu\n", name, (unsigned long long)(ns / NS_PER_S),
		    (unsigned long long)(ns % NS_PER_S / 1000));
}

static void write_process(struct text *t, const struct view *v)
{
	family(t, "sluice_build_info", "gauge", "Always 1; the labels say what runs.");
	text_printf(t, "sluice_build_info");
	label(t, "{", "version", v->version);
	text_printf(t, "} 1\n");
	seconds(t, "sluice_uptime_seconds", "gauge", "Since this process started.", v->uptime_ns);
	seconds(t, "process_start_time_seconds", "gauge", "When this process started, since 1970.", v->started_ns);
	seconds(t, "process_cpu_seconds_total", "counter", "User and system time of this process.", v->cpu_ns);
	number(t, "process_resident_memory_bytes", "gauge", "Resident memory of this process.", v->rss_bytes);
	if (v->open_fds >= 0)
		number(t, "process_open_fds", "gauge", "Open file descriptors.", (uint64_t)v->open_fds);
	number(t, "sluice_log_lines_lost_total", "counter", "Lines of the error log that could not be written.", v->log_lost);
	number(t, "sluice_reloads_total", "counter", "Configurations that were taken over at a reload.", v->reloads);
	number(t, "sluice_reloads_failed_total", "counter", "Reloads that were refused.", v->reloads_failed);
	number(t, "sluice_reload_last_ok", "gauge", "1 unless the last reload was refused.", !v->reload_failed);
	if (v->reload_ns)
		seconds(t, "sluice_reload_last_seconds", "gauge", "When a reload last took over a configuration, since 1970.",
			v->reload_ns);
}

static void write_proxy(struct text *t, const struct view *v)
{
	const char *why, *engine = view_engine(v, &why);
	static const char *const all[] = { "sockmap", "splice", "copy" };

	number(t, "sluice_workers", "gauge", "Worker threads.", v->workers);
	number(t, "sluice_draining", "gauge", "1 while no new connections are accepted.", v->draining);
	number(t, "sluice_active_connections", "gauge", "Client connections open.", v->sessions);
	number(t, "sluice_idle_upstream_connections", "gauge", "Unused connections kept to backends.", v->idle_upstreams);
	family(t, "sluice_engine", "gauge", "1 for the fastest engine that bodies may use.");
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		text_printf(t, "sluice_engine{engine=\"%s\"} %d\n", all[i], strcmp(all[i], engine) == 0);
	family(t, "sluice_listener_connections", "gauge", "Client connections open, by listener.");
	for (uint32_t i = 0; i < v->listeners_n; i++) {
		text_printf(t, "sluice_listener_connections");
		label(t, "{", "listener", v->listeners[i].text);
		text_printf(t, "} %u\n", v->listeners[i].open);
	}
	family(t, "sluice_listener_accepted_total", "counter", "Client connections accepted, by listener.");
	for (uint32_t i = 0; i < v->listeners_n; i++) {
		text_printf(t, "sluice_listener_accepted_total");
		label(t, "{", "listener", v->listeners[i].text);
		text_printf(t, "} %llu\n", (unsigned long long)v->listeners[i].accepted);
	}
	family(t, "sluice_requests_total", "counter", "Responses to clients, by upstream and status.");
	for (uint32_t i = 0; i < v->requests_n; i++) {
		text_printf(t, "sluice_requests_total");
		label(t, "{", "upstream", v->requests[i].upstream);
		text_printf(t, ",code=\"%u\"} %llu\n", v->requests[i].code, (unsigned long long)v->requests[i].n);
	}
}

static uint64_t backend_is_up(const struct view_backend *b)
{
	return b->state != SLUICE_HEALTH_DOWN;
}

#define FIELD(field)                                                  \
	static uint64_t backend_##field##_of(const struct view_backend *b) \
	{                                                             \
		return b->field;                                      \
	}
FIELD(admin)
FIELD(weight)
FIELD(active)
FIELD(connections)
FIELD(requests)
FIELD(checks_ok)
FIELD(checks_failed)
FIELD(last_change_ns)
FIELD(latency_us)
#undef FIELD

static const struct backend_series {
	const char *name, *type, *help;
	uint64_t (*get)(const struct view_backend *b);
	unsigned decimals; /* the number is in units of 10^-decimals */
} backend_series[] = {
	{ "sluice_backend_up", "gauge", "0 while the backend is down; one that was not checked yet counts as up.",
	  backend_is_up, 0 },
	{ "sluice_backend_admin", "gauge", "What the operator said: 0 enabled, 1 drain, 2 disabled.", backend_admin_of, 0 },
	{ "sluice_backend_weight", "gauge", "Weight in use.", backend_weight_of, 0 },
	{ "sluice_backend_active_requests", "gauge", "Requests that run there now.", backend_active_of, 0 },
	{ "sluice_backend_connections", "gauge", "Open connections to it, unused ones too.", backend_connections_of, 0 },
	{ "sluice_backend_requests_total", "counter", "Requests given to it.", backend_requests_of, 0 },
	{ "sluice_backend_checks_passed_total", "counter", "Health checks that passed.", backend_checks_ok_of, 0 },
	{ "sluice_backend_checks_failed_total", "counter", "Health checks that failed.", backend_checks_failed_of, 0 },
	{ "sluice_backend_check_latency_seconds", "gauge", "Of the last check that passed.", backend_latency_us_of, 6 },
	{ "sluice_backend_last_change_seconds", "gauge", "When its state changed last, since 1970; 0: never.",
	  backend_last_change_ns_of, 9 },
};

static void write_backends(struct text *t, const struct view *v)
{
	for (size_t s = 0; s < ARRAY_SIZE(backend_series); s++) {
		const struct backend_series *e = &backend_series[s];
		uint64_t unit = 1;

		for (unsigned i = 0; i < e->decimals; i++)
			unit *= 10;
		family(t, e->name, e->type, e->help);
		for (uint32_t i = 0; i < v->backends_n; i++) {
			uint64_t n = e->get(&v->backends[i]);

			text_printf(t, "%s", e->name);
			label(t, "{", "upstream", v->backends[i].upstream);
			label(t, ",", "backend", v->backends[i].text);
			text_printf(t, "} %llu", (unsigned long long)(n / unit));
			if (e->decimals)
				text_printf(t, ".%0*llu", (int)e->decimals, (unsigned long long)(n % unit));
			text_printf(t, "\n");
		}
	}
}

static void write_bodies(struct text *t, const struct view *v)
{
	family(t, "sluice_body_bytes_total", "counter", "Body bytes forwarded, by what moved them and which way.");
	for (size_t i = 0; i < ARRAY_SIZE(counters); i++) {
		char engine[16], direction[16];

		if (sscanf(counters[i].name, "body_%15[a-z]_%15[a-z]_bytes", engine, direction) == 2)
			text_printf(t, "sluice_body_bytes_total{engine=\"%s\",direction=\"%s\"} %llu\n", engine, direction,
				    (unsigned long long)counter_get(v, &counters[i]));
	}
	number(t, "sluice_flow_outstanding_bytes", "gauge",
	       "Bytes the kernel holds that were redirected and are not yet in a target's send buffer.", v->outstanding);
	number(t, "sluice_flow_window_bytes", "gauge", "Configured bound for one flow.", v->window);
	number(t, "sluice_flow_memory_bytes", "gauge", "Configured bound over all flows.", v->memory);
}

static void write_counters(struct text *t, const struct view *v)
{
	struct str value;

	for (size_t f = 0; f < ARRAY_SIZE(families); f++) {
		family(t, families[f].name, "counter", families[f].help);
		for (size_t i = 0; i < ARRAY_SIZE(counters); i++)
			if (family_of(counters[i].name, &value) == &families[f])
				text_printf(t, "%s{%s=\"" STR_FMT "\"} %llu\n", families[f].name, families[f].label,
					    STR_ARG(value), (unsigned long long)counter_get(v, &counters[i]));
	}
	for (size_t i = 0; i < ARRAY_SIZE(counters); i++) {
		bool gauge = strstr(counters[i].help, "(gauge)") != NULL;
		char name[96];

		if (is_elsewhere(counters[i].name) || family_of(counters[i].name, &value))
			continue;
		snprintf(name, sizeof(name), gauge ? "sluice_%s" : "sluice_%s_total", counters[i].name);
		number(t, name, gauge ? "gauge" : "counter", counters[i].help, counter_get(v, &counters[i]));
	}
}

int view_write_metrics(const struct view *v, struct buf *out)
{
	struct text t = TEXT_INIT(out);

	write_process(&t, v);
	write_proxy(&t, v);
	write_backends(&t, v);
	write_bodies(&t, v);
	write_counters(&t, v);
	return t.err;
}
