/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What can be said over the control socket: one table of verbs. A verb writes
 * its answer and returns 0, or returns positive and the text says why it was
 * refused. Tables for people are written here too, so that a bare socket and
 * sluicectl show the same.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "control/control_inner.h"
#include "control/names.h"
#include "control/text.h"

#define WORDS_MAX 8
#define VERB_REFUSED 1

struct verb_call {
	struct control *control;
	const struct verb *verb;
	const char *arg[WORDS_MAX]; /* the verb not included */
	unsigned args;
	bool json;
	const char *who;
	char refusal[256]; /* one line: why VERB_REFUSED */
	struct text text;  /* what follows the first line */
};

struct verb {
	const char *name, *arguments, *help;
	unsigned args; /* exactly so many */
	int (*run)(struct verb_call *c);
};

static const struct verb verbs[];

static int _printf_(2, 3) refuse(struct verb_call *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->refusal, sizeof(c->refusal), fmt, ap);
	va_end(ap);
	return VERB_REFUSED;
}

/* ---- what is shown ---- */

static void show_backends(struct text *t, const struct view *v)
{
	static const char *const headings[] = { "BACKEND", "STATE", "ADMIN",  ">WEIGHT", ">ACTIVE",    ">CONNS",
						">REQUESTS", ">CHECK", ">SINCE", "LAST ERROR", NULL };
	struct table table;

	table_init(&table, headings);
	for (uint32_t i = 0; i < v->backends_n; i++) {
		const struct view_backend *b = &v->backends[i];
		char z[HUMAN_MAX];

		table_cell(&table, "%s/%s", b->upstream, b->text);
		table_cell(&table, "%s", backend_state_name(b->state));
		table_cell(&table, "%s", backend_admin_name(b->admin));
		if (b->weight == b->weight_conf)
			table_cell(&table, "%u", b->weight);
		else
			table_cell(&table, "%u (of %u)", b->weight, b->weight_conf);
		table_cell(&table, "%u", b->active);
		table_cell(&table, "%u", b->connections);
		table_cell(&table, "%llu", (unsigned long long)b->requests);
		table_cell(&table, "%s", b->latency_us ? human_duration(z, b->latency_us * 1000ull) : "-");
		table_cell(&table, "%s",
			   b->last_change_ns && b->last_change_ns < v->now_ns ?
				   human_duration(z, v->now_ns - b->last_change_ns) :
				   "-");
		table_cell(&table, "%s", b->last_error[0] ? b->last_error : "-");
	}
	table_write(&table, t);
	for (uint32_t i = 0; i < v->upstreams_n; i++)
		if (v->upstreams[i].n == 0)
			text_printf(t, "%s: no backends yet, its names do not resolve\n", v->upstreams[i].name);
}

static void show_summary(struct text *t, const struct view *v)
{
	const char *why, *engine = view_engine(v, &why);
	const struct sluice_counters *c = &v->counters;
	uint64_t total = 0, by_class[6] = { 0 };
	char a[HUMAN_MAX], b[HUMAN_MAX], d[HUMAN_MAX];

	for (uint32_t i = 0; i < v->requests_n; i++) {
		total += v->requests[i].n;
		by_class[MIN_OF(v->requests[i].code / 100, 5u)] += v->requests[i].n;
	}
	text_printf(t, "sluice %s, pid %d, up %s%s\n", v->version, v->pid, human_duration(a, v->uptime_ns),
		    v->draining ? ", draining" : "");
	text_printf(t, "config       %s%s\n", v->conf_path, v->reload_failed ? " (the last reload was refused)" : "");
	text_printf(t, "engine       %s%s%s\n", engine, *why ? ": " : "", why);
	text_printf(t, "workers      %u\n", v->workers);
	text_printf(t, "connections  %u open, %u unused to backends\n", v->sessions, v->idle_upstreams);
	text_printf(t, "requests     %llu", (unsigned long long)total);
	for (unsigned i = 1; i < ARRAY_SIZE(by_class); i++)
		if (by_class[i])
			text_printf(t, ", %uxx %llu", i, (unsigned long long)by_class[i]);
	text_printf(t, "\nbodies       sockmap %s, splice %s, copy %s\n",
		    human_bytes(a, c->body_sockmap_request_bytes + c->body_sockmap_response_bytes),
		    human_bytes(b, c->body_splice_request_bytes + c->body_splice_response_bytes),
		    human_bytes(d, c->body_copy_request_bytes + c->body_copy_response_bytes));
	text_printf(t, "in kernel    %s on their way, bound %s\n", human_bytes(a, v->outstanding), human_bytes(b, v->memory));
	text_printf(t, "memory       %s resident\n\n", human_bytes(a, v->rss_bytes));
}

static void show_listeners(struct text *t, const struct view *v)
{
	static const char *const headings[] = { "LISTENER", "TLS", ">OPEN", ">ACCEPTED", NULL };
	struct table table;

	table_init(&table, headings);
	for (uint32_t i = 0; i < v->listeners_n; i++) {
		table_cell(&table, "%s", v->listeners[i].text);
		table_cell(&table, "%s", v->listeners[i].tls ? "yes" : "no");
		table_cell(&table, "%u", v->listeners[i].open);
		table_cell(&table, "%llu", (unsigned long long)v->listeners[i].accepted);
	}
	table_write(&table, t);
	text_printf(t, "\n");
}

/* Runs show on a fresh view. */
static int with_view(struct verb_call *c, void (*show)(struct verb_call *c, const struct view *v))
{
	struct view v;
	int r = view_collect(&v, c->control);

	if (r == 0)
		show(c, &v);
	view_deinit(&v);
	return r;
}

static void status_of(struct verb_call *c, const struct view *v)
{
	if (c->json) {
		int r = view_write_status(v, c->text.out);

		c->text.err = c->text.err ? c->text.err : r;
		return;
	}
	show_summary(&c->text, v);
	show_listeners(&c->text, v);
	show_backends(&c->text, v);
}

static void backends_of(struct verb_call *c, const struct view *v)
{
	if (!c->json) {
		show_backends(&c->text, v);
		return;
	}
	json_open(&c->text, NULL, '[');
	for (uint32_t i = 0; i < v->backends_n; i++)
		view_write_backend(&v->backends[i], true, &c->text);
	json_close(&c->text, ']');
	text_printf(&c->text, "\n");
}

static void stats_of(struct verb_call *c, const struct view *v)
{
	static const char *const headings[] = { "COUNTER", ">VALUE", "WHAT IT COUNTS", NULL };
	struct table table;

	if (c->json) {
		json_open(&c->text, NULL, '{');
		view_write_counters(v, &c->text);
		json_close(&c->text, '}');
		text_printf(&c->text, "\n");
		return;
	}
	table_init(&table, headings);
#define X(name, help)                                                                  \
	table_cell(&table, "%s", #name);                                               \
	table_cell(&table, "%llu", (unsigned long long)v->counters.name);              \
	table_cell(&table, "%s", help);
#include "sluice_counters.def"
#undef X
	table_write(&table, &c->text);
}

static int verb_status(struct verb_call *c)
{
	return with_view(c, status_of);
}

static int verb_backends(struct verb_call *c)
{
	return with_view(c, backends_of);
}

static int verb_stats(struct verb_call *c)
{
	return with_view(c, stats_of);
}

/* ---- what is changed ---- */

static void known_names(struct verb_call *c, const struct view *v)
{
	const char *nearest = NULL;
	size_t best = SIZE_MAX;
	char name[NAME_MAX_BYTES], near[NAME_MAX_BYTES];

	for (uint32_t i = 0; i < v->backends_n; i++) {
		size_t d, short_d = name_distance(c->arg[0], v->backends[i].text);

		snprintf(name, sizeof(name), "%s/%s", v->backends[i].upstream, v->backends[i].text);
		d = MIN_OF(name_distance(c->arg[0], name), short_d);
		if (d < best) {
			best = d;
			memcpy(near, name, sizeof(near));
			nearest = near;
		}
	}
	if (nearest && best <= strlen(c->arg[0]) / 3)
		text_printf(&c->text, "the nearest is %s\n", nearest);
	text_printf(&c->text, "backends are:\n");
	for (uint32_t i = 0; i < v->backends_n; i++)
		text_printf(&c->text, "  %s/%s\n", v->backends[i].upstream, v->backends[i].text);
}

/* The backend that arg[0] names; one reference. 0, VERB_REFUSED or -errno. */
static int find_backend(struct verb_call *c, struct backend **out)
{
	int r = lb_find_backend(proxy_lb(c->control->proxy), str_from(c->arg[0]), out);

	if (r <= 0)
		return r;
	refuse(c, r == 2 ? "several upstreams have %s: say UPSTREAM/ADDRESS" : "there is no backend %s", c->arg[0]);
	r = with_view(c, known_names);
	return r < 0 ? r : VERB_REFUSED;
}

static void backend_answer(struct verb_call *c, const struct backend *b, const char *what)
{
	unsigned active = atomic_load_explicit(&b->active, memory_order_relaxed);

	log_info("operator", "verb=%s upstream=%s backend=%s %s", c->verb->name, b->upstream, b->text, c->who);
	if (c->json) {
		json_open(&c->text, NULL, '{');
		json_str(&c->text, "upstream", b->upstream);
		json_str(&c->text, "address", b->text);
		json_str(&c->text, "state", backend_state_name(backend_state(b)));
		json_str(&c->text, "admin", backend_admin_name(backend_admin(b)));
		json_u64(&c->text, "weight", __atomic_load_n(&b->health->weight, __ATOMIC_RELAXED));
		json_u64(&c->text, "active", active);
		json_close(&c->text, '}');
		text_printf(&c->text, "\n");
		return;
	}
	text_printf(&c->text, "%s/%s %s, %u %s running there\n", b->upstream, b->text, what, active,
		    active == 1 ? "request" : "requests");
}

static int set_admin(struct verb_call *c, uint32_t admin, const char *what)
{
	struct backend *b;
	int r = find_backend(c, &b);

	if (r != 0)
		return r;
	backend_set_admin(b, admin);
	backend_answer(c, b, what);
	backend_unref(b);
	return 0;
}

static int verb_drain(struct verb_call *c)
{
	return set_admin(c, SLUICE_ADMIN_DRAIN, "drains: no new sessions");
}

static int verb_enable(struct verb_call *c)
{
	return set_admin(c, SLUICE_ADMIN_ENABLED, "is enabled");
}

static int verb_disable(struct verb_call *c)
{
	return set_admin(c, SLUICE_ADMIN_DISABLED, "is disabled: no new requests");
}

static int verb_weight(struct verb_call *c)
{
	const char *z = c->arg[1];
	unsigned long n = 0;
	struct backend *b;
	char *end, what[64];
	int r;

	/* 0 means "as configured" in the health table, so it can not mean "none" here. */
	if (strcmp(z, "default") != 0) {
		n = *z >= '0' && *z <= '9' ? strtoul(z, &end, 10) : 0;
		if (n < 1 || n > CONF_WEIGHT_MAX || *end)
			return refuse(c, "weight %s: from 1 to %d, or default for the configured one; for no requests: drain", z,
				      CONF_WEIGHT_MAX);
	}
	r = find_backend(c, &b);
	if (r != 0)
		return r;
	backend_set_weight(b, (uint32_t)n);
	snprintf(what, sizeof(what), n ? "has weight %lu" : "has its configured weight", n);
	backend_answer(c, b, what);
	backend_unref(b);
	return 0;
}

static int run_hook(struct verb_call *c, int (*hook)(void *, struct buf *), const char *failed)
{
	struct buf answer = BUF_INIT;
	int r;

	if (!hook)
		return refuse(c, "%s is not available", c->verb->name);
	log_info("operator", "verb=%s %s", c->verb->name, c->who);
	r = hook(c->control->hooks.ctx, &answer);
	if (c->json) {
		json_open(&c->text, NULL, '{');
		json_bool(&c->text, "ok", r >= 0);
		if (buf_append(&answer, "", 1) == 0)
			json_str(&c->text, "text", buf_data(&answer));
		json_close(&c->text, '}');
		text_printf(&c->text, "\n");
	} else {
		struct str a = buf_str(&answer);

		text_printf(&c->text, STR_FMT "%s", STR_ARG(a), a.n && a.p[a.n - 1] != '\n' ? "\n" : "");
	}
	buf_deinit(&answer);
	return r < 0 ? refuse(c, "%s: %s", failed, strerror(-r)) : 0;
}

static int verb_reload(struct verb_call *c)
{
	return run_hook(c, c->control->hooks.reload, "not reloaded, all is as it was");
}

static int verb_upgrade(struct verb_call *c)
{
	return run_hook(c, c->control->hooks.upgrade, "not upgraded, this process goes on");
}

static int verb_help(struct verb_call *c)
{
	static const char *const headings[] = { "VERB", "WHAT IT DOES", NULL };
	struct table table;

	table_init(&table, headings);
	for (const struct verb *v = verbs; v->name; v++) {
		table_cell(&table, "%s%s%s", v->name, *v->arguments ? " " : "", v->arguments);
		table_cell(&table, "%s", v->help);
	}
	table_write(&table, &c->text);
	return 0;
}

static const struct verb verbs[] = {
	{ "status", "", "the process, its listeners and backends", 0, verb_status },
	{ "backends", "", "the backends", 0, verb_backends },
	{ "stats", "", "every counter", 0, verb_stats },
	{ "drain", "NAME", "no new sessions for this backend; running ones go on", 1, verb_drain },
	{ "disable", "NAME", "no new requests for it at all, unused connections are closed", 1, verb_disable },
	{ "enable", "NAME", "use it again", 1, verb_enable },
	{ "weight", "NAME N", "override its weight; default: the configured one again", 2, verb_weight },
	{ "reload", "", "read the configuration again", 0, verb_reload },
	{ "upgrade", "", "start the binary on disk and hand over to it", 0, verb_upgrade },
	{ "help", "", "this list", 0, verb_help },
	{ NULL, NULL, NULL, 0, NULL },
};

static const struct verb *verb_find(struct verb_call *c, const char *name)
{
	const char *nearest = NULL;
	size_t best = 3;

	for (const struct verb *v = verbs; v->name; v++) {
		size_t d = name_distance(name, v->name);

		if (d == 0)
			return v;
		if (d < best) {
			best = d;
			nearest = v->name;
		}
	}
	if (nearest)
		refuse(c, "unknown verb %s, the nearest is %s", name, nearest);
	else
		refuse(c, "unknown verb %s, help lists them", name);
	return NULL;
}

/* Splits in place; words is then the verb and its arguments, --json taken out. 0 or VERB_REFUSED. */
static int split(struct verb_call *c, char *line, const char *words[], unsigned *n)
{
	char *save = NULL;

	for (const char *z = line; *z; z++)
		if ((unsigned char)*z < ' ' && *z != '\t')
			return refuse(c, "the line holds a control character");
	for (char *w = strtok_r(line, " \t", &save); w; w = strtok_r(NULL, " \t", &save)) {
		if (strcmp(w, "--json") == 0)
			c->json = true;
		else if (*n == WORDS_MAX)
			return refuse(c, "more than %d words", WORDS_MAX);
		else
			words[(*n)++] = w;
	}
	return *n ? 0 : refuse(c, "no verb, help lists them");
}

static int verb_call(struct verb_call *c, char *line)
{
	const char *words[WORDS_MAX];
	unsigned n = 0;
	int r = split(c, line, words, &n);

	if (r != 0)
		return r;
	c->verb = verb_find(c, words[0]);
	if (!c->verb)
		return VERB_REFUSED;
	c->args = n - 1;
	memcpy(c->arg, words + 1, c->args * sizeof(*words));
	if (c->args != c->verb->args)
		return refuse(c, "usage: %s%s%s", c->verb->name, *c->verb->arguments ? " " : "", c->verb->arguments);
	r = c->verb->run(c);
	return c->text.err ? c->text.err : r;
}

int verb_run(struct control *control, struct str line, const char *who, struct buf *out)
{
	struct buf body = BUF_INIT;
	struct verb_call c = { .control = control, .who = who, .text = TEXT_INIT(&body) };
	char *z = memchr(line.p, 0, line.n) ? NULL : str_dup(line);
	int r;

	if (z)
		r = verb_call(&c, z);
	else
		r = line.n && memchr(line.p, 0, line.n) ? refuse(&c, "the line holds a control character") : -ENOMEM;
	free(z);
	if (r >= 0)
		r = r == 0 ? buf_append_str(out, STR("ok\n")) : buf_printf(out, "error: %s\n", c.refusal);
	if (r == 0)
		r = buf_append_str(out, buf_str(&body));
	buf_deinit(&body);
	return r;
}
