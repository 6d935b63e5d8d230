/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses and sockets. Every socket made here is non-blocking and
 * close-on-exec; TCP ones have TCP_NODELAY.
 */
#pragma once
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "base/util.h"

struct sock_addr {
	socklen_t len;
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
		struct sockaddr_storage ss;
	};
};

/* Room for any address as text, with port, brackets and NUL ("unix:" + path for a unix socket). */
#define SOCK_TEXT_MAX 120

/* Parses "1.2.3.4:80", "[::1]:80", "*:80" or "unix:/path". 0 or -EINVAL. */
int sock_parse(struct sock_addr *out, const char *text);
/* Writes the address as text; with_port false leaves port and brackets away. Returns out. */
const char *sock_text(char out[static SOCK_TEXT_MAX], const struct sock_addr *a, bool with_port);
uint16_t sock_port(const struct sock_addr *a);

/*
 * Whether somebody listens on a (TCP) already. With SO_REUSEPORT on both sides
 * the kernel would let us share it, and deal out that one's connections anew.
 */
bool sock_is_listened_on(const struct sock_addr *a);
/*
 * Listens on a; a negative backlog: is only bound, listen(2) is still due.
 * reuseport: several sockets share the address, the kernel
 * spreads connections over them. A stale unix socket file (nobody answers) is
 * replaced. The descriptor, or -errno.
 */
int sock_listen(const struct sock_addr *a, int backlog, bool reuseport);
/* Starts a connection; in_progress tells whether EPOLLOUT must be awaited. The descriptor, or -errno. */
int sock_connect(const struct sock_addr *a, bool *in_progress);
/*
 * recv(2), send(2) and sendmsg(2), but no cancellation points: no thread here is ever cancelled, and the library's
 * functions pay two atomic operations a call for being ready for it. -1 and errno as those. Sanitizers know only those.
 */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define sock_recv recv
#define sock_send send
#define sock_sendmsg sendmsg
#else
static inline ssize_t sock_recv(int fd, void *p, size_t n, int flags)
{
	return syscall(SYS_recvfrom, fd, p, n, flags, NULL, NULL);
}

static inline ssize_t sock_send(int fd, const void *p, size_t n, int flags)
{
	return syscall(SYS_sendto, fd, p, n, flags, NULL, 0);
}

static inline ssize_t sock_sendmsg(int fd, const struct msghdr *m, int flags)
{
	return syscall(SYS_sendmsg, fd, m, flags);
}
#endif

/* The pending error of a socket (SO_ERROR) as -errno, or 0. */
int sock_error(int fd);
/* Makes the coming close(2) send RST instead of FIN: what was sent must not look complete. */
void sock_abort_on_close(int fd);
bool sock_is_tcp(const struct sock_addr *a);
int sock_local(int fd, struct sock_addr *out);
/* The largest segment that a TCP socket sends, headers not counted (tcp_current_mss); 0 when it can not be told. */
uint32_t sock_mss(int fd);
/*
 * Bounds the receive buffer of a TCP socket whose peer is near (a round trip of
 * a millisecond at most): autotuning lets it grow to tcp_rmem's 6 or 32 MB, which a
 * far peer may need, and a near one only fills while nobody reads on.
 */
void sock_bound_near(int fd);
