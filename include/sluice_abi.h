/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) OR Apache-2.0 */
/*
 * The contract between bpf/ and user/, and with whoever reads the pinned maps:
 * keys, values, enums. Padding is explicit, sizes are asserted, every field
 * says who writes it. A change that moves or reinterprets a field raises
 * SLUICE_ABI_VERSION: pins of another version are replaced, not adopted.
 * struct sluice_counters may grow at will (its size is compared at adoption).
 *
 * Pins below bpf.pin_dir: meta, health, counters, flows, listeners.
 */
#pragma once
#ifndef __bpf__
#include <linux/types.h>
#endif

#define SLUICE_ABI_VERSION 2
#define SLUICE_ABI_MAGIC 0x65636975756c7300ull

/* meta: array of one. Written by the process that made the pins. */
struct sluice_meta {
	__u64 magic;
	__u32 abi_version;
	__u32 pid; /* of the last process that adopted or made the pins */
	__u64 started_ns; /* CLOCK_REALTIME of the same */
	__u32 counters_size; /* sizeof(struct sluice_counters) of the maker */
	__u32 pad;
};
_Static_assert(sizeof(struct sluice_meta) == 32, "sluice_meta");

/* --- health: array, one entry per backend --- */

enum sluice_health_state {
	SLUICE_HEALTH_FREE = 0, /* entry not in use */
	SLUICE_HEALTH_UNKNOWN,
	SLUICE_HEALTH_UP,
	SLUICE_HEALTH_DOWN,
};

enum sluice_health_admin {
	SLUICE_ADMIN_ENABLED = 0,
	SLUICE_ADMIN_DRAIN,    /* no new sessions; running ones go on */
	SLUICE_ADMIN_DISABLED, /* no new requests at all, idle connections are closed */
};

/*
 * Operators change `admin` and `weight` (bpftool map update writes the whole
 * value; the daemon writes its own fields back). Everything else is the
 * daemon's. Text is NUL-terminated.
 */
struct sluice_health {
	char upstream[64];			 /* daemon */
	char backend[112];			 /* daemon: address as in the configuration */
	enum sluice_health_state state;		 /* daemon */
	enum sluice_health_admin admin;		 /* operator */
	__u32 weight;				 /* operator: overrides the configured weight; 0: as configured */
	__u32 weight_conf;			 /* daemon: the configured weight */
	__u32 rise_count;			 /* daemon: checks passed in a row */
	__u32 fall_count;			 /* daemon: checks failed in a row */
	__u64 checks_ok;			 /* daemon */
	__u64 checks_failed;			 /* daemon */
	__u64 requests;				 /* daemon */
	__u64 last_change_ns;			 /* daemon: CLOCK_REALTIME of the last change of state */
	__u32 latency_us;			 /* daemon: of the last check that passed */
	__u32 generation;			 /* daemon: of the configuration this entry belongs to */
	char last_error[64];			 /* daemon */
};
_Static_assert(sizeof(struct sluice_health) == 304, "sluice_health");

/*
 * --- counters: array; worker w and, as the last, the control thread count in entry w % entries ---
 *
 * Processes of an upgrade share it, so all adds are atomic, and what counts is the sum over the entries. A new map
 * has room for as many workers as there are processors.
 */

struct sluice_counters {
#define X(name, help) __u64 name;
#include "sluice_counters.def"
#undef X
};

/* --- flows: array, one entry per source socket in the maps --- */

#define SLUICE_UNTIL_EOF 0xffffffffffffffffull
#define SLUICE_PEER_TEXT 48 /* "[IPv6]:port" and NUL */

/*
 * A flow's window is what its target takes in so many milliseconds, between the
 * least and the configured one: a fast target is not throttled, and many slow
 * ones do not hold a window each.
 */
#define SLUICE_WINDOW_MS 512
#define SLUICE_WINDOW_LEAST (128u << 10)
#define SLUICE_WINDOW_FIRST (1u << 20) /* at most, as long as the target's rate is not known */

/* most: the configured window, or less as the memory is used up; rate: of struct sluice_flow. Bytes. */
static inline __u32 sluice_window(__u32 most, __u32 rate)
{
	__u32 w = SLUICE_WINDOW_FIRST;

	if (rate >= most / SLUICE_WINDOW_MS)
		return most;
	if (rate)
		w = rate * SLUICE_WINDOW_MS < SLUICE_WINDOW_LEAST ? SLUICE_WINDOW_LEAST : rate * SLUICE_WINDOW_MS;
	return w < most ? w : most;
}

/*
 * One direction: bytes that arrive on the source socket of this slot go to
 * `target`. "moved" = redirected + forwarded, both counted from the arming.
 *
 * Invariants. A buffer is redirected only when epoch != 0, moved + its length
 * <= limit, and the source's copied_seq stands exactly at its first byte: then
 * everything before it was redirected or consumed by user space. User space
 * adds to `forwarded` after the bytes were accepted by the target and before
 * it consumes them from the source. `redirected` is of the armed body only
 * when seen_epoch == epoch.
 */
struct sluice_flow {
	/* user space, while epoch is 0 (or on a new epoch); published by the store to epoch */
	__u64 cookie;	     /* of the source socket; 0: slot free */
	__u64 target;	     /* cookie of the target socket */
	__u64 limit;	     /* body bytes from the arming on; SLUICE_UNTIL_EOF */
	__u64 forwarded;     /* user space only, also while armed */
	__u32 epoch;	     /* 0: not armed; else differs from every earlier arming of the slot */
	__u32 window;	     /* memory the kernel may hold unsent for the target; may change while armed */
	__u32 worker;	     /* entry of `counters` and event ring */
	__u32 generation;    /* of the slot: raised when it is given to another socket */
	__u64 pad_user[2];
	/* BPF program only */
	__u64 redirected;	/* of this body: counted from the arming */
	__u64 passed;		/* since insertion, armed or not */
	__u64 redirected_total; /* since insertion */
	__u32 seen_epoch;
	__u32 next_seq;	   /* sequence number after the last byte seen */
	__u32 base_seq;	   /* target's write_seq less moved, at the first buffer of this body */
	__u32 outstanding; /* bytes redirected and not yet in the target's send buffer, at the last buffer */
	__u32 recent_len;  /* payload of the buffers seen lately ... */
	__u32 recent_truesize; /* ... and the memory they took */
	__u32 spills;
	__u32 trims;
	__u8 seq_valid;	 /* next_seq was taken */
	__u8 base_valid; /* base_seq was taken for seen_epoch */
	__u8 broken;	 /* an overlap could not be cut off; nothing more is delivered */
	__u8 pad_bpf[5];
	__u64 rate_since_ns; /* CLOCK_MONOTONIC: when rate_una was looked at; 0: not of seen_epoch */
	__u32 rate_una;	     /* what the target had acknowledged then (sequence number) */
	__u32 rate;	     /* bytes the target acknowledges in a millisecond; 0: not known yet */
	/* user space, when the socket comes in and when a body is armed; for people */
	char source_peer[SLUICE_PEER_TEXT]; /* whom the source socket is connected to; "" once the slot is free */
	char target_peer[SLUICE_PEER_TEXT]; /* the same of the target, while armed */
	__u64 pad_end[2];
};
_Static_assert(sizeof(struct sluice_flow) == 256, "sluice_flow: no cache line has two busy writers");

enum sluice_event_kind {
	SLUICE_EVENT_SPILL = 1, /* bytes were passed and nothing was unread before them */
	SLUICE_EVENT_END,	/* the last byte of the body was redirected */
	SLUICE_EVENT_BROKEN,
};

struct sluice_event {
	__u32 slot;
	__u32 generation;
	__u32 epoch;
	enum sluice_event_kind kind;
};
_Static_assert(sizeof(struct sluice_event) == 16, "sluice_event");

/* limits: array of one, written by user space: bounds that hold for all flows at once. */
struct sluice_limits {
	__u32 window_max; /* bytes; shrinks as more flows are armed */
	__u32 pad[3];
};
_Static_assert(sizeof(struct sluice_limits) == 16, "sluice_limits");

/* probes: array, one entry per worker. A worker writes the question and runs sock_probe, which writes the answer. */
struct sluice_probe {
	__u64 cookie;	  /* user: of a socket in sources or targets */
	__u32 found;	  /* program: 1 when it is in one of them */
	__u32 write_seq;  /* program: sequence number after the last byte in the send buffer */
	__u32 snd_nxt;	  /* program: ... after the last byte sent */
	__u32 copied_seq; /* program: ... after the last byte read or redirected */
	__u32 pad[2];
};
_Static_assert(sizeof(struct sluice_probe) == 32, "sluice_probe");

/*
 * --- loads: array, one entry per worker: for choosing whom a new connection goes to ---
 *
 * given + offset is what a worker has and what is on its way to it. A connection that arrives
 * changes neither, so the sum is right however far behind the worker is with accepting.
 */

struct sluice_worker_load {
	__u32 given;  /* BPF: connections given to it, ever */
	__u32 offset; /* daemon: its sessions less those of `given` that have come or never will; wraps below 0 */
	__u32 pad[14];
};
_Static_assert(sizeof(struct sluice_worker_load) == 64, "sluice_worker_load: a cache line each");
