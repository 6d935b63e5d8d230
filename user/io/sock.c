/* SPDX-License-Identifier: Apache-2.0 */
#include "io/sock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"

static int parse_port(const char *z, in_port_t *out)
{
	char *end;
	unsigned long v;

	if (*z < '0' || *z > '9')
		return -EINVAL;
	v = strtoul(z, &end, 10);
	if (*end || v > 65535)
		return -EINVAL;
	*out = htons((uint16_t)v);
	return 0;
}

int sock_parse(struct sock_addr *out, const char *text)
{
	char host[64];
	const char *colon;
	size_t n;

	memset(out, 0, sizeof(*out));
	if (strncmp(text, "unix:", 5) == 0) {
		n = strlen(text + 5);
		if (n == 0 || n >= sizeof(out->un.sun_path))
			return -EINVAL;
		out->un.sun_family = AF_UNIX;
		memcpy(out->un.sun_path, text + 5, n + 1);
		out->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
		return 0;
	}
	colon = strrchr(text, ':');
	if (!colon)
		return -EINVAL;
	n = (size_t)(colon - text);
	if (text[0] == '[') {
		if (n < 2 || text[n - 1] != ']' || n - 2 >= sizeof(host))
			return -EINVAL;
		memcpy(host, text + 1, n - 2);
		host[n - 2] = 0;
		out->in6.sin6_family = AF_INET6;
		out->len = sizeof(out->in6);
		if (inet_pton(AF_INET6, host, &out->in6.sin6_addr) != 1)
			return -EINVAL;
		return parse_port(colon + 1, &out->in6.sin6_port);
	}
	if (n >= sizeof(host))
		return -EINVAL;
	memcpy(host, text, n);
	host[n] = 0;
	out->in.sin_family = AF_INET;
	out->len = sizeof(out->in);
	if (strcmp(host, "*") != 0 && inet_pton(AF_INET, host, &out->in.sin_addr) != 1)
		return -EINVAL;
	return parse_port(colon + 1, &out->in.sin_port);
}

/* inet_ntop goes through printf, and every request has an address to tell. */
static char *ipv4_text(char *out, const uint8_t a[4])
{
	for (unsigned i = 0; i < 4; i++) {
		if (i)
			*out++ = '.';
		if (a[i] >= 100)
			*out++ = (char)('0' + a[i] / 100);
		if (a[i] >= 10)
			*out++ = (char)('0' + a[i] / 10 % 10);
		*out++ = (char)('0' + a[i] % 10);
	}
	*out = 0;
	return out;
}

const char *sock_text(char out[static SOCK_TEXT_MAX], const struct sock_addr *a, bool with_port)
{
	char host[INET6_ADDRSTRLEN] = "", *end;

	switch (a->sa.sa_family) {
	case AF_INET:
		end = ipv4_text(out, (const uint8_t *)&a->in.sin_addr);
		if (with_port)
			snprintf(end, SOCK_TEXT_MAX - (size_t)(end - out), ":%u", ntohs(a->in.sin_port));
		break;
	case AF_INET6:
		if (IN6_IS_ADDR_V4MAPPED(&a->in6.sin6_addr)) {
			end = ipv4_text(out, &a->in6.sin6_addr.s6_addr[12]);
			if (with_port)
				snprintf(end, SOCK_TEXT_MAX - (size_t)(end - out), ":%u", ntohs(a->in6.sin6_port));
			break;
		}
		inet_ntop(AF_INET6, &a->in6.sin6_addr, host, sizeof(host));
		snprintf(out, SOCK_TEXT_MAX, with_port ? "[%s]:%u" : "%s", host, ntohs(a->in6.sin6_port));
		break;
	case AF_UNIX:
		snprintf(out, SOCK_TEXT_MAX, "unix:%s", a->len > sizeof(sa_family_t) ? a->un.sun_path : "");
		break;
	default:
		snprintf(out, SOCK_TEXT_MAX, "unknown");
	}
	return out;
}

uint16_t sock_port(const struct sock_addr *a)
{
	if (a->sa.sa_family == AF_INET)
		return ntohs(a->in.sin_port);
	return a->sa.sa_family == AF_INET6 ? ntohs(a->in6.sin6_port) : 0;
}

bool sock_is_tcp(const struct sock_addr *a)
{
	return a->sa.sa_family == AF_INET || a->sa.sa_family == AF_INET6;
}

/* A unix socket file left by a dead process is removed; a live one or another kind of file is not. */
static int clear_stale_unix(const struct sock_addr *a)
{
	struct stat st;
	int fd, r;

	if (lstat(a->un.sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, &a->sa, a->len) < 0 ? -errno : 0;
	close(fd);
	if (r == -ECONNREFUSED)
		return unlink(a->un.sun_path) < 0 ? -errno : 0;
	return -EADDRINUSE;
}

bool sock_is_listened_on(const struct sock_addr *a)
{
	int fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	bool taken;

	if (fd < 0)
		return false;
	/* Then only a socket that listens is in the way (inet_csk_get_port), not what is left of connections. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (a->sa.sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	taken = bind(fd, &a->sa, a->len) < 0 && errno == EADDRINUSE;
	close(fd);
	return taken;
}

int sock_listen(const struct sock_addr *a, int backlog, bool reuseport)
{
	int fd, r, one = 1;

	if (fault_hit(FAULT_SOCKET))
		return -EMFILE;
	if (a->sa.sa_family == AF_UNIX) {
		r = clear_stale_unix(a);
		if (r < 0)
			return r;
	}
	fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (sock_is_tcp(a)) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (reuseport)
			setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* accepted sockets inherit it */
		if (a->sa.sa_family == AF_INET6)
			setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	}
	if (bind(fd, &a->sa, a->len) < 0 || (backlog >= 0 && listen(fd, backlog) < 0)) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

int sock_connect(const struct sock_addr *a, bool *in_progress)
{
	int fd, r, one = 1;

	if (fault_hit(FAULT_SOCKET))
		return -EMFILE;
	fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (sock_is_tcp(a))
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (fault_hit(FAULT_CONNECT)) {
		close(fd);
		return -ECONNREFUSED;
	}
	r = connect(fd, &a->sa, a->len) < 0 ? -errno : 0;
	if (r < 0 && r != -EINPROGRESS) {
		close(fd);
		return r;
	}
	*in_progress = r == -EINPROGRESS;
	return fd;
}

int sock_error(int fd)
{
	int err = 0;
	socklen_t len = sizeof(err);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
		return -errno;
	return -err;
}

void sock_abort_on_close(int fd)
{
	struct linger lin = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &lin, sizeof(lin));
}

int sock_local(int fd, struct sock_addr *out)
{
	out->len = sizeof(out->ss);
	return getsockname(fd, &out->sa, &out->len) < 0 ? -errno : 0;
}

uint32_t sock_mss(int fd)
{
	int mss = 0;
	socklen_t n = sizeof(mss);

	return getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, &n) == 0 && mss > 0 ? (uint32_t)mss : 0;
}

#define NEAR_RTT_US 1000
#define NEAR_BUFFER (1 << 20) /* the kernel doubles it: 16 Gbit/s at the longest round trip that is near */

void sock_bound_near(int fd)
{
	struct tcp_info ti;
	socklen_t n = sizeof(ti);
	int size = NEAR_BUFFER;

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &n) < 0 || ti.tcpi_rtt > NEAR_RTT_US)
		return;
	/* Without the privilege net.core.rmem_max bounds it, which may be too little: autotuning stays. */
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
}
