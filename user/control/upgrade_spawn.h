/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting the binary on disk as the process that takes over from us. It gets
 * one end of a socket pair, whose number it finds in the environment. When it
 * ends badly, what it printed is logged.
 *
 * The program and its arguments are fixed when the process starts. Where that
 * gives up root, its like must still be started by root, who alone can open
 * the logs, the pins and the ports: that does the starter, a process forked
 * before, which can do this one thing and takes no words but to start it, and
 * to end what it started. It ends with us.
 */
#pragma once
#include <sys/types.h>
#include "io/loop.h"

#define UPGRADE_FD_VARIABLE "SLUICE_UPGRADE_FD"

struct upgrade_child {
	const char *const *argv; /* what is started, NULL-terminated; borrowed */
	bool running;
	pid_t pid;		 /* 0: the starter's child */
	struct watch ended;	 /* a pidfd, while it runs; with a starter the socket to that */
	pid_t starter;		 /* 0: none; -1: it has gone */
	struct loop *loop;	 /* that watches the starter, from the first order on */
	int output;		 /* what it prints; -1: it prints where we do */
};

void upgrade_child_init(struct upgrade_child *c, const char *const *argv);
/* Forks the starter; before there are threads. keep_stderr: what it starts prints there. 0, or -errno and there is none. */
int upgrade_starter_begin(struct upgrade_child *c, bool keep_stderr);
/*
 * keep_output: the child prints where we do. *fd: our end, the caller's. 0; -EBUSY: one is still running; -ESRCH: the
 * starter has gone; or -errno.
 */
int upgrade_child_start(struct upgrade_child *c, struct loop *l, bool keep_output, int *fd);
/* It hangs: ends it, so that another can be started. */
void upgrade_child_kill(struct upgrade_child *c);
/* Lets go of it; the process goes on, the starter ends. l may be NULL. */
void upgrade_child_deinit(struct upgrade_child *c, struct loop *l);
