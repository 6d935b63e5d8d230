/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The splice engine: socket -> pipe -> socket, both ends non-blocking. The
 * pipe belongs to the body only while it holds a run; between runs it lies in
 * the worker's pool, empty. At most a pipe's capacity is in flight.
 *
 * The pipe is drained before it is filled, so EAGAIN when filling means that
 * the source has nothing, never that the pipe is full.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/tls.h"
#include "proxy/body.h"
#include "proxy/worker.h"

#define PIPE_BYTES (256 * 1024)
#define TURN_BYTES (4u << 20)

static bool tls_in_kernel(const struct conn *c, unsigned direction)
{
	return !c->tls || (tls_kernel(c->tls) & direction);
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
	if (w->pipes_n) {
		w->pipes_n--;
		b->splice.fd[0] = w->pipes[w->pipes_n][0];
		b->splice.fd[1] = w->pipes[w->pipes_n][1];
	} else if (fault_hit(FAULT_PIPE) || pipe2(b->splice.fd, O_NONBLOCK | O_CLOEXEC) < 0) {
		b->splice.fd[0] = b->splice.fd[1] = -1;
		body_refuse(b, "no pipe could be made", &w->counters->fallback_no_pipe);
		return 1;
	} else {
		fcntl(b->splice.fd[0], F_SETPIPE_SZ, PIPE_BYTES); /* a smaller one works too */
	}
	b->splice.in_pipe = 0;
	return 0;
}

void body_splice_stop(struct body *b)
{
	struct worker *w = b->worker;

	if (b->splice.fd[0] < 0)
		return;
	if (b->splice.in_pipe == 0 && w->pipes_n < WORKER_PIPES_MAX) {
		w->pipes[w->pipes_n][0] = b->splice.fd[0];
		w->pipes[w->pipes_n][1] = b->splice.fd[1];
		w->pipes_n++;
	} else {
		close(b->splice.fd[0]);
		close(b->splice.fd[1]);
	}
	b->splice.fd[0] = b->splice.fd[1] = -1;
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

enum body_result body_splice_step(struct body *b)
{
	uint64_t left = b->run, turn = 0;
	ssize_t n;

	for (;;) {
		while (b->splice.in_pipe) {
			if (!b->dst->writable) {
				b->stuck_dst = true;
				return BODY_WAIT;
			}
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
		if (turn > TURN_BYTES)
			return BODY_AGAIN;
		if (!b->src->readable) {
			b->stuck_dst = false;
			return BODY_WAIT;
		}
		n = fill(b, (size_t)MIN_OF(left, (uint64_t)PIPE_BYTES));
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
