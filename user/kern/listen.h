/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spreading new connections over the workers by their load (bpf/listen.bpf.c),
 * and the pinned map `listeners` that shows the listening sockets. The map
 * does not keep a socket open: an entry goes when the last process that holds
 * the socket closes it. Where any of it can not be had, the kernel spreads by
 * hash as without us. Main thread, except where said.
 */
#pragma once
#include "kern/bpf.h"

struct kern_listen;

/* 0 or -ENOMEM; kern_listen_reason tells whether it works. k must outlive it. */
int kern_listen_open(struct kern_listen **out, struct kern *k);
/* What is attached goes on with the sockets. NULL is fine. */
void kern_listen_close(struct kern_listen *l);
/* "" when it works. */
const char *kern_listen_reason(const struct kern_listen *l);

/*
 * From now on the connections of one address are spread over fd[0..n), all of
 * them listening, socket i being worker i % workers'. Replaces what another
 * process attached to the address. 0, or -errno and the kernel spreads them.
 */
int kern_listen_add(struct kern_listen *l, const int *fd, unsigned n);

/* The entry that the worker keeps up to date, from its own thread. Never NULL. */
struct sluice_worker_load *kern_listen_load(struct kern_listen *l, unsigned worker);
