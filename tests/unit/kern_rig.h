/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rig for the flow tests: origin -> (source | target) -> client over real
 * loopback sockets, all in one thread. Streams carry a pattern by position, so
 * a lost, doubled or displaced byte shows at once.
 */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/log.h"
#include "kern/flow.h"

#define RIG_LIMIT_NS (60 * NS_PER_S) /* only ends what hangs */

static struct kern *rig_kern _unused_;
static struct flow_group *rig_group _unused_;

/* Opens the kernel side. Without privileges or a fit kernel the test is skipped, with the reason. */
static inline int rig_open(const struct kern_options *o)
{
	if (kern_open(&rig_kern, o) != 0)
		return -1;
	if (!kern_features(rig_kern)->sockmap) {
		print_message("SKIP: no sockmap here: %s\n", kern_features(rig_kern)->reason_sockmap);
		kern_close(rig_kern, true);
		rig_kern = NULL;
		return 0;
	}
	return flow_group_new(&rig_group, rig_kern, 0);
}

static inline void rig_close(void)
{
	flow_group_free(rig_group);
	kern_close(rig_kern, true);
	rig_group = NULL;
	rig_kern = NULL;
}

#define RIG_NEEDED()             \
	do {                     \
		if (!rig_kern) { \
			skip();  \
		}                \
	} while (0)

static inline struct sluice_counters *rig_counters(void)
{
	return kern_counters(rig_kern, 0);
}

/* One TCP connection; `near` is the proxy's end. Both ends non-blocking. */
struct rig_pair {
	int far, near;
	struct flow_sock fs; /* of near */
	uint64_t sent, got;  /* of far */
	uint64_t salt;	     /* of what far sends */
};

/*
 * What a test began and, having failed, did not end: rig_sweep ends it, so that the next one is not stopped by it. The
 * tests keep their pairs and flows in static storage, which outlives the way a failed assertion goes.
 */
#define RIG_LEFT_MAX 64
struct rig_flow;
static struct rig_pair *rig_pairs[RIG_LEFT_MAX] _unused_;
static struct rig_flow *rig_flows[RIG_LEFT_MAX] _unused_;

static inline void rig_note(void **left, void *p)
{
	size_t i = 0;

	while (i < RIG_LEFT_MAX && left[i] && left[i] != p)
		i++;
	assert_in_range(i, 0, RIG_LEFT_MAX - 1);
	left[i] = p;
}

static inline int rig_listener(struct sockaddr_in *a)
{
	socklen_t n = sizeof(*a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	assert_true(l >= 0);
	assert_int_equal(bind(l, (struct sockaddr *)a, sizeof(*a)), 0);
	assert_int_equal(listen(l, 16), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)a, &n), 0);
	return l;
}

/* rcvbuf: of the far end; 0: as it comes. */
static inline void rig_connect(struct rig_pair *p, int rcvbuf, uint64_t salt)
{
	struct sockaddr_in a;
	int l = rig_listener(&a), one = 1;

	*p = (struct rig_pair){ .fs = FLOW_SOCK_INIT, .salt = salt, .near = -1 };
	rig_note((void **)rig_pairs, p);
	p->far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (rcvbuf)
		setsockopt(p->far, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof(rcvbuf));
	assert_int_equal(connect(p->far, (struct sockaddr *)&a, sizeof(a)), 0);
	p->near = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(p->near >= 0);
	fcntl(p->far, F_SETFL, O_NONBLOCK);
	setsockopt(p->far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(p->near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	close(l);
}

static inline void rig_hangup(struct rig_pair *p)
{
	if (p->near >= 0) {
		flow_sock_remove(&p->fs);
		close(p->near);
	}
	if (p->far >= 0)
		close(p->far);
	p->near = p->far = -1;
}

static inline void rig_reset(int *fd)
{
	struct linger l = { .l_onoff = 1 };
	setsockopt(*fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	close(*fd);
	*fd = -1;
}

static inline void rig_fill(char *p, size_t n, uint64_t at, uint64_t salt)
{
	for (size_t i = 0; i < n;) {
		uint64_t w = hash_u64((at + i) / 8 + salt);
		size_t o = (at + i) % 8, k = MIN_OF(8 - o, n - i);
		memcpy(p + i, (char *)&w + o, k);
		i += k;
	}
}

/* Sends up to max bytes of the pattern in pieces of chunk, at most to position end. False: would block now. */
static inline bool rig_feed(struct rig_pair *p, uint64_t end, size_t chunk, size_t max)
{
	static char buf[65536];

	while (p->sent < end && max > 0) {
		size_t n = (size_t)MIN_OF(MIN_OF((uint64_t)MIN_OF(chunk, sizeof(buf)), end - p->sent), (uint64_t)max);
		ssize_t k;
		rig_fill(buf, n, p->sent, p->salt);
		k = send(p->far, buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (k < 0) {
			assert_int_equal(errno, EAGAIN);
			return false;
		}
		p->sent += (uint64_t)k;
		max -= (size_t)k;
	}
	return true;
}

/* Reads at most max bytes and compares them with the pattern of salt, positions shifted by start. What recv said last: 0 end, -EAGAIN, or 1. */
static inline int rig_take(struct rig_pair *p, uint64_t salt, uint64_t start, size_t max)
{
	static char buf[65536], want[65536];

	while (max > 0) {
		ssize_t n = recv(p->far, buf, MIN_OF(max, sizeof(buf)), MSG_DONTWAIT);
		if (n <= 0)
			return n == 0 ? 0 : -errno;
		rig_fill(want, (size_t)n, p->got + start, salt);
		if (memcmp(buf, want, (size_t)n) != 0)
			for (ssize_t i = 0; i < n; i++)
				if (buf[i] != want[i])
					fail_msg("byte %llu is wrong", (unsigned long long)(p->got + (uint64_t)i));
		p->got += (uint64_t)n;
		max -= (size_t)n;
	}
	return 1;
}

/* A flow with what its callback said. */
struct rig_flow {
	struct flow flow;
	enum flow_result told;
	bool moved;
};

static inline void rig_told(struct flow *f, enum flow_result what)
{
	struct rig_flow *r = container_of(f, struct rig_flow, flow);
	if (what == FLOW_MOVED)
		r->moved = true;
	else
		r->told = what;
}

static inline void rig_insert(struct rig_pair *p, unsigned roles)
{
	assert_int_equal(flow_sock_insert(rig_group, &p->fs, p->near, roles), 0);
}

static inline void rig_arm(struct rig_flow *r, struct rig_pair *src, struct rig_pair *dst, uint64_t n)
{
	*r = (struct rig_flow){ .flow.callback = rig_told };
	rig_note((void **)rig_flows, r);
	r->told = flow_arm(&r->flow, rig_group, &src->fs, &dst->fs, n);
	if (r->told == FLOW_MOVED) {
		r->moved = true;
		r->told = FLOW_WAIT;
	}
}

/* A test's teardown. */
static inline int rig_sweep(void **state)
{
	(void)state;
	for (size_t i = 0; i < RIG_LEFT_MAX && rig_flows[i]; i++)
		if (rig_kern && flow_running(&rig_flows[i]->flow))
			(void)flow_disarm(&rig_flows[i]->flow);
	for (size_t i = 0; i < RIG_LEFT_MAX && rig_pairs[i]; i++)
		rig_hangup(rig_pairs[i]);
	memset(rig_flows, 0, sizeof(rig_flows));
	memset(rig_pairs, 0, sizeof(rig_pairs));
	return 0;
}
#define RIG_TEST(f) cmocka_unit_test_teardown(f, rig_sweep)

/* Lets the group work; waits at most ms for something. */
static inline void rig_turn(int ms)
{
	struct pollfd p = { .fd = flow_group_fd(rig_group), .events = POLLIN };
	(void)poll(&p, 1, ms);
	flow_group_dispatch(rig_group);
}

/* What EPOLLRDHUP of the source does in the program. */
static inline void rig_hint(struct rig_flow *r)
{
	enum flow_result what;
	if (!flow_running(&r->flow))
		return;
	what = flow_step(&r->flow);
	if (what != FLOW_WAIT)
		rig_told(&r->flow, what);
}

/* Runs until the flow is over. start: position of the body's first byte in src's stream. */
static inline enum flow_result rig_run(struct rig_flow *r, struct rig_pair *src, struct rig_pair *dst, uint64_t end, size_t chunk, size_t bite,
				       uint64_t start)
{
	uint64_t deadline = now_ns() + RIG_LIMIT_NS;

	while (r->told == FLOW_WAIT) {
		rig_feed(src, end, chunk, 1 << 20);
		rig_take(dst, src->salt, start, bite);
		rig_turn(0);
		if (now_ns() > deadline)
			fail_msg("stuck: sent %llu got %llu state %u spills %u redirected %llu forwarded %llu flushed %llu room_wait %d heap %zu notsent %u",
				 (unsigned long long)src->sent, (unsigned long long)dst->got, r->flow.state, r->flow.spills,
				 (unsigned long long)r->flow.redirected, (unsigned long long)r->flow.forwarded,
				 (unsigned long long)r->flow.flushed, dst->fs.room_wait, r->flow.heap_index, r->flow.notsent);
	}
	return r->told;
}

/* Reads the rest that is on its way to the client, up to total. */
static inline void rig_rest(struct rig_pair *dst, uint64_t salt, uint64_t start, uint64_t total)
{
	struct pollfd p = { .fd = dst->far, .events = POLLIN };
	uint64_t deadline = now_ns() + RIG_LIMIT_NS;

	while (dst->got < total && now_ns() < deadline) {
		(void)poll(&p, 1, 1000);
		rig_take(dst, salt, start, (size_t)(total - dst->got));
	}
	assert_int_equal(dst->got, total);
	(void)poll(&p, 1, 2);
	assert_int_equal(rig_take(dst, salt, start, 1), -EAGAIN);
}
