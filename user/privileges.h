/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving root behind. */
#pragma once
#include <stddef.h>

/*
 * Becomes user/group (NULL: stay) and keeps only the capabilities that running
 * needs: BPF, NET_ADMIN, PERFMON (socket maps) and NET_BIND_SERVICE (a reload
 * may open a port). Names or numbers. Before any thread is started.
 * own: what becomes the user's, n descriptors (-1: none): directories, where it
 * puts things and takes them away, and log files, which it opens again; anything
 * else stays as it is. 0, or -errno with a text.
 */
int privileges_drop(const char *user, const char *group, const int *own, size_t n, char *err, size_t errlen);
