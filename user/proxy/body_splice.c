/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The splice engine: socket -> pipe -> socket, both ends non-blocking. A pipe
 * belongs to a body only while there are bytes in it or a step is running;
 * else it lies in the worker's pool, so that sources that have nothing to say
 * hold no descriptors. Long bodies move more at a time, as far as the memory
 * budget goes: what a target does not take stays in the pipe.
 *
 * The pipe is drained before it is filled, so EAGAIN when filling means that
 * the source has nothing, never that the pipe is full.
 *
 * Each time the source has run dry it is noted how much had come: the rhythm
 * tells whether waking for it is worth its price (RHYTHM_*).
 */
#include <errno.h>
#include <fcntl.h>

#include "io/sock.h"
#include "io/tls.h"
#include "proxy/body.h"
#include "proxy/worker.h"

#define LONG_BYTES (4u << 20) /* a body that moved so much is long; shorter ones moved by more at once only spill the processor's cache */
#define TURN_BYTES (4u << 20)

/*
 * A source that runs dry so many times in a row, and brings little each time,
 * while the target takes everything: two splices, an epoll_wait and a change
 * of context are then dearer than the worker that the kernel wakes for a redirected
 * buffer. Little is what fits one packet to the target: that worker sends page by
 * page, and where packets are smaller than what it sends, each page goes out
 * in packets of its own. Not at a high rate: that is a stream of small packets,
 * which splice joins to large ones.
 */
#define RHYTHM_WAITS 16
#define RHYTHM_BYTES (32u << 10)
#define RHYTHM_RATE (128u << 20) /* bytes a second */

static bool tls_in_kernel(const struct conn *c, unsigned direction)
{
	return !c->tls || (tls_kernel(c->tls) & direction);
}

/* A pipe for the body, if it has none. */
static bool lend(struct body *b)
{
	struct worker *w = b->worker;
	bool fresh = w->pipes.idle_n == 0;

	if (pipe_open(&b->pipe))
		return true;
	if (!fresh || descriptors_take(&w->fds, 2)) {
		if (pipe_take(&w->pipes, &b->pipe))
			return true;
		descriptors_give(&w->fds, 2); /* only a fresh one can not be had */
	}
	body_refuse(b, "no pipe could be made", &w->counters->fallback_no_pipe);
	return false;
}

static void give_back(struct body *b)
{
	if (pipe_give(&b->worker->pipes, &b->pipe))
		descriptors_give(&b->worker->fds, 2);
}

int body_splice_start(struct body *b, uint64_t n)
{
	struct worker *w = b->worker;

	if (flow_sock_inserted(b->src_flow, FLOW_SOURCE)) {
		/* splice(2) can not see what a sockmap program passed to user space. */
		body_refuse(b, "the source is in a sockmap", &w->counters->fallback_source_mapped);
		return 1;
	}
	if (!tls_in_kernel(b->src, TLS_KERNEL_RX) || !tls_in_kernel(b->dst, TLS_KERNEL_TX)) {
		body_refuse(b, "TLS is not in the kernel", &w->counters->fallback_tls);
		return 1;
	}
	if (n >= LONG_BYTES && !b->src_unix && !b->src->bounded) {
		sock_bound_near(b->src->watch.fd);
		b->src->bounded = true;
	}
	return lend(b) ? 0 : 1;
}

void body_splice_stop(struct body *b)
{
	give_back(b);
}

/* How much to take from the source at once: what the target does not take of it stays in the pipe, and counts as splice.memory. */
static size_t fill_bytes(struct body *b)
{
	struct worker *w = b->worker;
	uint64_t share = w->conf->splice.memory / 2 / w->conf->threads / MAX_OF(w->pipes.lent, 1u);

	if (b->moved[BODY_SPLICE] < LONG_BYTES)
		return (size_t)MIN_OF((uint64_t)PIPE_FIRST, MAX_OF(share, (uint64_t)PIPE_LEAST));
	pipe_widen(&w->pipes, &b->pipe);
	return (size_t)MIN_OF((uint64_t)b->pipe.size, MAX_OF(share, (uint64_t)PIPE_LEAST));
}

/*
 * The kernel gives one record of TLS a call (tls_sw_splice_read): several of
 * them make the send worth its price. What stopped it is told by the next call
 * when something was taken: an end and an error stay, and whether EAGAIN was
 * said for the source or for the pipe is clear once the pipe is empty.
 */
static ssize_t fill_records(struct body *b, size_t n)
{
	size_t got = 0;
	ssize_t r;

	do {
		r = tls_splice_in(b->src->tls, b->pipe.fd[1], n - got);
		if (r > 0)
			got += (size_t)r;
	} while (r > 0 && got < n);
	return got ? (ssize_t)got : r;
}

static ssize_t fill(struct body *b, size_t n)
{
	ssize_t r;

	if (b->src->tls)
		return fill_records(b, n);
	do
		r = splice(b->src->watch.fd, NULL, b->pipe.fd[1], NULL, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static ssize_t drain(struct body *b, bool more)
{
	ssize_t r;

	if (b->dst->tls)
		return tls_splice_out(b->dst->tls, b->pipe.fd[0], b->pipe.filled, more);
	do
		r = splice(b->pipe.fd[0], NULL, b->dst->watch.fd, NULL, b->pipe.filled,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0));
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

/* The source has run dry after so many bytes. */
static enum body_result source_dry(struct body *b, uint64_t bytes)
{
	struct body_rhythm *r = &b->rhythm;
	uint64_t now = loop_now(b->worker->loop);

	give_back(b);
	b->stuck_dst = false;
	if (bytes == 0)
		return BODY_WAIT;
	if (r->waits == 0)
		*r = (struct body_rhythm){ .since_ns = now };
	else
		r->bytes += bytes;
	if (++r->waits > RHYTHM_WAITS) {
		r->slow = r->bytes <= RHYTHM_WAITS * MIN_OF(RHYTHM_BYTES, sock_mss(b->dst->watch.fd)) &&
			  r->bytes * NS_PER_S < RHYTHM_RATE * (now - r->since_ns);
		r->waits = 0;
	}
	return BODY_WAIT;
}

static void rhythm_forget(struct body *b)
{
	b->rhythm = (struct body_rhythm){ 0 };
}

static enum body_result target_full(struct body *b)
{
	b->stuck_dst = true;
	rhythm_forget(b);
	return BODY_WAIT;
}

enum body_result body_splice_step(struct body *b)
{
	uint64_t left = b->run, turn = 0;
	ssize_t n;

	for (;;) {
		while (b->pipe.filled) {
			if (!b->dst->writable)
				return target_full(b);
			n = drain(b, false);
			if (n == -EAGAIN) {
				b->dst->writable = false;
				continue;
			}
			if (n < 0) {
				b->err = (int)n;
				return BODY_DST_FAILED;
			}
			b->pipe.filled -= (uint32_t)n;
			left -= left == UINT64_MAX ? 0 : (uint64_t)n;
			turn += (uint64_t)n;
			body_account(b, BODY_SPLICE, (uint64_t)n);
		}
		if (left == 0 || b->src->eof)
			return BODY_DONE;
		if (turn > TURN_BYTES) {
			rhythm_forget(b);
			return BODY_AGAIN;
		}
		if (!b->src->readable)
			return source_dry(b, turn);
		if (!lend(b))
			return BODY_DONE; /* what is left of the run goes by copy */
		n = fill(b, (size_t)MIN_OF(left, (uint64_t)fill_bytes(b)));
		if (n == -EAGAIN) {
			b->src->readable = false;
		} else if (n < 0) {
			b->err = (int)n;
			return BODY_SRC_FAILED;
		} else if (n == 0) {
			b->src->eof = true;
		} else {
			b->begun = true; /* should the target fail, what is in the pipe is lost */
			b->pipe.filled = (uint32_t)n;
		}
	}
}
