/* SPDX-License-Identifier: Apache-2.0 */
#include "io/pipe.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/util.h"

/* Either lets a process pass the limit (pipe_is_unprivileged_user). */
static bool unlimited(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };

	return syscall(SYS_capget, &h, d) == 0 && d[0].effective & (1u << CAP_SYS_RESOURCE | 1u << CAP_SYS_ADMIN);
}

void pipe_pool_init(struct pipe_pool *p, unsigned sharers)
{
	FILE *f;
	unsigned long pages = 0;

	*p = (struct pipe_pool){ .budget = UINT64_MAX };
	if (unlimited())
		return;
	f = fopen("/proc/sys/fs/pipe-user-pages-soft", "re");
	if (f && fscanf(f, "%lu", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	/* 0: no limit. Half of it, since others of the same user have pipes too. */
	if (pages)
		p->budget = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) / 2 / MAX_OF(sharers, 1u);
}

static void discard(struct pipe_pool *p, struct pipe *pipe)
{
	close(pipe->fd[0]);
	close(pipe->fd[1]);
	p->used -= pipe->size;
	*pipe = PIPE_NONE;
}

bool pipe_spare(struct pipe_pool *p)
{
	if (p->idle_n == 0)
		return false;
	discard(p, &p->idle[--p->idle_n]);
	return true;
}

void pipe_pool_deinit(struct pipe_pool *p)
{
	while (pipe_spare(p))
		;
}

static void resize(struct pipe_pool *p, struct pipe *pipe, uint32_t size)
{
	int got;

	if (pipe->size >= size || p->budget < p->used - pipe->size + size)
		return;
	got = fcntl(pipe->fd[1], F_SETPIPE_SZ, size);
	if (got < 0) {
		p->budget = p->used; /* the kernel's bound is nearer than ours */
		return;
	}
	p->used += (uint32_t)got - pipe->size;
	pipe->size = (uint32_t)got;
}

bool pipe_take(struct pipe_pool *p, struct pipe *out)
{
	int size;

	if (p->idle_n) {
		*out = p->idle[--p->idle_n];
		p->lent++;
		return true;
	}
	*out = PIPE_NONE;
	if (fault_hit(FAULT_PIPE) || pipe2(out->fd, O_NONBLOCK | O_CLOEXEC) < 0) {
		*out = PIPE_NONE;
		return false;
	}
	size = fcntl(out->fd[1], F_GETPIPE_SZ);
	out->size = size > 0 ? (uint32_t)size : 0;
	p->used += out->size;
	resize(p, out, PIPE_FIRST);
	if (out->size < PIPE_LEAST) {
		discard(p, out);
		return false;
	}
	p->lent++;
	return true;
}

void pipe_widen(struct pipe_pool *p, struct pipe *pipe)
{
	resize(p, pipe, PIPE_WIDE);
}

bool pipe_give(struct pipe_pool *p, struct pipe *pipe)
{
	if (!pipe_open(pipe))
		return false;
	p->lent--;
	if (pipe->filled || p->idle_n == PIPE_POOL_MAX) {
		discard(p, pipe);
		return true;
	}
	p->idle[p->idle_n++] = *pipe;
	*pipe = PIPE_NONE;
	return false;
}
