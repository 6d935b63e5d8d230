/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets going into and out of the maps, and what can be asked of them.
 *
 * Order of insertion: target map first (it has no program), then the index by
 * which the program finds the slot, then the source map: from that moment every
 * byte goes through the program. Bytes that came before it are pushed through
 * by setting SO_RCVLOWAT, which runs data_ready.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include "io/sock.h"
#include "kern/flow_inner.h"

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif

static int tcp_info(int fd, struct tcp_info *ti)
{
	socklen_t n = sizeof(*ti);
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, ti, &n) < 0 ? -errno : 0;
}

int sock_written(int fd, uint64_t *written, struct tcp_info *ti)
{
	int r = tcp_info(fd, ti), unacked;

	if (r < 0)
		return r;
	/* Acknowledged first, unacknowledged second: what is acknowledged in between is counted by neither, never twice. */
	if (ioctl(fd, SIOCOUTQ, &unacked) < 0)
		return -errno;
	*written = ti->tcpi_bytes_acked + (uint64_t)(uint32_t)unacked;
	return 0;
}

int sock_written_exact(int fd, uint64_t *written, struct tcp_info *ti)
{
	uint64_t acked;
	int r;

	do {
		r = sock_written(fd, written, ti);
		if (r < 0)
			return r;
		acked = ti->tcpi_bytes_acked;
		r = tcp_info(fd, ti);
		if (r < 0)
			return r;
	} while (ti->tcpi_bytes_acked != acked);
	return 0;
}

void sock_program_barrier(int fd)
{
	struct tcp_info ti;

	/* The program runs under the socket's lock, which tcp_get_info takes. */
	(void)tcp_info(fd, &ti);
}

int sock_room_wait(struct flow_sock *fs, uint32_t low)
{
	struct epoll_event ev = { .events = EPOLLOUT | EPOLLONESHOT, .data.ptr = fs };
	/* The kernel wakes at half of it (__sk_stream_memory_free with wake = 1). */
	uint32_t lowat = low * 2;
	int r;

	if (setsockopt(fs->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof(lowat)) < 0)
		return -errno;
	r = epoll_ctl(fs->group->epoll, fs->room_watch ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fs->fd, &ev);
	if (r < 0)
		return -errno;
	fs->room_watch = fs->room_wait = true;
	return 0;
}

void sock_room_end(struct flow_sock *fs)
{
	uint32_t lowat = 0; /* the system's default: no limit */

	if (!fs->room_wait)
		return;
	fs->room_wait = false;
	/* Must be off before the kernel's worker sends again: it would find the target full and wait timer ticks. */
	(void)setsockopt(fs->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof(lowat));
}

static int refuse(struct flow_sock *fs, enum flow_refusal why, struct sluice_counters *c)
{
	fs->refusal = why;
	if (c)
		KERN_COUNT(c, flow_insert_failed, 1);
	return FLOW_NOT_NOW;
}

#define SOURCE_BUFFER (64 << 10) /* the kernel doubles it */
#define SOURCE_SLACK (256 << 10)

/*
 * What is passed when a flow is braked has to be copied by user space, and is
 * at most the source's receive window; so the window of a near source is made
 * small. A far one needs its bandwidth-delay product and keeps autotuning.
 */
static void source_buffer(struct flow_sock *fs, int fd, const struct tcp_info *ti)
{
	int size = SOURCE_BUFFER;

	fs->near = ti->tcpi_rtt <= 1000;
	if (fs->near)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
}

void sock_source_widen(struct flow_sock *fs, uint64_t burst)
{
	/* Past the burst there must be room for what the program then passes, or nobody would open the window again. */
	int size = (int)MIN_OF(burst / 2 + SOURCE_SLACK / 2, (uint64_t)INT32_MAX / 2);

	if (fs->near)
		(void)setsockopt(fs->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
}

void sock_source_narrow(struct flow_sock *fs)
{
	int size = SOURCE_BUFFER;

	if (fs->near)
		(void)setsockopt(fs->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
}

#define TARGET_BUFFER (2 << 20)

/*
 * The program brakes when the send buffer has no room, so its size is the
 * burst that goes through between two brakes, and what may be under way on a
 * long path. Autotuning starts at a few segments and would make every young
 * connection a braked one; so it gets at once what autotuning could reach. What is
 * unsent in it is bounded by the window.
 */
static void target_buffer(int fd, const struct kern_splice *s)
{
	int size = (int)MIN_OF(MAX_OF(MAX_OF(s->window, (uint64_t)TARGET_BUFFER), s->send_buffer_max / 2), (uint64_t)INT32_MAX / 2);

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

void sock_peer_text(char out[static SLUICE_PEER_TEXT], int fd)
{
	char text[SOCK_TEXT_MAX];
	struct sock_addr a = { .len = sizeof(a.ss) };

	out[0] = '\0';
	if (getpeername(fd, &a.sa, &a.len) == 0)
		text_copy(out, SLUICE_PEER_TEXT, sock_text(text, &a, true));
}

static int insert_source(struct flow_group *g, struct flow_sock *fs, int fd, uint64_t cookie)
{
	struct kern_splice *s = g->splice;
	int slot = kern_slot_take(g->kern), one = 1, r;
	uint64_t value = (uint64_t)(unsigned)fd;
	uint32_t index;

	if (slot < 0)
		return refuse(fs, FLOW_REFUSED_FULL, g->counters);
	index = (uint32_t)slot;
	s->flows[index].cookie = cookie;
	s->flows[index].worker = g->worker;
	sock_peer_text(s->flows[index].source_peer, fd);
	r = kern_map_set(s->index, cookie, &index);
	if (r == 0) {
		r = kern_map_set(s->sources, cookie, &value);
		if (r < 0)
			(void)kern_map_unset(s->index, cookie);
	}
	if (r < 0) {
		kern_slot_give(g->kern, index);
		return refuse(fs, FLOW_REFUSED_KERNEL, g->counters);
	}
	fs->slot = index;
	g->owners[index] = fs;
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
	return 0;
}

int flow_sock_insert(struct flow_group *g, struct flow_sock *fs, int fd, unsigned roles)
{
	unsigned missing = roles & ~(fs->fd >= 0 ? fs->roles : 0u);
	struct tcp_info ti;
	uint64_t cookie;
	socklen_t n = sizeof(cookie);
	int r;

	if (!missing)
		return 0;
	if (!g)
		return refuse(fs, FLOW_REFUSED_UNAVAILABLE, NULL);
	r = tcp_info(fd, &ti);
	if (r == -EBADF || r == -ENOTSOCK)
		return r;
	if (r < 0 || getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &n) < 0)
		return refuse(fs, FLOW_REFUSED_KERNEL, g->counters);
	if (ti.tcpi_state != SOCK_ESTABLISHED)
		return refuse(fs, FLOW_REFUSED_STATE, g->counters);
	if (fs->fd < 0) {
		*fs = FLOW_SOCK_INIT;
		fs->group = g;
		fs->cookie = cookie;
	}
	if (missing & FLOW_TARGET) {
		uint64_t value = (uint64_t)(unsigned)fd;
		r = kern_map_set(g->splice->targets, cookie, &value);
		if (r < 0)
			return refuse(fs, FLOW_REFUSED_KERNEL, g->counters);
		target_buffer(fd, g->splice);
		/* From here on it is in a map: only close takes it out again, whatever comes next. */
		fs->fd = fd;
		fs->roles |= FLOW_TARGET;
	}
	if (missing & FLOW_SOURCE) {
		source_buffer(fs, fd, &ti);
		r = insert_source(g, fs, fd, cookie);
		if (r != 0)
			return r;
		fs->fd = fd;
		fs->roles |= FLOW_SOURCE;
	}
	fs->refusal = FLOW_REFUSED_NOTHING;
	KERN_COUNT(g->counters, flow_inserts, 1);
	return 0;
}

void flow_sock_remove(struct flow_sock *fs)
{
	struct flow_group *g = fs->group;

	if (fs->fd < 0)
		return;
	if (fs->as_source)
		(void)flow_disarm(fs->as_source);
	if (fs->as_target)
		(void)flow_disarm(fs->as_target);
	sock_room_end(fs);
	if (fs->room_watch)
		(void)epoll_ctl(g->epoll, EPOLL_CTL_DEL, fs->fd, NULL);
	for (size_t i = 0; i < FLOW_BATCH; i++)
		if (g->batch[i] == fs)
			g->batch[i] = NULL;
	if (fs->roles & FLOW_SOURCE) {
		(void)kern_map_unset(g->splice->index, fs->cookie);
		/* A run that found the slot before must be over when the slot goes to another socket. */
		sock_program_barrier(fs->fd);
		g->owners[fs->slot] = NULL;
		kern_slot_give(g->kern, fs->slot);
	}
	*fs = FLOW_SOCK_INIT;
}

const char *flow_refusal_text(enum flow_refusal r)
{
	static const char *const text[] = {
		[FLOW_REFUSED_NOTHING] = "nothing",
		[FLOW_REFUSED_UNAVAILABLE] = "the sockmap engine is not available",
		[FLOW_REFUSED_FULL] = "no free flow slot",
		[FLOW_REFUSED_STATE] = "the connection is being closed",
		[FLOW_REFUSED_KERNEL] = "the kernel refused the socket",
		[FLOW_REFUSED_MEMORY] = "the memory budget has no room for another flow",
		[FLOW_REFUSED_BUSY] = "the socket is part of another running flow",
	};
	return (size_t)r < ARRAY_SIZE(text) ? text[r] : "unknown";
}
