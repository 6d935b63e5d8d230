/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sockmap engine: kern/flow moves the run, this says when it may.
 *
 * While a run is armed, epoll tells only the end of the source: its bytes wake
 * nobody. The flow's callback comes when the kernel has moved everything, when
 * the source ended, or when something failed.
 */
#include <errno.h>

#include "proxy/body.h"
#include "proxy/exchange_inner.h"
#include "proxy/worker.h"

static void flow_news(struct flow *f, enum flow_result what)
{
	struct body *b = container_of(f, struct body, flow);

	b->flow_told = what;
	exchange_wake(b);
}

static int insert(struct body *b, struct flow_sock *fs, int fd, unsigned role)
{
	int r;

	if (flow_sock_inserted(fs, role))
		return 0;
	r = flow_sock_insert(b->worker->flows, fs, fd, role);
	if (r != 0)
		body_refuse(b, r > 0 ? flow_refusal_text(fs->refusal) : "a map refused the socket",
			    fs->refusal == FLOW_REFUSED_FULL ? &b->worker->counters->fallback_map_full
							     : &b->worker->counters->fallback_insert_failed);
	return r;
}

/* The source is user space's again: whatever lies there is told. */
static void watch_source(struct body *b)
{
	if (b->src_quiet && conn_open(b->src)) {
		loop_mod(b->src->loop, &b->src->watch, CONN_EVENTS);
		b->src->readable = true;
	}
	b->src_quiet = false;
}

int body_sockmap_start(struct body *b, uint64_t n)
{
	struct sluice_counters *c = b->worker->counters;
	enum flow_result r;

	if (!b->worker->flows) {
		body_refuse(b, "the sockmap engine is not available", &c->fallback_unavailable);
		return 1;
	}
	if (b->src->tls || b->dst->tls) {
		body_refuse(b, "one side is TLS", &c->fallback_tls);
		return 1;
	}
	if (b->src_unix || b->dst_unix) {
		body_refuse(b, "one side is a unix socket", &c->fallback_unix);
		return 1;
	}
	if (b->src->eof || b->src->failed || b->dst->failed)
		return 1;
	/*
	 * What is passed on a socket that has redirected bytes to send waits behind them for the socket's worker,
	 * and the worker charges it to the socket without its lock (sk_psock_skb_ingress_self): the accounts of TCP's
	 * memory drift. So one direction of two at the same time goes another way.
	 */
	if (b->src_flow->as_target || b->dst_flow->as_source) {
		body_refuse(b, "the other direction is in the sockmap", &c->fallback_both_ways);
		return 1;
	}
	if (insert(b, b->dst_flow, b->dst->watch.fd, FLOW_TARGET) != 0 ||
	    insert(b, b->src_flow, b->src->watch.fd, FLOW_SOURCE) != 0)
		return 1;
	if (!b->src_quiet && loop_mod(b->src->loop, &b->src->watch, CONN_EVENTS_KERNEL) == 0)
		b->src_quiet = true;
	b->flow = (struct flow){ .callback = flow_news };
	b->flow_redirected = b->flow_forwarded = 0;
	r = flow_arm(&b->flow, b->worker->flows, b->src_flow, b->dst_flow, n);
	if (r == FLOW_NOT_NOW) {
		body_refuse(b, flow_refusal_text(b->src_flow->refusal), &c->fallback_no_memory);
		watch_source(b);
		return 1;
	}
	b->flow_told = r;
	return 0;
}

static void account(struct body *b)
{
	struct flow_progress p;

	flow_progress(&b->flow, &p);
	/* What user space had to carry while the program braked was copied, and is called so. */
	body_account(b, BODY_SOCKMAP, p.moved - p.forwarded - b->flow_redirected);
	body_account(b, BODY_COPY, p.forwarded - b->flow_forwarded);
	b->flow_redirected = p.moved - p.forwarded;
	b->flow_forwarded = p.forwarded;
}

enum body_result body_sockmap_step(struct body *b)
{
	enum flow_result r = b->flow_told;

	if ((r == FLOW_WAIT || r == FLOW_MOVED) && (b->src->rdhup || b->src->failed || b->dst->failed))
		r = flow_step(&b->flow);
	b->flow_told = r;
	account(b);
	switch (r) {
	case FLOW_DONE:
		if (b->run == UINT64_MAX) /* until the source ends: it has */
			b->src->eof = true;
		return BODY_DONE;
	case FLOW_EOF:
		b->src->eof = true;
		return BODY_DONE;
	case FLOW_SRC_ERROR:
		b->err = -b->flow.error;
		return BODY_SRC_FAILED;
	case FLOW_DST_ERROR:
		b->err = -b->flow.error;
		return BODY_DST_FAILED;
	default:
		return BODY_WAIT;
	}
}

void body_sockmap_poll(struct body *b)
{
	if (b->flow_told == FLOW_WAIT || b->flow_told == FLOW_MOVED)
		b->flow_told = flow_step(&b->flow);
}

/*
 * A source that was braked again and again brings its bytes faster than the
 * target takes them: splice would carry them for less, but can not read a socket
 * in a sockmap. A new connection can be spliced.
 */
#define UNFIT_SPILLS 4

void body_sockmap_stop(struct body *b)
{
	if (flow_disarm(&b->flow) != 0)
		b->dst_spoiled = true;
	account(b);
	if (b->worker->conf->splice.engine == CONF_ENGINE_AUTO && !b->tunnel && b->flow.spills >= UNFIT_SPILLS &&
	    b->flow_forwarded > b->flow_redirected / 16)
		b->src_unfit = true;
	watch_source(b);
}
