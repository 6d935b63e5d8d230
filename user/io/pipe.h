/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes for splice(2), and the pool in which empty ones wait. A pool belongs to
 * one thread.
 *
 * The kernel counts a user's pipes in pages (pipe(7), pipe-user-pages-soft).
 * Who is past the limit gets pipes of two pages, and every copy is faster
 * than those. So without the privilege to pass it, large pipes are made
 * only within a share of it, then pipes of the usual size, then none.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PIPE_POOL_MAX 64
#define PIPE_LEAST (64u << 10) /* of less use than a copy */
#define PIPE_FIRST (128u << 10)
#define PIPE_WIDE (1u << 20)

struct pipe {
	int fd[2];	 /* read, write; -1: none */
	uint32_t size;	 /* bytes it can hold */
	uint32_t filled; /* bytes in it; kept by its user */
};
#define PIPE_NONE ((struct pipe){ .fd = { -1, -1 } })

struct pipe_pool {
	struct pipe idle[PIPE_POOL_MAX];
	unsigned idle_n, lent;
	uint64_t budget, used; /* bytes of all pipes, lent or idle; UINT64_MAX: no bound */
};

/* sharers: how many pools of this process share what the user may have. */
void pipe_pool_init(struct pipe_pool *p, unsigned sharers);
/* Closes the idle ones; those lent must be given back before. */
void pipe_pool_deinit(struct pipe_pool *p);
/* An empty pipe of at least PIPE_LEAST; takes two new descriptors when idle_n is 0. False: none can be had. */
bool pipe_take(struct pipe_pool *p, struct pipe *out);
/* Makes room for PIPE_WIDE where that is allowed; the pipe must be empty. */
void pipe_widen(struct pipe_pool *p, struct pipe *pipe);
/*
 * Takes the pipe back, or closes it when something is in it or the pool is
 * full: true, two descriptors are free again. A no-op on PIPE_NONE, which it becomes.
 */
bool pipe_give(struct pipe_pool *p, struct pipe *pipe);
/* Closes an idle one. False: there is none. */
bool pipe_spare(struct pipe_pool *p);
static inline bool pipe_open(const struct pipe *p)
{
	return p->fd[0] >= 0;
}
