/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters that are not in the pinned maps (responses by upstream and status,
 * requests by backend), on their way to the process that takes over, so that
 * its metrics go on from there. What the old process counts after it offered
 * itself is not in them. A file of lines, each standing alone:
 *
 *   status UPSTREAM CODE NUMBER
 *   backend UPSTREAM/BACKEND NUMBER
 *
 * Lines that are not known are passed over.
 */
#pragma once
#include "lb/lb.h"

/* A file in memory, the caller's to close, or -errno. */
int counts_write(struct lb *lb);
/* Adds what the file says to lb's counters, before requests come. Closes fd; -1 is fine. */
void counts_read(struct lb *lb, int fd);
