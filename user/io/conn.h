/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A byte stream over a connected socket, plain or TLS, watched by a loop.
 *
 * Readiness is cached: `readable` and `writable` start true, a would-block
 * answer clears them, an edge from epoll sets them. So an owner that is called
 * because of an event tries whatever it could do next and stops when the
 * streams it needs are not ready. An abort by the peer shows as `failed`.
 */
#pragma once
#include <sys/types.h>
#include <sys/uio.h>
#include "io/loop.h"

struct tls;

struct conn {
	struct watch watch; /* fd; cb is the owner's, which calls conn_event first */
	struct loop *loop;
	struct tls *tls; /* NULL: plain. Owned. */
	bool readable, writable;
	bool rdhup;  /* the peer sent FIN (or RST): a read will come to an end without another edge */
	bool failed; /* EPOLLERR or EPOLLHUP was seen */
	bool eof;    /* a read returned 0 */
	bool watched;
	bool bounded; /* sock_bound_near was done */
};

/* Takes over fd (owned from here on, also on failure) and watches it. 0 or -errno. */
int conn_init(struct conn *c, struct loop *l, int fd, void (*cb)(struct watch *, uint32_t));
/* Closes; abort sends RST instead of FIN, so that the peer sees that something is missing. */
void conn_deinit(struct conn *c, bool abort);
/* Records what epoll told. */
void conn_event(struct conn *c, uint32_t events);

/*
 * > 0 bytes; 0: end of stream (for TLS: close_notify); -EAGAIN; another -errno is
 * final. A TLS stream that ended without close_notify is -ENODATA.
 */
ssize_t conn_read(struct conn *c, void *p, size_t n);
/* Bytes taken, or -EAGAIN, or a final -errno. */
ssize_t conn_write(struct conn *c, const void *p, size_t n);
ssize_t conn_writev(struct conn *c, const struct iovec *iov, int n);
/*
 * Ends the sending direction: FIN, after close_notify for TLS. 0, -EAGAIN (TLS
 * with a full send buffer: again when writable, or the peer takes the end for a
 * cut), or another -errno.
 */
int conn_shutdown(struct conn *c);

static inline bool conn_open(const struct conn *c)
{
	return c->watch.fd >= 0;
}

/* Epoll interest of a stream in user space's hands, and of one whose bytes the kernel moves. */
#define CONN_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP)
#define CONN_EVENTS_KERNEL (EPOLLRDHUP)
