/* SPDX-License-Identifier: Apache-2.0 */
#include "io/handed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MANAGER_FIRST_FD 3

int handed_add(struct handed *h, int fd, enum handed_kind kind, unsigned flags, const char *name)
{
	struct handed_fd *f;

	if (h->n == h->cap) {
		size_t cap = h->cap ? h->cap * 2 : 16;
		struct handed_fd *v = realloc(h->v, cap * sizeof(*v));

		if (!v)
			return -ENOMEM;
		h->v = v;
		h->cap = cap;
	}
	f = &h->v[h->n++];
	*f = (struct handed_fd){ .fd = fd, .kind = (uint16_t)kind, .flags = (uint16_t)flags };
	snprintf(f->name, sizeof(f->name), "%s", name);
	return 0;
}

static int take(struct handed_fd *f)
{
	int fd = f->fd;

	f->fd = -1;
	return fd;
}

int handed_take(struct handed *h, enum handed_kind kind, const char *name)
{
	for (size_t i = 0; h && i < h->n; i++)
		if (h->v[i].fd >= 0 && h->v[i].kind == kind && (!name || strcmp(h->v[i].name, name) == 0))
			return take(&h->v[i]);
	return -1;
}

static bool bound_to(int fd, const struct sock_addr *want)
{
	struct sock_addr has;

	if (sock_local(fd, &has) < 0 || has.sa.sa_family != want->sa.sa_family)
		return false;
	switch (want->sa.sa_family) {
	case AF_INET:
		return has.in.sin_addr.s_addr == want->in.sin_addr.s_addr && has.in.sin_port == want->in.sin_port;
	case AF_INET6:
		return memcmp(&has.in6.sin6_addr, &want->in6.sin6_addr, sizeof(has.in6.sin6_addr)) == 0 &&
		       has.in6.sin6_port == want->in6.sin6_port;
	case AF_UNIX:
		return strcmp(has.un.sun_path, want->un.sun_path) == 0;
	default:
		return false;
	}
}

static bool listens(int fd)
{
	int on = 0, type = 0;
	socklen_t n = sizeof(on), m = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &n) == 0 && on &&
	       getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &m) == 0 && type == SOCK_STREAM;
}

int handed_take_listener(struct handed *h, const struct sock_addr *want, const char *name, unsigned *flags)
{
	for (size_t i = 0; h && i < h->n; i++) {
		struct handed_fd *f = &h->v[i];

		if (f->fd < 0 || f->kind != HANDED_LISTENER || !listens(f->fd) ||
		    (strcmp(f->name, name) != 0 && !bound_to(f->fd, want)))
			continue;
		fcntl(f->fd, F_SETFL, fcntl(f->fd, F_GETFL) | O_NONBLOCK);
		fcntl(f->fd, F_SETFD, FD_CLOEXEC);
		if (flags)
			*flags = f->flags;
		return take(f);
	}
	return -1;
}

void handed_deinit(struct handed *h)
{
	for (size_t i = 0; i < h->n; i++)
		if (h->v[i].fd >= 0)
			close(h->v[i].fd);
	handed_forget(h);
}

void handed_forget(struct handed *h)
{
	free(h->v);
	*h = HANDED_INIT;
}

int handed_from_manager(struct handed *h)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	bool ours = pid && count && strtol(pid, NULL, 10) == (long)getpid();
	long n = ours ? strtol(count, NULL, 10) : 0;
	int added = 0;

	for (long i = 0; i < n && i < 4096; i++) {
		int fd = MANAGER_FIRST_FD + (int)i;

		if (!listens(fd))
			continue;
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		if (handed_add(h, fd, HANDED_LISTENER, 0, "") < 0)
			return -ENOMEM;
		added++;
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return added;
}
