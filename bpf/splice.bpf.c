/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The gate. Runs once for every buffer that arrives on a source socket and
 * decides: to the target socket inside the kernel (redirect), or to whoever
 * reads the source (pass). It knows lengths and sequence numbers, no HTTP.
 *
 * What keeps the bytes right
 *   - A retransmission that overlaps what was seen, or a buffer of which user
 *     space had read a part before the socket came in, is handed to this
 *     program whole (tcp_read_skb does not look at copied_seq). The seen
 *     front is cut off by sequence number.
 *   - Order: once something is passed, everything is passed until user space
 *     has consumed all of it. The kernel's own copied_seq says so: it counts
 *     what was redirected and what was read, so it stands at the first byte
 *     of this buffer exactly when nothing before it is unread. User space
 *     writes passed bytes to the target before it consumes them.
 *   - A buffer that would cross the end of the body is passed: buffers can not
 *     be split, and what is behind the body is not ours to move.
 * What keeps the memory bounded
 *   - Redirected bytes are charged to nobody and the source's window opens at
 *     once; passed ones stay charged to the source and close it. So passing is
 *     the brake, applied when what is queued for the target plus what its
 *     send buffer holds unsent reaches the window, or when the send buffer has
 *     no room: a worker that finds it full waits a timer tick at a time.
 *
 * One source socket's runs are serialised by its socket lock. Fields of struct
 * sluice_flow have one writer each (see sluice_abi.h).
 */
#include "counters.h"
#include <bpf/bpf_core_read.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/* Set before loading. */
const volatile __u32 counter_entries = 1;
const volatile __u8 trim_enabled = 1; /* 0 only in the test that shows what the trim is for */

#define TCP_ESTABLISHED 1
#define TCP_CLOSE_WAIT 8
#define TRIM_MAX 4095	    /* sk_skb_adjust_room: at most 12 bits a call */
#define TRIM_ROUNDS 20	    /* 80 KB: more than one buffer holds without BIG TCP */
#define RECENT_MAX (256u << 10)
#define RATE_NS 50000000ull /* the target's rate is taken over at least so long */
#define RATE_MAX (1u << 30)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_limits);
} limits SEC(".maps");

/* Cookie of a source socket -> its slot in flows. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u32);
} flow_index SEC(".maps");

/* Both keyed by socket cookie: it is never reused, so a stale key finds nothing instead of somebody else. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} sources SEC(".maps");

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sluice_probe);
} probes SEC(".maps");

#define COUNT_N(c, field, n) __sync_fetch_and_add(&(c)->field, (n))
#define COUNT(c, field) COUNT_N(c, field, 1)

static __always_inline void tell(struct sluice_counters *c, __u32 slot, struct sluice_flow *f, enum sluice_event_kind kind)
{
	struct sluice_event ev = { .slot = slot, .generation = f->generation, .epoch = f->epoch, .kind = kind };
	__u32 worker = f->worker;
	void *ring = bpf_map_lookup_elem(&rings, &worker);

	/* A lost event costs latency only: user space sweeps its armed flows. */
	if (!ring || bpf_ringbuf_output(ring, &ev, sizeof(ev), 0) < 0)
		COUNT(c, flow_events_lost);
}

/* Cuts n bytes off the front. False: nothing sensible can be done with this stream any more. */
static __always_inline int trim(struct __sk_buff *skb, __u32 n)
{
	for (int i = 0; i < TRIM_ROUNDS; i++) {
		__u32 step = n > TRIM_MAX ? TRIM_MAX : n;

		if (n == 0)
			break;
		if (bpf_skb_adjust_room(skb, -(__s32)step, 0, 0) < 0)
			return 0;
		n -= step;
	}
	return n == 0;
}

/*
 * Memory that so many bytes of this source take while they wait. Measured over
 * the last few hundred KB: by single buffers, a small one now and then would
 * make every large one look dear.
 */
static __always_inline __u64 memory_of(struct sluice_flow *f, __u32 bytes, __u32 truesize, __u32 len)
{
	__u32 l = f->recent_len + len, t = f->recent_truesize + truesize;

	if (l > RECENT_MAX || t > 16 * RECENT_MAX) {
		l = l / 2 + 1;
		t /= 2;
	}
	f->recent_len = l;
	f->recent_truesize = t;
	return t > l ? (__u64)bytes * t / l : bytes;
}

/*
 * Whether the source's window is about to close although nothing is unread.
 * Buffers that arrive while user space holds the socket's lock wait in its
 * backlog, and the kernel takes them all for used memory until the last one was
 * worked off (__release_sock, tcp_space). On loopback each acknowledgement
 * brings the next buffer at once, so the sum grows until the window is shut;
 * then it is zero again, but nobody says so, and the sender waits for its persist
 * timer. A buffer passed in time is the remedy: reading it opens the window.
 */
static __always_inline int window_closing(const struct tcp_sock *src)
{
	__s32 waiting = src->inet_conn.icsk_inet.sk.sk_backlog.len;
	__s32 held = src->inet_conn.icsk_inet.sk.sk_backlog.rmem_alloc.counter;
	__s32 size = src->inet_conn.icsk_inet.sk.sk_rcvbuf;
	__u32 mss = src->inet_conn.icsk_ack.rcv_mss;

	return waiting > 0 && size - waiting - held < (__s32)(2 * mss);
}

/* What the target acknowledges in a millisecond: up at once, down by quarters, so that a pause does not cost a fast one its window. */
static __always_inline __u32 rate_of(struct sluice_flow *f, __u32 una)
{
	__u64 now = bpf_ktime_get_ns(), past = now - f->rate_since_ns, r;

	if (f->rate_since_ns && past < RATE_NS)
		return f->rate;
	if (f->rate_since_ns) {
		r = (__u64)(una - f->rate_una) * 1000000 / past + 1;
		if (r > RATE_MAX)
			r = RATE_MAX;
		f->rate = r > f->rate ? (__u32)r : f->rate - f->rate / 4 + (__u32)r / 4;
	}
	f->rate_since_ns = now;
	f->rate_una = una;
	return f->rate;
}

SEC("sk_skb")
int splice_verdict(struct __sk_buff *skb)
{
	const struct sk_buff *kskb = (const struct sk_buff *)skb;
	__u64 cookie = bpf_get_socket_cookie(skb);
	__u32 *index = bpf_map_lookup_elem(&flow_index, &cookie);
	struct sluice_counters *c;
	struct sluice_flow *f;
	struct sluice_limits *lim;
	struct tcp_sock *src, *dst;
	struct bpf_sock *dst_sk;
	__u32 slot, worker, entry, zero = 0, len, seq = 0, truesize = 0, copied, epoch;
	__u64 moved, target;

	/* A socket that is leaving: its slot is gone, what it still gets nobody reads. */
	if (!index)
		return SK_PASS;
	slot = *index;
	f = bpf_map_lookup_elem(&flows, &slot);
	if (!f)
		return SK_PASS;
	worker = f->worker;
	entry = worker % counter_entries;
	c = bpf_map_lookup_elem(&counters, &entry);
	if (!c || !skb->sk)
		return SK_PASS;
	src = bpf_skc_to_tcp_sock(skb->sk);
	if (!src)
		return SK_PASS;

	len = skb->len;
	if (f->broken) {
		COUNT(c, verdict_drop_broken);
		return SK_DROP;
	}
	/*
	 * FIN runs the verdict without data. Redirected it would break the target (EPIPE); passed, when this socket is a
	 * target too and its worker is behind, it would queue there, and the worker takes the length 0 for an error and
	 * stops for good (sk_psock_backlog). Nobody needs the empty buffer: the socket itself remembers its end.
	 */
	if (len == 0) {
		COUNT(c, verdict_drop_fin);
		return SK_DROP;
	}

	/* TCP_SKB_CB(skb)->seq is the first word of cb (struct tcp_skb_cb). */
	bpf_core_read(&seq, sizeof(seq), &kskb->cb);
	bpf_core_read(&truesize, sizeof(truesize), &kskb->truesize);
	copied = src->copied_seq;
	if (!f->seq_valid) {
		f->next_seq = copied;
		f->seq_valid = 1;
	}
	if (trim_enabled) {
		__s32 overlap = (__s32)(f->next_seq - seq);

		if (overlap < 0) {
			/* TCP queues in order, so this can not be; the stream would have a hole. */
			COUNT(c, flow_gaps);
			f->broken = 1;
			tell(c, slot, f, SLUICE_EVENT_BROKEN);
			return SK_DROP;
		}
		if (overlap > 0) {
			__u32 cut = (__u32)overlap < len ? (__u32)overlap : len;

			/* Also what is dropped is cut first: the kernel adds the length it drops to copied_seq. */
			if (!trim(skb, cut)) {
				f->broken = 1;
				tell(c, slot, f, SLUICE_EVENT_BROKEN);
				return SK_DROP;
			}
			f->trims++;
			COUNT(c, flow_trims);
			COUNT_N(c, flow_trim_bytes, cut);
			seq += cut;
			len -= cut;
			if (len == 0) {
				COUNT(c, verdict_drop_duplicate);
				return SK_DROP;
			}
		}
	} else {
		seq = f->next_seq;
	}
	f->next_seq = seq + len;

	epoch = *(volatile __u32 *)&f->epoch;
	if (epoch == 0) {
		f->passed += len;
		COUNT(c, verdict_pass_unarmed);
		return SK_PASS;
	}
	if (f->seen_epoch != epoch) {
		f->redirected = 0;
		f->base_valid = 0;
		f->outstanding = 0;
		f->rate_since_ns = 0;
		f->rate = 0;
		barrier();
		f->seen_epoch = epoch;
	}

	if (copied != seq) {
		COUNT(c, verdict_pass_spill);
		goto pass;
	}

	/* From here on nothing is unread: user space is not forwarding, `forwarded` is exact and stands still. */
	moved = f->redirected + *(volatile __u64 *)&f->forwarded;
	if (moved >= f->limit) {
		f->passed += len;
		COUNT(c, verdict_pass_surplus);
		return SK_PASS;
	}
	if (len > f->limit - moved) {
		COUNT(c, verdict_pass_end_crossing);
		goto spill;
	}
	if (window_closing(src)) {
		COUNT(c, verdict_pass_closing);
		COUNT(c, flow_spills);
		f->spills++;
		goto spill;
	}
	target = f->target;
	dst_sk = bpf_map_lookup_elem(&targets, &target);
	if (!dst_sk) {
		COUNT(c, verdict_pass_no_target);
		goto spill;
	}
	dst = bpf_skc_to_tcp_sock(dst_sk);
	if (!dst) {
		bpf_sk_release(dst_sk);
		COUNT(c, verdict_pass_no_target);
		goto spill;
	}
	{
		__u32 write_seq = dst->write_seq;
		__s32 unsent = (__s32)(write_seq - dst->snd_nxt), backlog;
		__u8 state = dst->inet_conn.icsk_inet.sk.__sk_common.skc_state;
		__s32 queued = dst->inet_conn.icsk_inet.sk.sk_wmem_queued, sndbuf = dst->inet_conn.icsk_inet.sk.sk_sndbuf;
		__u32 window = f->window, una = dst->snd_una;
		__u64 held;

		bpf_sk_release(dst_sk);
		if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT) {
			COUNT(c, verdict_pass_no_target);
			goto spill;
		}
		if (!f->base_valid) {
			f->base_seq = write_seq - (__u32)moved;
			f->base_valid = 1;
		}
		backlog = (__s32)(f->base_seq + (__u32)moved - write_seq);
		if (backlog < 0)
			backlog = 0;
		if (unsent < 0)
			unsent = 0;
		lim = bpf_map_lookup_elem(&limits, &zero);
		if (lim && lim->window_max < window)
			window = lim->window_max;
		window = sluice_window(window, rate_of(f, una));
		f->outstanding = (__u32)backlog;
		held = (__u64)(__u32)unsent + memory_of(f, (__u32)backlog + len, truesize, len);
		if (backlog + unsent > 0 && (held > window || queued + backlog >= sndbuf)) {
			COUNT(c, verdict_pass_window);
			COUNT(c, flow_spills);
			f->spills++;
			goto spill;
		}
	}

	f->redirected += len;
	if (bpf_sk_redirect_hash(skb, &targets, &target, 0) != SK_PASS) {
		/* It left the map since the look-up. */
		f->redirected -= len;
		COUNT(c, verdict_pass_no_target);
		goto spill;
	}
	f->outstanding += len;
	f->redirected_total += len;
	COUNT(c, verdict_redirect);
	COUNT_N(c, verdict_redirect_bytes, len);
	if (moved + len == f->limit) {
		COUNT(c, flow_ends);
		tell(c, slot, f, SLUICE_EVENT_END);
	}
	return SK_PASS;

spill:
	tell(c, slot, f, SLUICE_EVENT_SPILL);
pass:
	f->passed += len;
	COUNT_N(c, verdict_pass_bytes, len);
	return SK_PASS;
}

/*
 * Reads what no system call tells of a socket in the maps. Never attached: a
 * worker runs it by BPF_PROG_TEST_RUN with its number in the first four bytes.
 */
SEC("tc")
int sock_probe(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct sluice_probe *p;
	struct bpf_sock *sk;
	struct tcp_sock *tp;
	__u32 worker;
	__u64 cookie;

	if (data + sizeof(worker) > end)
		return 0;
	worker = *(__u32 *)data;
	p = bpf_map_lookup_elem(&probes, &worker);
	if (!p)
		return 0;
	cookie = p->cookie;
	p->found = 0;
	sk = bpf_map_lookup_elem(&sources, &cookie);
	if (!sk)
		sk = bpf_map_lookup_elem(&targets, &cookie);
	if (!sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp) {
		p->snd_nxt = tp->snd_nxt;
		p->write_seq = tp->write_seq;
		p->copied_seq = tp->copied_seq;
		p->found = 1;
	}
	bpf_sk_release(sk);
	return 0;
}
