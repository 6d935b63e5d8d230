/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What outlives a process and what operators look at: health table, counters
 * and the record of who made them. No programs, so that it loads wherever BPF
 * maps can be made at all. Sizes are set by user space before loading.
 */
#include "counters.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_health);
} health SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_meta);
} meta SEC(".maps");
