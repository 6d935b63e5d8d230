/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bodies moved by the kernel from one TCP socket to another.
 *
 * flow_group: one per worker thread; owns the worker's event ring, its timer
 *   and its list of running flows. One descriptor to poll.
 * flow_sock: one per TCP socket that was put into the maps; embedded in its
 *   owner's connection object. A socket goes in once, serves any number of
 *   bodies as source and as target, and leaves by close.
 * flow: one direction of one body; embedded in its owner's session object.
 *
 * Everything of a group is used from the group's thread only. A flow_sock
 * belongs to the group it was inserted with for as long as it lives.
 *
 * How an owner moves a body
 *   1. write to dst everything user space holds of the body (and the head before it)
 *   2. watch src for EPOLLRDHUP only (its data wakes nobody any more)
 *   3. flow_arm
 *   4. flow_group_dispatch when flow_group_fd is readable: it calls the
 *      flow's callback with FLOW_MOVED, FLOW_DONE, FLOW_EOF or an error.
 *      On EPOLLRDHUP, EPOLLHUP or EPOLLERR of src or dst: flow_step.
 *   5. watch src for EPOLLIN again once FLOW_MOVED came.
 * FLOW_MOVED: src is free for its next use (what is behind the body is still
 *   to be read from it), dst still has bytes of the body on their way: user
 *   space must not send to, shut down or close dst yet.
 * FLOW_DONE: every byte of the body is in dst's send buffer, which is now user
 *   space's again. FLOW_DONE may come without FLOW_MOVED before it.
 */
#pragma once
#include "base/list.h"
#include "kern/bpf.h"

#define FLOW_UNTIL_EOF SLUICE_UNTIL_EOF

enum flow_result {
	FLOW_WAIT = 0,	  /* running; the callback will tell */
	FLOW_NOT_NOW = 1, /* not possible: take the next engine; the reason is in flow_sock.refusal */
	FLOW_MOVED = 2,	  /* source done, target draining */
	FLOW_DONE = 3,	  /* all of it written */
	FLOW_EOF = 4,	  /* the source ended before the length was reached; dst may still have bytes under way: abort it */
	FLOW_SRC_ERROR = 5, /* flow.error is the errno of the source */
	FLOW_DST_ERROR = 6, /* flow.error is the errno of the target */
};
/* FLOW_DONE, FLOW_EOF and the errors end the flow: it is not running any more and needs no flow_disarm. */

enum flow_role { FLOW_SOURCE = 1, FLOW_TARGET = 2 };

enum flow_refusal {
	FLOW_REFUSED_NOTHING,
	FLOW_REFUSED_UNAVAILABLE, /* no sockmap engine */
	FLOW_REFUSED_FULL,	  /* no free slot */
	FLOW_REFUSED_STATE,	  /* the connection is not (any more) established */
	FLOW_REFUSED_KERNEL,	  /* a map refused the socket (TLS in the kernel, no TCP, no memory) */
	FLOW_REFUSED_MEMORY,	  /* the budget has no room for one more flow */
	FLOW_REFUSED_BUSY,	  /* the socket is source or target of another running flow */
};
const char *flow_refusal_text(enum flow_refusal r);

struct flow;
struct flow_group;

struct flow_sock {
	int fd; /* -1: not inserted */
	enum flow_refusal refusal; /* why the last call answered FLOW_NOT_NOW */
	/* private */
	uint8_t roles; /* of enum flow_role */
	bool room_watch, room_wait; /* registered for room to send; waiting for it */
	bool near;		    /* the source is close by: its receive buffer is kept small */
	uint32_t slot; /* valid with FLOW_SOURCE */
	uint64_t cookie;
	struct flow_group *group;
	struct flow *as_source, *as_target; /* running flows of this socket */
};
#define FLOW_SOCK_INIT ((struct flow_sock){ .fd = -1 })

/* Called by flow_group_dispatch and nothing else. The flow may be disarmed or armed again, sockets removed, from inside. */
typedef void flow_callback(struct flow *f, enum flow_result what);

struct flow {
	/* the owner sets this once */
	flow_callback *callback;
	int error; /* positive errno with FLOW_SRC_ERROR and FLOW_DST_ERROR */
	/* private */
	uint8_t state; /* enum flow_state in flow_inner.h; 0: not running */
	bool eof;
	uint32_t epoch;
	uint32_t slot; /* of src; stays after src was let go */
	struct flow_group *group;
	struct flow_sock *src, *dst;
	uint64_t limit;
	uint64_t forwarded, redirected; /* own count; last value read */
	size_t ahead;		/* unread bytes of src that dst was sent already */
	uint64_t flushed;	/* value of redirected for which dst was seen to have written everything */
	uint64_t written_base;	/* what dst had written when the flow was armed */
	uint64_t passed;	/* the program's count when nothing was left unread */
	uint32_t spills, spills_before; /* of this body; the socket's before it */
	uint32_t notsent, window;
	uint64_t due_ns;	/* when to look again */
	uint64_t poll_ns;	/* how long it waited the last time; 0: not waiting */
	size_t heap_index;	/* place in the group's timer heap + 1; 0: none */
	struct list link;	/* running flows of the group */
};

/* One for each worker number below kern_workers(). 0 or -errno. The caller owns it; flows must be disarmed before it is freed. */
int flow_group_new(struct flow_group **out, struct kern *k, unsigned worker);
void flow_group_free(struct flow_group *g);
/* Becomes readable when flow_group_dispatch has something to do. Level-triggered state, safe to watch edge-triggered. */
int flow_group_fd(const struct flow_group *g);
void flow_group_dispatch(struct flow_group *g);

/*
 * Puts a connected, established TCP socket into the maps for the given roles
 * (or-ed enum flow_role; a later call may add one). The socket must be
 * non-blocking. 0, FLOW_NOT_NOW (fs->refusal says why; nothing changed), or
 * -errno of the socket itself.
 *
 * A source is read with recv(2) only (not splice). SO_RCVLOWAT must stay 1.
 */
int flow_sock_insert(struct flow_group *g, struct flow_sock *fs, int fd, unsigned roles);
static inline bool flow_sock_inserted(const struct flow_sock *fs, unsigned roles)
{
	return fs->fd >= 0 && (fs->roles & roles) == roles;
}
/* Gives the slot back. Right before close(fd), which is what takes the socket out of the maps. Running flows of it must be disarmed. */
void flow_sock_remove(struct flow_sock *fs);

/*
 * Starts moving nbytes (or FLOW_UNTIL_EOF) from src to dst. Precondition:
 * user space has nothing buffered of this body and dst is flushed. Bytes that
 * src received before the call are moved first, in order, as far as dst takes
 * them. Returns FLOW_WAIT, FLOW_MOVED, FLOW_DONE, FLOW_EOF (short bodies can be
 * over at once), FLOW_NOT_NOW (nothing happened), or FLOW_*_ERROR.
 */
enum flow_result flow_arm(struct flow *f, struct flow_group *g, struct flow_sock *src, struct flow_sock *dst, uint64_t nbytes);

/* Looks again, after a hint (EPOLLRDHUP, EPOLLERR, a timeout). Same answers as flow_arm. Not needed for ring events. */
enum flow_result flow_step(struct flow *f);

/*
 * Ends the flow early. src and dst are user space's again if nothing is under
 * way: 0. Positive: so many bytes are still in the kernel for dst, so it can
 * only be aborted (RST); 1 also when that can not be told. Idempotent; a no-op
 * after FLOW_DONE.
 */
uint64_t flow_disarm(struct flow *f);

struct flow_progress {
	uint64_t forwarded;   /* bytes of `moved` that user space carried, while the program braked */
	bool target_slow;     /* it is the target that the flow waits for */
	uint64_t moved;	      /* bytes taken from the source for this body */
	uint64_t outstanding; /* of those, not in dst's send buffer yet, as of the last packet */
	uint32_t spills;
};
/* Cheap: reads the shared map. */
void flow_progress(struct flow *f, struct flow_progress *out);
static inline bool flow_running(const struct flow *f)
{
	return f->state != 0;
}
