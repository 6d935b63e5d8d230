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
#include <unistd.h>

#include "base/fault.h"
#include "io/sock.h"
#include "io/tls.h"
#include "proxy/body.h"
#include "proxy/worker.h"

#define PIPE_BYTES (1u << 20)
#define FILL_FIRST (256u << 10) /* of a body whose end may be near: more only spills the processor's cache */
#define FILL_MIN (64u << 10)
#define LONG_BYTES (4u << 20) /* a body that moved so much is long */
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

static bool pipe_open(struct worker *w, int fd[2])
{
	if (!descriptors_take(&w->fds, 2))
		return false;
	if (pipe2(fd, O_NONBLOCK | O_CLOEXEC) == 0)
		return true;
	descriptors_give(&w->fds, 2);
	return false;
}

static bool pipe_take(struct body *b)
{
	struct worker *w = b->worker;

	if (b->splice.fd[0] >= 0)
		return true;
	if (w->pipes_n) {
		w->pipes_n--;
		b->splice.fd[0] = w->pipes[w->pipes_n][0];
		b->splice.fd[1] = w->pipes[w->pipes_n][1];
	} else if (fault_hit(FAULT_PIPE) || !pipe_open(w, b->splice.fd)) {
		b->splice.fd[0] = b->splice.fd[1] = -1;
		body_refuse(b, "no pipe could be made", &w->counters->fallback_no_pipe);
		return false;
	} else {
		fcntl(b->splice.fd[0], F_SETPIPE_SZ, PIPE_BYTES); /* a smaller one works too */
	}
	b->splice.in_pipe = 0;
	w->pipes_out++;
	return true;
}

static void pipe_give(struct body *b)
{
	struct worker *w = b->worker;

	if (b->splice.fd[0] < 0)
		return;
	w->pipes_out--;
	if (b->splice.in_pipe == 0 && w->pipes_n < WORKER_PIPES_MAX) {
		w->pipes[w->pipes_n][0] = b->splice.fd[0];
		w->pipes[w->pipes_n][1] = b->splice.fd[1];
		w->pipes_n++;
	} else {
		close(b->splice.fd[0]);
		close(b->splice.fd[1]);
		descriptors_give(&w->fds, 2);
	}
	b->splice.fd[0] = b->splice.fd[1] = -1;
}

int body_splice_start(struct body *b, _unused_ uint64_t n)
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
	return pipe_take(b) ? 0 : 1;
}

void body_splice_stop(struct body *b)
{
	pipe_give(b);
}

/* How much to take from the source at once. */
static size_t fill_bytes(const struct body *b)
{
	const struct worker *w = b->worker;
	uint64_t share = w->conf->splice.memory / 2 / w->conf->threads / MAX_OF(w->pipes_out, 1u);
	uint64_t most = b->moved[BODY_SPLICE] < LONG_BYTES ? FILL_FIRST : PIPE_BYTES;

	return (size_t)MIN_OF(most, MAX_OF(share, (uint64_t)FILL_MIN));
}

static ssize_t fill(struct body *b, size_t n)
{
	ssize_t r;

	if (b->src->tls)
		return tls_splice_in(b->src->tls, b->splice.fd[1], n);
	do
		r = splice(b->src->watch.fd, NULL, b->splice.fd[1], NULL, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static ssize_t drain(struct body *b, bool more)
{
	ssize_t r;

	if (b->dst->tls)
		return tls_splice_out(b->dst->tls, b->splice.fd[0], b->splice.in_pipe, more);
	do
		r = splice(b->splice.fd[0], NULL, b->dst->watch.fd, NULL, b->splice.in_pipe,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0));
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

/* The source has run dry after so many bytes. */
static enum body_result source_dry(struct body *b, uint64_t bytes)
{
	struct body_rhythm *r = &b->rhythm;
	uint64_t now = loop_now(b->worker->loop);

	pipe_give(b);
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
		while (b->splice.in_pipe) {
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
			b->splice.in_pipe -= (size_t)n;
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
		if (!pipe_take(b))
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
			b->splice.in_pipe = (size_t)n;
		}
	}
}
