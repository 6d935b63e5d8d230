/* SPDX-License-Identifier: Apache-2.0 */
#include "io/conn.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fault.h"
#include "io/sock.h"
#include "io/tls.h"

int conn_init(struct conn *c, struct loop *l, int fd, void (*cb)(struct watch *, uint32_t))
{
	int r;

	*c = (struct conn){ .watch = { .fd = fd, .cb = cb }, .loop = l, .readable = true, .writable = true };
	r = loop_add(l, &c->watch, CONN_EVENTS);
	if (r < 0) {
		close(fd);
		c->watch.fd = -1;
	}
	return r;
}

void conn_deinit(struct conn *c, bool abort)
{
	if (c->watch.fd < 0)
		return;
	if (abort)
		sock_abort_on_close(c->watch.fd);
	else if (c->tls)
		tls_shutdown(c->tls);
	tls_free(c->tls);
	c->tls = NULL;
	/*
	 * close alone would end the watch only if no other descriptor shared the socket: a child between fork and
	 * exec (an upgrade) has copies, and until it execs events would go on coming.
	 */
	loop_del(c->loop, &c->watch);
	close(c->watch.fd);
	c->watch.fd = -1;
}

void conn_event(struct conn *c, uint32_t events)
{
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		c->readable = true;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		c->writable = true;
	if (c->tls && (events & (EPOLLIN | EPOLLOUT)))
		c->readable = c->writable = true; /* a TLS read may have to write first, and the reverse */
	if (events & (EPOLLRDHUP | EPOLLHUP))
		c->rdhup = true;
	if (events & (EPOLLHUP | EPOLLERR))
		c->failed = true;
}

ssize_t conn_read(struct conn *c, void *p, size_t n)
{
	ssize_t r;

	if (fault_hit(FAULT_READ))
		return -ECONNRESET;
	if (c->tls) {
		r = tls_read(c->tls, p, n);
		if (r == -EAGAIN)
			c->readable = false;
	} else {
		do
			r = sock_recv(c->watch.fd, p, n, 0);
		while (r < 0 && errno == EINTR);
		if (r < 0)
			r = errno == EWOULDBLOCK ? -EAGAIN : -errno;
		/*
		 * A short read has emptied the queue: the next byte makes a new edge, so the
		 * read that would only say EAGAIN is saved. With FIN seen there is no further
		 * edge to wait for.
		 */
		if (r == -EAGAIN || (r > 0 && (size_t)r < n && !c->rdhup))
			c->readable = false;
	}
	if (r == 0)
		c->eof = true;
	return r;
}

ssize_t conn_write(struct conn *c, const void *p, size_t n)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)p, .iov_len = n };

	return conn_writev(c, &iov, 1);
}

ssize_t conn_writev(struct conn *c, const struct iovec *iov, int n)
{
	ssize_t r;

	if (fault_hit(FAULT_WRITE))
		return -EPIPE;
	if (!c->tls) {
		struct msghdr m = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n };

		do
			r = n == 1 ? sock_send(c->watch.fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL)
				   : sock_sendmsg(c->watch.fd, &m, MSG_NOSIGNAL);
		while (r < 0 && errno == EINTR);
		if (r < 0)
			r = errno == EWOULDBLOCK ? -EAGAIN : -errno;
		if (r == -EAGAIN)
			c->writable = false;
		return r;
	}
	r = tls_writev(c->tls, iov, n);
	if (r == -EAGAIN)
		c->writable = false;
	return r;
}

int conn_shutdown(struct conn *c)
{
	if (c->tls && tls_shutdown(c->tls) == -EAGAIN) {
		c->writable = false;
		return -EAGAIN;
	}
	return shutdown(c->watch.fd, SHUT_WR) < 0 && errno != ENOTCONN ? -errno : 0;
}
