/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for sessions, apart from everything else. Sessions live long and are
 * small, buffers live short and are large; from one heap, each idle connection
 * would pin the buffer it was born beside. Slabs stay until the worker ends.
 */
#pragma once
struct session;
struct worker;

/* Zeroed, or NULL. */
struct session *session_slab_take(struct worker *w);
void session_slab_give(struct worker *w, struct session *s);
void session_slab_deinit(struct worker *w);
