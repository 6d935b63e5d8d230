/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A view: everything there is to show about the process, copied at one moment.
 * Collecting touches the other rooms and their locks, briefly; writing it as
 * metrics, JSON or tables is then a pure function of the view.
 *
 * The numbers are not one transaction: workers go on counting meanwhile.
 */
#pragma once
#include "base/buf.h"
#include "conf/conf.h"
#include "io/sock.h"
#include "kern/bpf.h"

struct control;

struct view_backend {
	char upstream[64], text[112];
	uint32_t state, admin;	  /* enum sluice_health_state, sluice_health_admin */
	uint32_t weight, weight_conf;
	unsigned active, connections;
	uint64_t requests;
	uint64_t checks_ok, checks_failed;
	uint64_t last_change_ns; /* CLOCK_REALTIME; 0: never */
	uint32_t latency_us;	 /* of the last check that passed; 0: unknown */
	char last_error[64];
};

struct view_upstream {
	char name[64];
	const char *balance, *check; /* the configuration's words */
	bool tls;
	uint32_t first, n; /* its backends in view.backends */
};

struct view_listener {
	char text[SOCK_TEXT_MAX];
	bool tls;
	unsigned open;
	uint64_t accepted;
};

struct view_requests {
	char upstream[64];
	unsigned code;
	uint64_t n;
};

struct view {
	/* process */
	const char *version;
	char conf_path[256];
	int pid;
	uint64_t now_ns, started_ns; /* CLOCK_REALTIME */
	uint64_t uptime_ns;
	uint64_t cpu_ns, rss_bytes;
	int64_t open_fds; /* -1: unknown */
	uint64_t log_lost;
	uint64_t reloads, reloads_failed, reload_ns; /* reload_ns: CLOCK_REALTIME of the last good one; 0: none */
	bool reload_failed;			     /* the last one */

	/* proxy */
	unsigned workers, sessions, idle_upstreams;
	bool draining;
	const char *engine_limit; /* the configuration's word */
	uint64_t window, memory;  /* bytes, of the configuration */
	struct kern_features features;
	struct sluice_counters counters;
	uint64_t outstanding; /* bytes in the kernel on their way, over all flows */

	struct view_listener *listeners;
	uint32_t listeners_n;
	struct view_upstream *upstreams;
	uint32_t upstreams_n;
	struct view_backend *backends; /* in the order of their upstreams */
	uint32_t backends_n;
	struct view_requests *requests; /* only those that are not 0 */
	uint32_t requests_n;
};

/* 0 or -ENOMEM. The caller owns what is in it: view_deinit, also after a failure. */
int view_collect(struct view *v, const struct control *c);
void view_deinit(struct view *v);
/* Whether the proxy no longer takes new connections. */
bool view_draining(const struct control *c);

/* The fastest engine in use: "sockmap", "splice" or "copy"; why: why not a faster one, "" when it is the fastest. */
const char *view_engine(const struct view *v, const char **why);

/* Each appends to out; 0 or -ENOMEM (out is then of no use). */
int view_write_metrics(const struct view *v, struct buf *out); /* Prometheus text format 0.0.4 */
int view_write_status(const struct view *v, struct buf *out);  /* JSON, one object */

struct text;
/* Parts of the status, for answers that hold only them: elements of an array or of an object in t. */
void view_write_backend(const struct view_backend *b, bool full_name, struct text *t);
void view_write_counters(const struct view *v, struct text *t);
