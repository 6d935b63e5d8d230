/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process's BPF side: maps, pins, programs. One struct kern per process,
 * opened before the workers start and before privileges drop. Opening never
 * fails for want of privileges or kernel features: what is missing is off and
 * its reason is a text. health and counters always exist; without BPF they are
 * ordinary memory.
 */
#pragma once
#include <linux/types.h>
#include "base/util.h"
#include "sluice_abi.h"

struct kern;

enum kern_engine_limit {
	KERN_LIMIT_AUTO,   /* sockmap where the kernel can */
	KERN_LIMIT_NO_SOCKMAP, /* do not even load the programs */
};

struct kern_options {
	const char *pin_dir;	    /* below a bpffs; NULL: pin nothing */
	unsigned workers;	    /* each has its event ring, and its entry of counters where there are enough */
	unsigned max_flows;	    /* source sockets at a time; 0: 16384 */
	unsigned max_backends;	    /* health entries; 0: 1024 */
	enum kern_engine_limit limit;
	uint64_t window;	    /* bytes unsent in the kernel for one flow; 0: 1 MiB */
	uint64_t memory;	    /* the same over all flows; 0: an eighth of RAM */
	int lock_fd;		    /* -1, or the directory lock of the process that is being taken over from */
	bool skip_kernel_floor;	    /* tests only: let the self-test alone decide */
	bool test_no_trim;	    /* tests only: forward retransmitted bytes as the kernel hands them out */
	bool test_no_selftest;	    /* tests only */
};

struct kern_features {
	bool bpf_maps; /* health and counters are BPF maps */
	bool pinned;   /* ... and pinned, with meta and flows */
	bool adopted;  /* health and counters of an earlier process go on */
	bool sockmap;  /* flow_sock_insert works */
	char reason_maps[160];	  /* why not; "" when it is on */
	char reason_pinned[160];
	char reason_sockmap[160];
};

/* "1.1" */
const char *kern_libbpf_version(void);

/* 0 (see kern_features) or -ENOMEM. The caller owns the result. */
int kern_open(struct kern **out, const struct kern_options *options);
/* unpin: also remove the pins (final stop). Without it they stay for the next process. All flow groups must be gone. */
void kern_close(struct kern *k, bool unpin);
const struct kern_features *kern_features(const struct kern *k);

/* max_backends entries, shared with the map; valid until kern_close. */
struct sluice_health *kern_health(struct kern *k, unsigned *n);
/* The counters of a worker (0 .. workers - 1), or of the control thread (workers). */
struct sluice_counters *kern_counters(struct kern *k, unsigned worker);
unsigned kern_workers(const struct kern *k);

/* Sum over all workers of every counter. */
void kern_counters_sum(struct kern *k, struct sluice_counters *out);

struct counter_name {
	const char *name, *help;
	size_t offset; /* in struct sluice_counters */
};
extern const struct counter_name kern_counter_names[];
extern const size_t kern_counter_names_n;

static inline uint64_t kern_counter_get(const struct sluice_counters *c, size_t i)
{
	uint64_t v;
	memcpy(&v, (const char *)c + kern_counter_names[i].offset, sizeof(v));
	return v;
}

/* Lock of the pin directory, to be handed to a process that takes over; -1 when nothing is pinned. Not to be closed. */
int kern_lock_fd(const struct kern *k);

/* Puts our pins back, after a process that was to take over replaced some of them and ended. */
void kern_repin(struct kern *k);

/* Bytes redirected or pumped and not yet in a target's send buffer, over all flows: for metrics, walks the flows. */
uint64_t kern_outstanding(struct kern *k);
/* New bounds after a reload; take effect at once. memory is never more than half of what the kernel lets TCP have. */
void kern_set_bounds(struct kern *k, uint64_t window, uint64_t memory);

/* "v1.1" and the like. Static. */
const char *kern_libbpf_version(void);
