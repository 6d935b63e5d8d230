/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The `counters` map, shared by all objects: state.bpf.c makes it, the others are handed its descriptor. It may be of
 * another process, which had fewer workers: then some of ours share an entry.
 */
#pragma once
#include "vmlinux_min.h"
#include <bpf/bpf_helpers.h>
#include "sluice_abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_counters);
} counters SEC(".maps");
