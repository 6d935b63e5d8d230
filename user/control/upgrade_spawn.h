/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting the binary on disk as the process that takes over from us. It gets
 * one end of a socket pair, whose number it finds in the environment, and the
 * capabilities that we hold (as ambient ones, since we may not be root any
 * more). When it ends badly, what it printed is logged.
 */
#pragma once
#include <sys/types.h>
#include "io/loop.h"

#define UPGRADE_FD_VARIABLE "SLUICE_UPGRADE_FD"

struct upgrade_child {
	pid_t pid; /* 0: none */
	struct watch ended;
	int output; /* what it prints; -1: it prints where we do */
};

void upgrade_child_init(struct upgrade_child *c);
/*
 * keep_output: the child prints where we do. *fd: our end, the caller's.
 * 0; -EBUSY: one is still running; or -errno.
 */
int upgrade_child_start(struct upgrade_child *c, struct loop *l, const char *exe, char *const *argv, bool keep_output,
			int *fd);
/* Lets go of it; the process goes on. */
void upgrade_child_deinit(struct upgrade_child *c, struct loop *l);
