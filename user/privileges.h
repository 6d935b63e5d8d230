/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving root behind. */
#pragma once
#include <stddef.h>

/*
 * Becomes user/group (NULL: stay) and keeps only the capabilities that running
 * needs: BPF, NET_ADMIN, PERFMON (socket maps) and NET_BIND_SERVICE (a reload
 * may open a port). Before any thread is started. dir: a directory that becomes
 * the user's, who puts things there and takes them away (-1: none). 0, or -errno with a text.
 */
int privileges_drop(const char *user, const char *group, int dir, char *err, size_t errlen);
