/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/worker.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "proxy/access_log.h"
#include "proxy/exchange.h"
#include "proxy/listener.h"
#include "proxy/session.h"
#include "proxy/session_slab.h"
#include "proxy/proxy.h"
#include "proxy/worker_inner.h"

#define TICK_MS 250
#define HANDSHAKE_MS 5000

struct worker_site *worker_site_ref(struct worker_site *s)
{
	s->refs++;
	return s;
}

void worker_site_unref(struct worker_site *s)
{
	if (!s || --s->refs)
		return;
	for (uint32_t i = 0; i < s->site->table->n; i++) {
		if (s->views)
			upstream_view_deinit(&s->views[i]);
		if (s->sessions)
			tls_session_cache_unref(s->sessions[i]);
	}
	free(s->views);
	free(s->sessions);
	site_unref(s->site);
	free(s);
}

int worker_site_new(struct worker_site **out, struct site *site, unsigned worker)
{
	struct worker_site *s = calloc(1, sizeof(*s));
	uint32_t n = site->table->n;
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->refs = 1;
	s->site = site_ref(site);
	s->views = calloc(n ? n : 1, sizeof(*s->views));
	s->sessions = calloc(n ? n : 1, sizeof(*s->sessions));
	if (!s->views || !s->sessions)
		r = -ENOMEM;
	for (uint32_t i = 0; i < n && r == 0; i++) {
		r = upstream_view_init(&s->views[i], site->table->upstream[i], worker);
		if (r == 0 && site->upstream_tls[i])
			r = tls_session_cache_new(&s->sessions[i]);
	}
	if (r < 0) {
		worker_site_unref(s);
		return r;
	}
	*out = s;
	return 0;
}

#define TRIM_AFTER 256 /* exchanges at a time that make a peak */

/* After a peak the heap keeps its buffers' pages; the system gets them back once it is over. */
static void give_back(struct worker *w, uint64_t now)
{
	if (now < w->trim_ns)
		return;
	w->trim_ns = now + NS_PER_S;
	if (w->busy_peak >= TRIM_AFTER && w->busy < w->busy_peak / 8)
		malloc_trim(0);
	if (w->busy_peak == 0)
		buf_trim();
	w->busy_peak = w->busy;
}

/* A handshake that nobody ended, a connection that another process took: what is not here after so long never comes. */
static void give_up_waiting(struct worker *w, uint64_t now)
{
	if (now < w->given_look_ns)
		return;
	if ((int32_t)(w->given_then - w->came) > 0) {
		w->came = w->given_then;
		worker_session_count(w, 0);
	}
	w->given_then = __atomic_load_n(&w->load->given, __ATOMIC_RELAXED);
	w->given_look_ns = now + HANDSHAKE_MS * NS_PER_MS;
}

bool worker_spare(struct worker *w)
{
	if (pipe_spare(&w->pipes)) {
		descriptors_give(&w->fds, 2);
		return true;
	}
	return upconn_close_one(w);
}

#define LEND_PER_TICK 16

/* Another worker has clients waiting for descriptors: what nobody uses here is theirs. */
static void lend_descriptors(struct worker *w)
{
	if (!atomic_load_explicit(&w->fds.all->wanted, memory_order_relaxed) ||
	    !atomic_exchange(&w->fds.all->wanted, false))
		return;
	for (unsigned i = 0; i < LEND_PER_TICK && (worker_spare(w) || session_end_idle(w)); i++)
		;
	descriptors_settle(&w->fds);
}

static void worker_tick(struct timer *t)
{
	struct worker *w = container_of(t, struct worker, tick);
	uint64_t now = loop_now(w->loop);

	upconn_sweep(w, now);
	access_log_flush(w);
	lend_descriptors(w);
	give_back(w, now);
	give_up_waiting(w, now);
	timer_set(w->loop, t, now + TICK_MS * NS_PER_MS);
}

static void flows_event(struct watch *watch, _unused_ uint32_t events)
{
	flow_group_dispatch(container_of(watch, struct worker, flow_watch)->flows);
}

int worker_init(struct worker *w, struct proxy *p, unsigned index, struct kern *k)
{
	int r;

	w->proxy = p;
	w->index = index;
	w->counters = kern_counters(k, index);
	w->load = kern_listen_load(proxy_listen(p), index);
	w->flow_watch.fd = -1;
	w->fds.all = proxy_descriptors(p);
	list_init(&w->listeners);
	list_init(&w->sessions);
	for (size_t i = 0; i < WORKER_POOL_BUCKETS; i++)
		list_init(&w->pools[i]);
	http_head_init(&w->head, w->fields, HTTP_FIELDS_MAX);
	timer_init(&w->tick, worker_tick);
	r = loop_new(&w->loop);
	if (r < 0)
		return r;
	retry_budget_init(&w->retries, RETRY_PERCENT, RETRY_PER_SECOND, loop_now(w->loop));
	if (kern_features(k)->sockmap) {
		r = flow_group_new(&w->flows, k, index);
		if (r < 0) {
			log_warn("engine", "worker=%u engine=splice errno=%d reason=\"no event ring for this worker\"",
				 index, -r);
			w->flows = NULL;
		} else {
			w->flow_watch = (struct watch){ .fd = flow_group_fd(w->flows), .cb = flows_event };
			r = loop_add(w->loop, &w->flow_watch, EPOLLIN);
			if (r < 0)
				return r;
		}
	}
	return timer_set(w->loop, &w->tick, loop_now(w->loop) + TICK_MS * NS_PER_MS);
}

static struct listener *find_listener(struct worker *w, const struct listener_address *a, unsigned place)
{
	struct list *it, *next;

	list_for_each_safe(it, next, &w->listeners) {
		struct listener *l = list_entry(it, struct listener, link);
		if (l->address == a && l->place == place && l->accepting)
			return l;
	}
	return NULL;
}

/* The worker's places at an address: kept, or taken. */
static void apply_address(struct worker *w, struct listener_address *a, struct worker_site *site, uint32_t index)
{
	for (unsigned place = w->index; place < a->places; place += proxy_workers(w->proxy)) {
		struct listener *l = find_listener(w, a, place);
		int r = 0;

		if (l)
			listener_reconfigure(l, site, index);
		else
			r = listener_new(w, a, place, site, index);
		if (r < 0)
			log_error("listen_failed", "listener=%s worker=%u errno=%d reason=\"%s\"", a->text, w->index, -r,
				  strerror(-r));
	}
}

void worker_apply(struct worker *w, struct worker_site *site, struct listener_address **addresses)
{
	const struct conf *conf = site->site->conf;
	struct worker_site *old = w->site;
	struct list *it, *next;

	w->site = site;
	w->conf = conf;
	for (uint32_t i = 0; i < conf->listener_count; i++)
		apply_address(w, addresses[i], site, i);
	list_for_each_safe(it, next, &w->listeners) {
		struct listener *l = list_entry(it, struct listener, link);

		if (l->site == site)
			continue;
		listener_stop(l);
		if (l->sessions == 0)
			listener_free(l);
	}
	worker_site_unref(old);
}

void worker_drain(struct worker *w, bool close_idle)
{
	struct list *it, *next;

	w->draining = true;
	w->close_idle = close_idle;
	list_for_each_safe(it, next, &w->listeners) {
		struct listener *l = list_entry(it, struct listener, link);
		listener_stop(l);
		if (l->sessions == 0)
			listener_free(l);
	}
	upconn_close_idle(w);
	if (close_idle)
		list_for_each_safe(it, next, &w->sessions)
			session_drain(list_entry(it, struct session, link));
	access_log_flush(w);
	worker_session_gone(w);
}

void worker_session_gone(struct worker *w)
{
	if (w->draining && w->session_count == 0 && !w->drained_told) {
		w->drained_told = true;
		proxy_worker_drained(w->proxy);
	}
}

static void count_lack(struct worker *w, enum tls_kernel_lack lack)
{
	switch (lack) {
	case TLS_KERNEL_OFF:
		COUNT(w, user_tls_off);
		break;
	case TLS_KERNEL_ABSENT:
		COUNT(w, user_tls_no_kernel);
		break;
	case TLS_KERNEL_CIPHER:
		COUNT(w, user_tls_cipher);
		break;
	case TLS_KERNEL_LATE:
		COUNT(w, user_tls_late);
		break;
	case TLS_KERNEL_REFUSED:
		COUNT(w, user_tls_refused);
		break;
	default:
		break;
	}
}

void worker_tls_opened(struct worker *w, struct tls *t, const char *side, const char *name)
{
	const char *directions = "none";

	switch (tls_kernel(t)) {
	case TLS_KERNEL_BOTH:
		COUNT(w, ktls_both);
		return;
	case TLS_KERNEL_TX:
		COUNT(w, ktls_tx);
		directions = "tx";
		break;
	case TLS_KERNEL_RX:
		COUNT(w, ktls_rx);
		directions = "rx";
		break;
	default:
		COUNT(w, ktls_none);
	}
	count_lack(w, tls_kernel_lack(t));
	if (tls_kernel_lack(t) != TLS_KERNEL_OFF && tls_kernel_lack_is_news(t))
		log_info("ktls_fallback", "%s=%s in_kernel=%s version=%s cipher=%s reason=\"%s\"", side, name, directions,
			 tls_version(t), tls_cipher(t), tls_kernel_reason(t));
}

/* From the worker's thread, before its loop ends. */
void worker_end(struct worker *w)
{
	struct list *it, *next;

	w->draining = w->drained_told = true;
	list_for_each_safe(it, next, &w->listeners)
		listener_stop(list_entry(it, struct listener, link));
	list_for_each_safe(it, next, &w->sessions)
		session_kill(list_entry(it, struct session, link), END_SHUTDOWN);
	list_for_each_safe(it, next, &w->listeners)
		listener_free(list_entry(it, struct listener, link));
	upconn_close_idle(w);
	access_log_flush(w);
	timer_remove(w->loop, &w->tick);
	buf_trim();
	loop_stop(w->loop);
}

void worker_deinit(struct worker *w)
{
	loop_free(w->loop); /* runs what was deferred */
	w->loop = NULL;
	flow_group_free(w->flows);
	worker_site_unref(w->site);
	while (w->free_exchanges) {
		struct exchange *x = w->free_exchanges;
		w->free_exchanges = x->next_free;
		exchange_free(x);
	}
	pipe_pool_deinit(&w->pipes);
	buf_deinit(&w->log);
	session_slab_deinit(w);
}
