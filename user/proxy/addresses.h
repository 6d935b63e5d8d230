/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy's table of listening addresses. The main thread's: it opens them
 * before workers are told of them. Workers close a retired one when the last of
 * them has stopped accepting on it, and the entry is freed at a later change,
 * when no session of it is left.
 */
#pragma once
#include "io/handed.h"
#include "proxy/listener.h"

/*
 * The addresses of conf in its order: those of the table that have the same
 * text, those found in handed (may be NULL), else new ones; what is new enters
 * the table and is marked fresh. 0 with an array for the caller to free, or
 * -errno with a text, and the table is as before.
 */
int addresses_for(struct list *table, const struct conf *conf, unsigned workers, struct handed *handed,
		  struct listener_address ***out, char *err, size_t errlen);
/* Accepting is about to begin: what is only bound listens now. */
void addresses_listen(struct list *table);
/* The change that opened fresh ones does not come; nobody has seen them. */
void addresses_forget_fresh(struct list *table);
/* The change comes: retires what is not in list[0..n). Before the workers are told. */
void addresses_settle(struct list *table, struct listener_address **list, uint32_t n);
/* All of them; no worker runs any more. */
void addresses_free(struct list *table);
