/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/session_slab.h"

#include <sys/mman.h>

#include "base/fault.h"
#include "proxy/session.h"
#include "proxy/worker.h"

#ifdef __SANITIZE_ADDRESS__

/* One by one, so that a stale pointer is found. */
#include <stdlib.h>

struct session *session_slab_take(_unused_ struct worker *w)
{
	return fault_hit(FAULT_ALLOC) ? NULL : calloc(1, sizeof(struct session));
}

void session_slab_give(_unused_ struct worker *w, struct session *s)
{
	free(s);
}

void session_slab_deinit(_unused_ struct worker *w)
{
}

#else

#define SLAB_BYTES (64u * 1024)

struct session_slab {
	struct session_slab *next;
	_Alignas(64) struct session session[];
};

#define SLAB_SESSIONS ((SLAB_BYTES - sizeof(struct session_slab)) / sizeof(struct session))

union slot {
	void *next_free;
	struct session session;
};

static void give(struct worker *w, struct session *s)
{
	((union slot *)(void *)s)->next_free = w->free_sessions;
	w->free_sessions = s;
}

struct session *session_slab_take(struct worker *w)
{
	union slot *u = w->free_sessions;

	if (fault_hit(FAULT_ALLOC))
		return NULL;
	if (!u) {
		struct session_slab *slab = mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (slab == MAP_FAILED)
			return NULL;
		slab->next = w->slabs;
		w->slabs = slab;
		for (size_t i = 0; i < SLAB_SESSIONS; i++)
			give(w, &slab->session[SLAB_SESSIONS - 1 - i]);
		u = w->free_sessions;
	}
	w->free_sessions = u->next_free;
	memset(u, 0, sizeof(*u));
	return &u->session;
}

void session_slab_give(struct worker *w, struct session *s)
{
	give(w, s);
}

void session_slab_deinit(struct worker *w)
{
	while (w->slabs) {
		struct session_slab *slab = w->slabs;
		w->slabs = slab->next;
		munmap(slab, SLAB_BYTES);
	}
	w->free_sessions = NULL;
}

#endif
