/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters that are not in the pinned maps (responses by upstream and status,
 * requests by backend), on their way to the process that takes over, so that
 * its metrics go on from there. The file is handed over empty, written when the
 * new process is ready, and read before it accepts; what the old one counts
 * after that, while it drains, is in no metrics. Lines, each standing alone:
 *
 *   status UPSTREAM CODE NUMBER
 *   backend UPSTREAM/BACKEND NUMBER
 *
 * Lines that are not known are passed over.
 */
#pragma once
#include "lb/lb.h"

/* A file in memory, the caller's to close, or -errno. */
int counts_file(void);
/* Writes what lb has counted. 0 or -errno. */
int counts_write(struct lb *lb, int fd);
/* Adds what the file says to lb's counters, before requests come. Closes fd; -1 is fine. */
void counts_read(struct lb *lb, int fd);
