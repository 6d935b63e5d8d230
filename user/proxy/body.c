/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/body.h"

#include <errno.h>

#include "proxy/worker.h"

#define READ_SMALL 16384u  /* first read: heads and small bodies */
#define READ_LARGE 131072u /* once it is clear that there is more */
#define TURN_BYTES (1u << 20) /* a body may copy in one turn before others get theirs */
#define TRAILER_BYTES 16384u

static const char *const engine_names[] = { "copy", "splice", "sockmap" };

const char *body_engine_name(enum body_engine_id e)
{
	return engine_names[e];
}

void body_init(struct body *b, struct worker *w, enum body_direction d, struct conn *src, struct conn *dst,
	       struct buf *in, struct buf *head, enum http_framing framing, uint64_t length)
{
	*b = (struct body){
		.worker = w,
		.direction = d,
		.src = src,
		.dst = dst,
		.in = in,
		.head = head,
		.framing = framing,
		.left = length,
		.pipe = PIPE_NONE,
		.ended = framing == HTTP_BODY_NONE || (framing == HTTP_BODY_LENGTH && length == 0),
	};
	if (framing == HTTP_BODY_CHUNKED)
		http_chunked_init(&b->chunked, true, TRAILER_BYTES);
}

void body_pair(struct body *b, void *owner, struct flow_sock *src, bool src_unix, struct flow_sock *dst, bool dst_unix)
{
	b->owner = owner;
	b->src_flow = src;
	b->dst_flow = dst;
	b->src_unix = src_unix;
	b->dst_unix = dst_unix;
}

void body_restart(struct body *b, enum http_framing framing, uint64_t length)
{
	struct body old = *b;

	body_init(b, old.worker, old.direction, old.src, old.dst, old.in, old.head, framing, length);
	body_pair(b, old.owner, old.src_flow, old.src_unix, old.dst_flow, old.dst_unix);
}

void body_chunks_bare(struct body *b)
{
	http_chunked_init(&b->chunked, false, TRAILER_BYTES);
}

void body_account(struct body *b, enum body_engine_id e, uint64_t n)
{
	struct sluice_counters *c = b->worker->counters;
	__u64 *const sums[_BODY_ENGINE_MAX][2] = {
		[BODY_COPY] = { &c->body_copy_request_bytes, &c->body_copy_response_bytes },
		[BODY_SPLICE] = { &c->body_splice_request_bytes, &c->body_splice_response_bytes },
		[BODY_SOCKMAP] = { &c->body_sockmap_request_bytes, &c->body_sockmap_response_bytes },
	};

	if (n == 0)
		return;
	b->begun = true;
	b->data += n;
	b->moved[e] += n;
	if (e > b->best)
		b->best = e;
	__atomic_fetch_add(sums[e][b->direction], n, __ATOMIC_RELAXED);
}

/* Decides what of `in` can go out. Only called with ready == 0 and gap == 0. */
static enum body_result take_from_in(struct body *b)
{
	uint64_t before = b->chunked.data_total;
	size_t used, kept;
	int r;

	switch (b->framing) {
	case HTTP_BODY_LENGTH:
		b->ready = (size_t)MIN_OF(b->left, (uint64_t)b->in->len);
		b->left -= b->ready;
		b->ended = b->left == 0;
		body_account(b, BODY_COPY, b->ready);
		break;
	case HTTP_BODY_CLOSE:
		b->ready = b->in->len;
		body_account(b, BODY_COPY, b->ready);
		break;
	case HTTP_BODY_CHUNKED:
		r = http_chunked_filter(&b->chunked, buf_data(b->in), b->in->len, &used, &kept, &b->verdict);
		if (r == HTTP_BAD)
			return BODY_BAD;
		b->begun = b->begun || used > 0;
		b->ready = kept;
		b->gap = used - kept;
		b->ended = r == 0;
		body_account(b, BODY_COPY, b->chunked.data_total - before);
		break;
	case HTTP_BODY_NONE:
		break;
	}
	if (b->ready == 0) {
		buf_consume(b->in, b->gap);
		b->gap = 0;
	}
	return b->limit && b->data > b->limit ? BODY_TOO_LARGE : BODY_DONE;
}

static bool unsent(const struct body *b)
{
	return b->ready || b->head_sent < b->head->len;
}

/* Sends head and ready bytes. BODY_DONE: all of them. */
static enum body_result flush(struct body *b)
{
	while (unsent(b)) {
		struct iovec iov[2];
		size_t head = b->head->len - b->head_sent;
		ssize_t n;
		int k = 0;

		if (!b->dst->writable) {
			b->stuck_dst = true;
			return BODY_WAIT;
		}
		if (head)
			iov[k++] = (struct iovec){ buf_data(b->head) + b->head_sent, head };
		if (b->ready)
			iov[k++] = (struct iovec){ buf_data(b->in), b->ready };
		n = conn_writev(b->dst, iov, k);
		if (n == -EAGAIN)
			continue;
		if (n < 0) {
			b->err = (int)n;
			return BODY_DST_FAILED;
		}
		b->head_sent += MIN_OF((size_t)n, head);
		if ((size_t)n > head) {
			size_t sent = (size_t)n - head;
			b->ready -= sent;
			buf_consume(b->in, sent);
		}
		if (!b->ready) {
			buf_consume(b->in, b->gap);
			b->gap = 0;
		}
	}
	return BODY_DONE;
}

/* Length of the run that starts with the next byte of src; 0: that byte is framing. */
static uint64_t next_run(const struct body *b)
{
	switch (b->framing) {
	case HTTP_BODY_LENGTH:
		return b->left;
	case HTTP_BODY_CHUNKED:
		return http_chunked_data_left(&b->chunked);
	case HTTP_BODY_CLOSE:
		return UINT64_MAX;
	default:
		return 0;
	}
}

/* Notes why a faster engine is not used; counted once a body. */
void body_refuse(struct body *b, const char *why, __u64 *counter)
{
	if (b->why_not == why)
		return;
	b->why_not = why;
	__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

static const char bulk[] = "splice is cheaper for what comes in bulk";

/*
 * Whether splice should begin: the run could go by sockmap, but nothing is known
 * yet of how its bytes come. A source that is in the kernel's table can not be
 * spliced any more.
 */
static bool bulk_first(struct body *b)
{
	if (!b->worker->flows || b->src->tls || b->dst->tls || b->src_unix || b->dst_unix ||
	    flow_sock_inserted(b->src_flow, FLOW_SOURCE))
		return false;
	body_refuse(b, bulk, &b->worker->counters->fallback_bulk);
	return true;
}

/* Chooses the engine for the run ahead; BODY_COPY when none of the others takes it. */
static void start_engine(struct body *b)
{
	uint64_t run = next_run(b), min = b->worker->conf->splice.min_bytes;
	enum conf_engine limit = b->worker->conf->splice.engine;

	if (run == 0)
		return;
	if (limit == CONF_ENGINE_COPY) {
		body_refuse(b, "splice.engine is copy", &b->worker->counters->fallback_engine_limit);
		return;
	}
	if (run < min) {
		body_refuse(b, "shorter than splice.min_bytes", &b->worker->counters->fallback_small);
		return;
	}
	/* An open end may be near: only a stream that has shown to be long is worth a set-up. */
	if (run == UINT64_MAX && !b->tunnel && b->data < min) {
		b->why_not = "shorter than splice.min_bytes";
		return;
	}
	if (b->limit && run > b->limit - b->data) {
		if (run != UINT64_MAX) /* the length is known to be too large before it is moved */
			return;
		run = b->limit - b->data + 1;
	}
	b->run = run;
	if (limit == CONF_ENGINE_SPLICE)
		body_refuse(b, "splice.engine is splice", &b->worker->counters->fallback_engine_limit);
	else if (limit == CONF_ENGINE_AUTO && bulk_first(b) && body_splice_start(b, run) == 0)
		b->engine = BODY_SPLICE;
	else if (body_sockmap_start(b, run) == 0)
		b->engine = BODY_SOCKMAP;
	if (b->engine == BODY_COPY && body_splice_start(b, run) == 0)
		b->engine = BODY_SPLICE;
}

/*
 * The source brings little at a time: the kernel is to be woken for it, not we. Only where splice was a choice; where
 * sockmap then refuses, that is the reason from now on, and it is not asked again.
 */
static void hand_over(struct body *b)
{
	b->rhythm = (struct body_rhythm){ 0 };
	if (b->why_not != bulk || b->run < b->worker->conf->splice.min_bytes)
		return;
	body_splice_stop(b);
	if (body_sockmap_start(b, b->run) == 0) {
		b->why_not = NULL;
		b->engine = BODY_SOCKMAP;
		COUNT(b->worker, handovers);
	} else if (flow_sock_inserted(b->src_flow, FLOW_SOURCE)) {
		b->engine = BODY_COPY; /* it can not be spliced any more */
	}
}

/* The engine's run is over by `n` data bytes: the framing catches up. */
static void end_run(struct body *b, uint64_t moved)
{
	if (b->framing == HTTP_BODY_LENGTH) {
		b->left -= moved;
		b->ended = b->left == 0;
	} else if (b->framing == HTTP_BODY_CHUNKED) {
		http_chunked_advance(&b->chunked, moved);
	}
}

static enum body_result step_engine(struct body *b)
{
	uint64_t before = b->data, moved;
	enum body_result r;

	r = b->engine == BODY_SOCKMAP ? body_sockmap_step(b) : body_splice_step(b);
	moved = b->data - before;
	if (b->run != UINT64_MAX)
		b->run -= moved;
	end_run(b, moved);
	if (r == BODY_DONE) {
		b->engine == BODY_SOCKMAP ? body_sockmap_stop(b) : body_splice_stop(b);
		b->engine = BODY_COPY;
	} else if (r == BODY_WAIT && b->rhythm.slow) {
		hand_over(b);
		if (b->engine != BODY_SPLICE)
			r = BODY_DONE; /* with splice: the caller goes on */
	}
	if (b->limit && b->data > b->limit)
		return BODY_TOO_LARGE;
	return r;
}

/* Fills `in`. BODY_DONE: there is something new, or src->eof. */
static enum body_result read_more(struct body *b)
{
	size_t want = b->data + b->head->len > READ_SMALL / 2 ? READ_LARGE : READ_SMALL;
	ssize_t n;

	if (!b->src->readable) {
		b->stuck_dst = false;
		return BODY_WAIT;
	}
	if (buf_room(b->in) < READ_SMALL / 2 && buf_reserve(b->in, want) < 0) {
		b->err = -ENOMEM;
		return BODY_SRC_FAILED;
	}
	n = conn_read(b->src, buf_tail(b->in), buf_room(b->in));
	if (n == -EAGAIN) {
		b->stuck_dst = false;
		return BODY_WAIT;
	}
	if (n < 0) {
		b->err = (int)n;
		return BODY_SRC_FAILED;
	}
	buf_commit(b->in, (size_t)n);
	return BODY_DONE;
}

enum body_result body_run(struct body *b)
{
	uint64_t start = b->data;
	enum body_result r;

	for (;;) {
		if (b->engine != BODY_COPY) {
			r = step_engine(b);
			if (r != BODY_DONE)
				return r;
			continue;
		}
		if (!b->ended && !b->ready && b->in->len) {
			r = take_from_in(b);
			if (r != BODY_DONE)
				return r;
		}
		r = flush(b);
		if (r != BODY_DONE)
			return r;
		if (b->ended) {
			if (b->framing != HTTP_BODY_NONE)
				buf_release_if_empty(b->in);
			return BODY_DONE;
		}
		if (b->in->len)
			continue;
		if (b->src->eof) {
			if (b->framing != HTTP_BODY_CLOSE)
				return BODY_SRC_ENDED;
			b->ended = true;
			continue;
		}
		start_engine(b);
		if (b->engine != BODY_COPY)
			continue;
		if (b->data - start > TURN_BYTES)
			return BODY_AGAIN;
		r = read_more(b);
		if (r == BODY_WAIT)
			buf_release_if_empty(b->in);
		if (r != BODY_DONE)
			return r;
	}
}

uint64_t body_progress(struct body *b)
{
	struct flow_progress p;

	if (b->engine != BODY_SOCKMAP)
		return b->data;
	flow_progress(&b->flow, &p);
	return b->data + (p.moved - b->flow_redirected - b->flow_forwarded);
}

bool body_waits_for_dst(struct body *b)
{
	struct flow_progress p;

	if (b->engine != BODY_SOCKMAP)
		return b->stuck_dst;
	flow_progress(&b->flow, &p);
	return p.target_slow;
}

void body_poll(struct body *b)
{
	if (b->engine == BODY_SOCKMAP)
		body_sockmap_poll(b);
}

void body_deinit(struct body *b)
{
	if (b->engine == BODY_SOCKMAP)
		body_sockmap_stop(b);
	else if (b->engine == BODY_SPLICE)
		body_splice_stop(b);
	b->engine = BODY_COPY;
}
