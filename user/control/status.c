/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /status: a view as one JSON object. Names are stable: others read them.
 * Durations are seconds (_s) or microseconds (_us), sizes bytes, times UTC in
 * ISO 8601 or null. Names of what the operator configured are strings, never
 * keys.
 */
#include <stdio.h>

#include "control/text.h"
#include "control/view.h"
#include "lb/backend.h"

const char *view_engine(const struct view *v, const char **why)
{
	*why = "";
	if (strcmp(v->engine_limit, "copy") == 0) {
		*why = "the configuration says splice.engine: copy";
		return "copy";
	}
	if (strcmp(v->engine_limit, "splice") == 0) {
		*why = "the configuration says splice.engine: splice";
		return "splice";
	}
	if (v->features.sockmap)
		return "sockmap";
	*why = v->features.reason_sockmap[0] ? v->features.reason_sockmap : "the kernel does not offer it";
	return "splice";
}

static void write_process(struct text *t, const struct view *v)
{
	json_str(t, "version", v->version);
	json_u64(t, "pid", (uint64_t)v->pid);
	json_time(t, "now", v->now_ns);
	json_time(t, "started", v->started_ns);
	json_seconds(t, "uptime_s", v->uptime_ns);
	json_str(t, "config", v->conf_path);
	json_u64(t, "workers", v->workers);
	json_bool(t, "draining", v->draining);
	json_open(t, "process", '{');
	json_seconds(t, "cpu_s", v->cpu_ns);
	json_u64(t, "rss_bytes", v->rss_bytes);
	if (v->open_fds >= 0)
		json_u64(t, "open_fds", (uint64_t)v->open_fds);
	json_u64(t, "log_lines_lost", v->log_lost);
	json_close(t, '}');
	json_open(t, "reload", '{');
	json_bool(t, "last_ok", !v->reload_failed);
	json_time(t, "last", v->reload_ns);
	json_u64(t, "done", v->reloads);
	json_u64(t, "failed", v->reloads_failed);
	json_close(t, '}');
}

static void write_engine(struct text *t, const struct view *v)
{
	const struct kern_features *f = &v->features;
	const char *why, *engine = view_engine(v, &why);

	json_open(t, "engine", '{');
	json_str(t, "in_use", engine);
	json_str(t, "why", why);
	json_str(t, "limit", v->engine_limit);
	json_bool(t, "sockmap", f->sockmap);
	json_str(t, "sockmap_reason", f->reason_sockmap);
	json_bool(t, "bpf_maps", f->bpf_maps);
	json_str(t, "bpf_maps_reason", f->reason_maps);
	json_bool(t, "pinned", f->pinned);
	json_str(t, "pinned_reason", f->reason_pinned);
	json_bool(t, "adopted", f->adopted);
	json_close(t, '}');
}

static void write_connections(struct text *t, const struct view *v)
{
	json_open(t, "connections", '{');
	json_u64(t, "client", v->sessions);
	json_u64(t, "upstream_idle", v->idle_upstreams);
	json_close(t, '}');
	json_open(t, "listeners", '[');
	for (uint32_t i = 0; i < v->listeners_n; i++) {
		const struct view_listener *l = &v->listeners[i];
		const char *colon = strrchr(l->text, ':');
		bool file = strncmp(l->text, "unix:", 5) == 0;
		unsigned port = 0;

		if (colon && !file)
			sscanf(colon + 1, "%u", &port);
		json_open(t, NULL, '{');
		json_str(t, "address", l->text);
		json_u64(t, "port", port);
		json_bool(t, "tls", l->tls);
		json_u64(t, "open", l->open);
		json_u64(t, "accepted", l->accepted);
		json_close(t, '}');
	}
	json_close(t, ']');
}

void view_write_backend(const struct view_backend *b, bool full_name, struct text *t)
{
	json_open(t, NULL, '{');
	if (full_name)
		json_str(t, "upstream", b->upstream);
	json_str(t, "address", b->text);
	json_str(t, "state", backend_state_name(b->state));
	json_str(t, "admin", backend_admin_name(b->admin));
	json_u64(t, "weight", b->weight);
	json_u64(t, "weight_configured", b->weight_conf);
	json_u64(t, "active", b->active);
	json_u64(t, "connections", b->connections);
	json_u64(t, "requests", b->requests);
	json_u64(t, "checks_passed", b->checks_ok);
	json_u64(t, "checks_failed", b->checks_failed);
	json_u64(t, "latency_us", b->latency_us);
	json_time(t, "last_change", b->last_change_ns);
	json_str(t, "last_error", b->last_error);
	json_close(t, '}');
}

static void write_upstreams(struct text *t, const struct view *v)
{
	json_open(t, "upstreams", '[');
	for (uint32_t i = 0; i < v->upstreams_n; i++) {
		const struct view_upstream *u = &v->upstreams[i];

		json_open(t, NULL, '{');
		json_str(t, "name", u->name);
		json_str(t, "balance", u->balance);
		json_str(t, "health_check", u->check);
		json_bool(t, "tls", u->tls);
		json_open(t, "backends", '[');
		for (uint32_t b = u->first; b < u->first + u->n; b++)
			view_write_backend(&v->backends[b], false, t);
		json_close(t, ']');
		json_close(t, '}');
	}
	json_close(t, ']');
	json_open(t, "requests", '[');
	for (uint32_t i = 0; i < v->requests_n; i++) {
		json_open(t, NULL, '{');
		json_str(t, "upstream", v->requests[i].upstream);
		json_u64(t, "code", v->requests[i].code);
		json_u64(t, "count", v->requests[i].n);
		json_close(t, '}');
	}
	json_close(t, ']');
}

static void write_bodies(struct text *t, const struct view *v)
{
	const struct sluice_counters *c = &v->counters;
	const struct {
		const char *engine;
		uint64_t request, response;
	} rows[] = {
		{ "sockmap", c->body_sockmap_request_bytes, c->body_sockmap_response_bytes },
		{ "splice", c->body_splice_request_bytes, c->body_splice_response_bytes },
		{ "copy", c->body_copy_request_bytes, c->body_copy_response_bytes },
	};

	json_open(t, "body_bytes", '{');
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_open(t, rows[i].engine, '{');
		json_u64(t, "request", rows[i].request);
		json_u64(t, "response", rows[i].response);
		json_close(t, '}');
	}
	json_close(t, '}');
	json_open(t, "flows", '{');
	json_u64(t, "outstanding_bytes", v->outstanding);
	json_u64(t, "window_bytes", v->window);
	json_u64(t, "memory_bytes", v->memory);
	json_u64(t, "armed", c->flow_arms);
	json_u64(t, "ended_in_kernel", c->flow_ends);
	json_u64(t, "spills", c->flow_spills);
	json_u64(t, "trims", c->flow_trims);
	json_u64(t, "gaps", c->flow_gaps);
	json_close(t, '}');
	json_open(t, "ktls", '{');
	json_u64(t, "tx", c->ktls_tx);
	json_u64(t, "rx", c->ktls_rx);
	json_u64(t, "both", c->ktls_both);
	json_u64(t, "none", c->ktls_none);
	json_close(t, '}');
}

void view_write_counters(const struct view *v, struct text *t)
{
	json_open(t, "counters", '{');
#define X(name, help) json_u64(t, #name, v->counters.name);
#include "sluice_counters.def"
#undef X
	json_close(t, '}');
}

int view_write_status(const struct view *v, struct buf *out)
{
	struct text t = TEXT_INIT(out);

	json_open(&t, NULL, '{');
	write_process(&t, v);
	write_engine(&t, v);
	write_connections(&t, v);
	write_upstreams(&t, v);
	write_bodies(&t, v);
	view_write_counters(v, &t);
	json_close(&t, '}');
	text_printf(&t, "\n");
	return t.err;
}
