/* SPDX-License-Identifier: Apache-2.0 */
/* The access log; see access_log.c. */
#pragma once
#include <stdatomic.h>

struct proxy;
struct worker;

/* The descriptor, or -errno. */
int access_log_open(const char *path);
/* A descriptor in its place where there is no access log. */
int access_log_none(void);
/* Writes the worker's lines. */
void access_log_flush(struct worker *w);
/* The descriptor all workers write to; -1: none. Changed by dup3 under them at a reopen. */
atomic_int *proxy_access_log_fd(struct proxy *p);
