/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive doubly linked list. A head is an initialised link that owns
 * nothing; an unlinked element points at itself, so unlinking twice is safe.
 */
#pragma once
#include <stdbool.h>
#include "base/util.h"

struct list {
	struct list *next, *prev;
};

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_link_before(struct list *where, struct list *e)
{
	e->next = where;
	e->prev = where->prev;
	where->prev->next = e;
	where->prev = e;
}

static inline void list_push_back(struct list *head, struct list *e)
{
	list_link_before(head, e);
}

static inline void list_push_front(struct list *head, struct list *e)
{
	list_link_before(head->next, e);
}

static inline void list_unlink(struct list *e)
{
	e->next->prev = e->prev;
	e->prev->next = e->next;
	list_init(e);
}

#define list_entry(l, type, member) container_of(l, type, member)
#define list_for_each_safe(it, tmp, head) \
	for ((it) = (head)->next, (tmp) = (it)->next; (it) != (head); (it) = (tmp), (tmp) = (it)->next)
