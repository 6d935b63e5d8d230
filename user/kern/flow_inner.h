/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by flow.c, flow_sock.c and flow_group.c only. */
#pragma once
#include <linux/tcp.h>
#include "kern/flow.h"
#include "kern/internal.h"

/*
 * IDLE -> KERNEL            armed; the program redirects
 * KERNEL -> SPILL           bytes were passed; waiting for the target (drained, or room)
 * SPILL -> KERNEL           user space moved all that was passed
 * KERNEL, SPILL -> DRAIN    every byte left the source; some are on their way to the target
 * any -> IDLE               done, failed, or disarmed
 */
enum flow_state { FLOW_IDLE, FLOW_KERNEL, FLOW_SPILL, FLOW_DRAIN };

/* Of tcpi_state. */
enum { SOCK_ESTABLISHED = 1, SOCK_CLOSE_WAIT = 8 };

#define FLOW_BUFFER (1u << 20)
#define FLOW_BATCH 64

struct flow_group {
	struct kern *kern;
	struct kern_splice *splice;
	struct sluice_counters *counters;
	unsigned worker;
	uint32_t epoch; /* last one given out */
	struct ring_reader *ring;
	int epoll, timer;
	uint64_t timer_ns; /* what the timer is set to; UINT64_MAX: off */
	uint64_t sweep_ns; /* next sweep */
	struct list running;
	struct flow **heap;
	size_t heap_n, heap_cap;
	struct flow_sock **owners; /* by slot */
	struct flow_sock *batch[FLOW_BATCH]; /* targets whose room events are being handled */
	char *buffer;
};

/* flow_group.c */
/* Calls flow_step at the given time. -ENOMEM: the sweep will have to do. */
void group_at(struct flow *f, uint64_t when_ns);
void group_at_off(struct flow *f);

/* flow_sock.c */
/*
 * What the socket has written since it connected (a lower bound that is exact
 * while nothing is acknowledged in between), and its TCP_INFO. 0 or -errno.
 */
int sock_written(int fd, uint64_t *written, struct tcp_info *ti);
/* The same, exact. */
int sock_written_exact(int fd, uint64_t *written, struct tcp_info *ti);
/* Tells flow_step once when at most low bytes are unsent (and the send buffer is not full). 0 or -errno. */
int sock_room_wait(struct flow_sock *fs, uint32_t low);
void sock_room_end(struct flow_sock *fs);
/* Makes room in a near source's receive buffer for a burst of so many bytes, and takes it back. */
void sock_source_widen(struct flow_sock *fs, uint64_t burst);
void sock_source_narrow(struct flow_sock *fs);
/* The address of the socket's peer, for people who read the map of flows. */
void sock_peer_text(char out[static SLUICE_PEER_TEXT], int fd);
/* Waits until no run of the verdict program that began before is under way on this socket. */
void sock_program_barrier(int fd);

/* flow.c */
/* One event of the ring or the room watch. Ends with the owner's callback if there is something to tell. */
void flow_wake(struct flow *f);
/* Whether the sweep should wake it: something was passed that nobody looked at. */
bool flow_overlooked(const struct flow *f);
