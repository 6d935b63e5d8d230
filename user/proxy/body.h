/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One message body on its way from one stream to another, with one interface
 * over three engines:
 *
 *   copy      recv into a buffer, send from it; always possible
 *   splice    splice(2) through a pipe: pages move, user space sees no byte
 *   sockmap   a BPF program in the kernel redirects between the two sockets
 *
 * A body is a sequence of runs, stretches of bytes that pass unchanged: all of
 * a Content-Length body, all of a close-delimited one or of a tunnel, one
 * chunk's data of a chunked one. What lies between runs (chunk lines,
 * trailers) always goes through http_chunked_filter. The faster engines move
 * runs; the choice is made when a run begins and user space has nothing left
 * of it in its buffer. An engine answers failed (negative), not possible now
 * (positive, with a reason), or done.
 *
 * With splice.engine auto a run begins with splice, which is cheaper as long as
 * much comes at a time, and goes over to sockmap when the source turns out to
 * bring little at a time; with splice.engine sockmap it begins there.
 *
 * Invariants: bytes leave in the order they came; nothing behind the end of
 * the body is taken out of `in`; user space writes to dst only while no engine
 * holds a run and dst is flushed.
 */
#pragma once
#include "base/buf.h"
#include "http/http.h"
#include "io/conn.h"
#include "io/pipe.h"
#include "kern/flow.h"

struct worker;
struct body;

enum body_engine_id { BODY_COPY, BODY_SPLICE, BODY_SOCKMAP, _BODY_ENGINE_MAX };

enum body_result {
	BODY_DONE,	 /* all of it was given to dst's kernel socket */
	BODY_WAIT,	 /* nothing can be done until an event */
	BODY_AGAIN,	 /* more could be done, others' turn first */
	BODY_SRC_ENDED,	 /* src ended in good order before the body did */
	BODY_SRC_FAILED, /* reading failed; errno in err */
	BODY_DST_FAILED, /* writing failed; errno in err */
	BODY_BAD,	 /* the framing is wrong; see verdict */
	BODY_TOO_LARGE,	 /* longer than limit */
};

enum body_direction { BODY_REQUEST, BODY_RESPONSE };

/* How a source brings its bytes: see body_splice.c. */
struct body_rhythm {
	unsigned waits;	   /* times it ran dry, the target never being full */
	uint64_t since_ns; /* the first of them */
	uint64_t bytes;	   /* that came after it */
	bool slow;	   /* few enough that waking for them is the main cost */
};

struct body {
	struct worker *worker;
	struct conn *src, *dst;
	struct flow_sock *src_flow, *dst_flow; /* the sockets' places in the kernel's table */
	struct buf *in;			       /* read from src; may hold more than the body */
	struct buf *head;		       /* goes before the body */
	size_t head_sent;
	enum body_direction direction;
	enum http_framing framing;
	uint64_t left;	/* LENGTH: data bytes not yet taken from src */
	uint64_t limit; /* data bytes allowed; 0: any */
	struct http_chunked chunked;
	struct http_verdict verdict;
	int err;

	size_t ready; /* bytes at the front of in that are to be sent */
	size_t gap;   /* bytes behind them that the filter used up */
	bool ended;   /* the framing's end was seen */
	bool begun; /* bytes of it, if only of its framing, were taken from src: it can not be sent anew */
	bool tunnel;
	bool stuck_dst; /* the last BODY_WAIT was for dst, else for src */

	enum body_engine_id engine; /* that holds the current run */
	enum body_engine_id best;   /* fastest one that moved any of it */
	const char *why_not;	    /* why the body was not moved by a faster engine; static text */
	uint64_t run;		    /* bytes of the run the engine holds that it has not reported moved */
	struct pipe pipe; /* of the splice engine, while it holds bytes */
	struct body_rhythm rhythm;
	struct flow flow;
	bool src_unix, dst_unix; /* unix sockets */
	bool dst_spoiled;     /* bytes for dst are still in the kernel: it can only be aborted */
	bool src_quiet;	      /* epoll tells only the end of src */
	bool src_unfit;	      /* src is in the kernel's table and would do better outside: not to be used again */
	enum flow_result flow_told; /* what the kernel engine reported last */
	uint64_t flow_redirected, flow_forwarded; /* bytes of its run already accounted */
	void *owner;		    /* session whose exchange_wake is called when the engine has news */

	uint64_t data;			   /* data bytes forwarded (chunk framing not counted) */
	uint64_t moved[_BODY_ENGINE_MAX]; /* the same, by engine */
};

/* Prepares a body; in and head stay the caller's and must live as long. framing NONE: only the head is sent. */
void body_init(struct body *b, struct worker *w, enum body_direction d, struct conn *src, struct conn *dst,
	       struct buf *in, struct buf *head, enum http_framing framing, uint64_t length);
/* Tells what the engines must know of the two sockets. */
void body_pair(struct body *b, void *owner, struct flow_sock *src, bool src_unix, struct flow_sock *dst, bool dst_unix);
/* The same sockets and buffers, another message behind what is still in head; nothing may be under way. */
void body_restart(struct body *b, enum http_framing framing, uint64_t length);
/* Forwards only the data of a chunked body, for a client that knows no chunks. Before the first body_run. */
void body_chunks_bare(struct body *b);
/* Moves what can be moved now. */
enum body_result body_run(struct body *b);
/* Whether a body that waits does so for dst; otherwise it is src that has nothing. */
bool body_waits_for_dst(struct body *b);
/* Asks the kernel how far it is, rather than wait to be told; body_run then sees it. */
void body_poll(struct body *b);
/* Gives back pipes and kernel state, wherever the body stands. Idempotent. Counts the moved bytes. */
void body_deinit(struct body *b);
/* Data bytes that have passed, those the kernel moved included; never goes back. For timeouts and logs. */
uint64_t body_progress(struct body *b);

const char *body_engine_name(enum body_engine_id e);

/* ---- for the engines ---- */

/* A run of `n` bytes (UINT64_MAX: until src ends) begins. 0: taken; 1: not possible, body_refuse was called. */
int body_splice_start(struct body *b, uint64_t n);
int body_sockmap_start(struct body *b, uint64_t n);
/* BODY_DONE: the engine is through with the run (all moved, src ended: b->src->eof, or it can not go on); otherwise like body_run. */
enum body_result body_splice_step(struct body *b);
enum body_result body_sockmap_step(struct body *b);
void body_splice_stop(struct body *b);
void body_sockmap_stop(struct body *b);
void body_sockmap_poll(struct body *b);
/* why: static text; counter: one of struct sluice_counters. */
void body_refuse(struct body *b, const char *why, __u64 *counter);
/* An engine moved n bytes of the run. */
void body_account(struct body *b, enum body_engine_id e, uint64_t n);
