/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fault points: places where a test makes a call fail that hardly ever fails
 * by itself. SLUICE_FAULT="alloc:3,accept:1+5" in the environment fails the
 * third allocation, and five accepts from the first on; "N+" fails from the
 * Nth on for ever. One comparison on a read-mostly flag when nothing is set.
 */
#pragma once
#include <stdbool.h>

enum fault {
	FAULT_ALLOC,
	FAULT_ACCEPT,
	FAULT_SOCKET,
	FAULT_CONNECT,
	FAULT_READ,
	FAULT_WRITE,
	FAULT_PIPE,
	FAULT_MAP_UPDATE,
	FAULT_EPOLL,
	FAULT_LOG_WRITE,
	FAULT_KTLS_RX, /* the kernel refuses the keys for receiving */
	/* Sudden ends within an upgrade, in the order of its steps; see control/upgrade_wire.h. */
	FAULT_EXIT_HELLO,     /* new: has said HELLO */
	FAULT_EXIT_OFFER,     /* old: has begun to hand out sockets */
	FAULT_EXIT_OFFERED,   /* old: has handed out all */
	FAULT_EXIT_ADOPT,     /* new: has the sockets */
	FAULT_EXIT_OPENED,    /* new: has opened maps and addresses */
	FAULT_EXIT_READY,     /* new: everything runs, before READY */
	FAULT_EXIT_COMMIT,    /* old: has READY, before GO */
	FAULT_EXIT_COMMITTED, /* old: has said GO */
	FAULT_EXIT_GO,	      /* new: has GO, before it accepts */
	FAULT_EXIT_SERVING,   /* new: accepts, before SERVING */
	_FAULT_MAX,
};

extern bool fault_armed;
bool fault_count(enum fault f);

/* True when the call behind this point must fail now. */
static inline bool fault_hit(enum fault f)
{
	return __builtin_expect(fault_armed, false) && fault_count(f);
}

/* Ends the process as SIGKILL does, when the point is hit. */
void fault_exit(enum fault f);

/* Reads SLUICE_FAULT. 0, or -EINVAL when it names an unknown point or number. */
int fault_init(const char *spec);
