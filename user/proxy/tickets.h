/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keys that TLS session tickets of listeners are sealed with: one set for
 * all workers, all configurations and, handed on in a memory file, for the
 * process that takes over. So a reload or an upgrade costs no client its session.
 * The keys change by themselves, in both processes alike.
 */
#pragma once
#include "io/handed.h"
#include "io/tls.h"

struct tickets {
	struct tls_tickets *keys;
	int fd; /* the memory file, written when it is handed on; -1: sessions end with this process */
};

/* Takes the keys that were handed to us (handed may be NULL), else makes new ones. 0, -ENOMEM or -EIO (no random numbers). */
int tickets_init(struct tickets *t, struct handed *handed);
/* Adds the memory file for a successor; it stays ours. 0 or -ENOMEM. */
int tickets_collect(const struct tickets *t, struct handed *set);
void tickets_deinit(struct tickets *t);
