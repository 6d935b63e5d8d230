/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Proves on loopback, before any client's bytes are at stake, that this kernel
 * does what the engine builds on: redirection in order, the brake and the way
 * back from it, the exact end of a body, and the cut of an overlap (the front
 * of a buffer is read before its socket goes into the maps).
 *
 *   origin --(source)--> here --(target)--> client
 */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "kern/flow.h"
#include "kern/internal.h"

#define HEAD 5u
#define BODY (600u * 1024)
#define BEHIND 7u
#define DEADLINE_NS (2 * NS_PER_S)
#define HOLD_BYTES (128u * 1024) /* the client reads nothing before the origin sent so much */

struct trial {
	struct kern *kern;
	struct flow_group *group;
	int origin, source, target, client;
	struct flow_sock src, dst;
	struct flow flow;
	enum flow_result told;
	char *why;
	size_t why_n;
};

static void told(struct flow *f, enum flow_result what)
{
	struct trial *t = container_of(f, struct trial, flow);
	if (what != FLOW_MOVED)
		t->told = what;
}

static unsigned char pattern(size_t i)
{
	return (unsigned char)(hash_u64(i / 8 + 1) >> (i % 8 * 8));
}

/* A connected, non-blocking loopback pair with small buffers. */
static int pair(int *a, int *b)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(addr);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size = 64 << 10, r = -1;

	*a = *b = -1;
	if (l >= 0 && setsockopt(l, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)) == 0 &&
	    bind(l, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(l, 1) == 0 && getsockname(l, (struct sockaddr *)&addr, &n) == 0 &&
	    (*a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0 &&
	    setsockopt(*a, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)) == 0 && connect(*a, (struct sockaddr *)&addr, sizeof(addr)) == 0 &&
	    (*b = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		r = 0;
	if (r < 0)
		r = -errno;
	if (l >= 0)
		close(l);
	return r;
}

static int fail(struct trial *t, const char *what, int err)
{
	if (err)
		(void)snprintf(t->why, t->why_n, "%s: %s", what, strerror(err));
	else
		(void)snprintf(t->why, t->why_n, "%s", what);
	return err ? -err : -EIO;
}

/* Sends as much as goes of [*at, end) of the stream. */
static int feed(struct trial *t, size_t *at, size_t end)
{
	unsigned char chunk[16384];

	while (*at < end) {
		size_t n = MIN_OF(sizeof(chunk), end - *at);
		ssize_t k;
		for (size_t i = 0; i < n; i++)
			chunk[i] = pattern(*at + i);
		k = send(t->origin, chunk, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (k < 0)
			return errno == EAGAIN ? 0 : -errno;
		*at += (size_t)k;
	}
	return 0;
}

static int drain(struct trial *t, size_t *at)
{
	unsigned char chunk[16384];
	ssize_t n;

	while ((n = recv(t->client, chunk, sizeof(chunk), MSG_DONTWAIT)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			if (chunk[i] != pattern(*at + (size_t)i))
				return fail(t, "the bytes came out wrong", 0);
		*at += (size_t)n;
	}
	return n < 0 && errno != EAGAIN ? -errno : 0;
}

static int run(struct trial *t)
{
	struct pollfd p = { .fd = flow_group_fd(t->group), .events = POLLIN };
	size_t sent = 0, got = HEAD, all = HEAD + BODY + BEHIND;
	uint64_t deadline = now_ns() + DEADLINE_NS;
	unsigned char head[HEAD + BEHIND];
	struct flow_progress progress;
	int r;

	r = feed(t, &sent, HEAD + 2000);
	if (r < 0)
		return fail(t, "send", -r);
	/* A part of a buffer is read, the buffer stays queued. */
	for (ssize_t n = -1; n != HEAD;) {
		n = recv(t->source, head, HEAD, 0);
		if (n < 0 && errno == EAGAIN && now_ns() < deadline) {
			struct pollfd in = { .fd = t->source, .events = POLLIN };
			(void)poll(&in, 1, 100);
			continue;
		}
		if (n != HEAD)
			return fail(t, "loopback", n < 0 ? errno : EIO);
	}
	if (flow_sock_insert(t->group, &t->dst, t->target, FLOW_TARGET) != 0 || flow_sock_insert(t->group, &t->src, t->source, FLOW_SOURCE) != 0)
		return fail(t, "the maps refuse a TCP socket", 0);
	t->flow.callback = told;
	t->told = flow_arm(&t->flow, t->group, &t->src, &t->dst, BODY);
	while ((got < HEAD + BODY || t->told != FLOW_DONE) && now_ns() < deadline) {
		if (t->told != FLOW_WAIT && t->told != FLOW_DONE && t->told != FLOW_MOVED)
			return fail(t, "a flow failed", t->flow.error);
		r = feed(t, &sent, all);
		if (r < 0)
			return fail(t, "send", -r);
		if (sent > HOLD_BYTES && (r = drain(t, &got)) < 0)
			return r;
		flow_group_dispatch(t->group);
		(void)poll(&p, 1, 1);
		if (got > HEAD + BODY)
			return fail(t, "more than the body was moved", 0);
	}
	flow_progress(&t->flow, &progress);
	if (got != HEAD + BODY)
		return fail(t, "the bytes did not arrive", 0);
	if (t->told != FLOW_DONE)
		return fail(t, "the end of the body was not noticed", 0);
	if (kern_splice(t->kern)->flows[t->src.slot].redirected_total == 0)
		return fail(t, "nothing was redirected", 0);
	/* What is behind the body is still the source's. */
	if (recv(t->source, head, BEHIND, 0) <= 0 || head[0] != pattern(HEAD + BODY))
		return fail(t, "what is behind the body was lost", 0);
	/* Held back by the client, it must have been braked, and must have found its way back. */
	if (kern_splice(t->kern)->flows[t->src.slot].spills == 0)
		return fail(t, "nothing held the flow back", 0);
	return 0;
}

int caps_selftest(struct kern *k, char *why, size_t n)
{
	struct trial t = { .kern = k, .origin = -1, .source = -1, .target = -1, .client = -1, .src = FLOW_SOCK_INIT, .dst = FLOW_SOCK_INIT, .why = why, .why_n = n };
	struct sluice_counters before = *kern_counters(k, 0);
	uint64_t window = kern_splice(k)->window;
	int r = flow_group_new(&t.group, k, 0);

	if (r < 0)
		return fail(&t, "flow group", -r);
	kern_set_bounds(k, 1, kern_splice(k)->memory);
	r = pair(&t.origin, &t.source);
	if (r == 0)
		r = pair(&t.client, &t.target);
	r = r < 0 ? fail(&t, "loopback", -r) : run(&t);

	flow_sock_remove(&t.src);
	flow_sock_remove(&t.dst);
	if (t.origin >= 0)
		close(t.origin);
	if (t.source >= 0)
		close(t.source);
	if (t.target >= 0)
		close(t.target);
	if (t.client >= 0)
		close(t.client);
	flow_group_free(t.group);
	kern_set_bounds(k, window, kern_splice(k)->memory);
	*kern_counters(k, 0) = before;
	return r;
}
