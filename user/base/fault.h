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
	FAULT_EXIT_ADOPT,
	FAULT_EXIT_READY,
	_FAULT_MAX,
};

extern bool fault_armed;
bool fault_count(enum fault f);

/* True when the call behind this point must fail now. */
static inline bool fault_hit(enum fault f)
{
	return __builtin_expect(fault_armed, false) && fault_count(f);
}

/* Reads SLUICE_FAULT. 0, or -EINVAL when it names an unknown point or number. */
int fault_init(const char *spec);
