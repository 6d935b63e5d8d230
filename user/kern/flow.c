/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One body on its way from a source socket to a target socket.
 *
 * moved = redirected (the program's count) + forwarded (ours), from the arming.
 *
 * The pump. What the program passed is unread on the source and holds the
 * source's window shut; until it is consumed nothing is redirected. In order:
 *   1. the target has written everything moved so far, or our send would overtake
 *   2. the target has room enough that the next burst is worth its brake
 *   3. peek at the source: consumes nothing, the window stays shut
 *   4. send to the target, publish it in `forwarded`; these bytes are "ahead"
 *   5. more was passed meanwhile: again from 3, until the sender has stopped
 *   6. consume all of it at once: only now does the window open, and what
 *      arrives next finds copied_seq at its first byte and is redirected
 * Consuming piece by piece would open the window while bytes are unread, and
 * what comes in would have to be passed again: a sender that never pauses
 * would be chased for the whole body.
 * Between 1 and 3 the program may have redirected more if nothing was unread
 * at 1. Once the peek shows something it can not any more; so redirected is
 * read again after the peek, and 1 is repeated when it moved.
 */
#include "kern/flow.h"
#include <errno.h>
#include <sys/socket.h>
#include "kern/flow_inner.h"

#define POLL_MIN_NS (50 * 1000ull)
#define POLL_MAX_NS (4 * NS_PER_MS)

static struct sluice_flow *shared(const struct flow *f)
{
	return &f->group->splice->flows[f->slot];
}

static uint64_t moved(const struct flow *f)
{
	return f->redirected + f->forwarded;
}

static void refresh(struct flow *f)
{
	struct sluice_flow *s = shared(f);

	/* After MOVED the slot is another body's: the last value stands. */
	if (f->state == FLOW_DRAIN)
		return;
	if (__atomic_load_n(&s->seen_epoch, __ATOMIC_ACQUIRE) == f->epoch)
		f->redirected = __atomic_load_n(&s->redirected, __ATOMIC_ACQUIRE);
	f->spills = s->spills - f->spills_before;
}

/* The source is free; the slot is disarmed. */
static void source_release(struct flow *f)
{
	if (!f->src)
		return;
	__atomic_store_n(&shared(f)->epoch, 0, __ATOMIC_RELEASE);
	shared(f)->target_peer[0] = '\0';
	f->src->as_source = NULL;
	f->src = NULL;
}

static enum flow_result finish(struct flow *f, enum flow_result what, int error)
{
	source_release(f);
	if (f->dst) {
		sock_room_end(f->dst);
		f->dst->as_target = NULL;
		f->dst = NULL;
	}
	group_at_off(f);
	list_unlink(&f->link);
	f->state = FLOW_IDLE;
	f->error = error;
	kern_budget_give(f->group->kern);
	return what;
}

static int socket_error(int fd, int otherwise)
{
	int e = 0;
	socklen_t n = sizeof(e);
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) == 0 && e ? e : otherwise;
}

/* Looks again soon, then less and less often: the worker needs microseconds, or the target is full and it needs ticks. */
static void poll_later(struct flow *f)
{
	f->poll_ns = f->poll_ns ? MIN_OF(f->poll_ns * 2, POLL_MAX_NS) : POLL_MIN_NS;
	group_at(f, now_ns() + f->poll_ns);
}

/*
 * Whether the target has written everything moved. 0: yes. > 0: so much is
 * missing. -errno of the target.
 */
static int64_t target_missing(struct flow *f)
{
	uint64_t want, written;
	struct tcp_info ti;
	int r;

	if (f->flushed == f->redirected)
		return 0;
	for (int try = 0; try < 3; try++) {
		r = sock_written(f->dst->fd, &written, &ti);
		if (r < 0)
			return r;
		/* The program may be ahead of the value read last, never of this one by what was written before it. */
		refresh(f);
		want = f->written_base + moved(f);
		f->notsent = ti.tcpi_notsent_bytes;
		if (written == want) {
			f->flushed = f->redirected;
			f->poll_ns = 0;
			return 0;
		}
		if (ti.tcpi_state != SOCK_ESTABLISHED && ti.tcpi_state != SOCK_CLOSE_WAIT)
			return -socket_error(f->dst->fd, EPIPE);
	}
	return written < want ? (int64_t)(want - written) : -EPROTO;
}

static enum flow_result target_wait(struct flow *f)
{
	f->state = f->state == FLOW_DRAIN ? FLOW_DRAIN : FLOW_SPILL;
	poll_later(f);
	return FLOW_WAIT;
}

/* Every byte left the source. */
static enum flow_result source_done(struct flow *f)
{
	int64_t missing;

	source_release(f);
	f->state = FLOW_DRAIN;
	missing = target_missing(f);
	if (missing == 0)
		return finish(f, FLOW_DONE, 0);
	if (missing < 0)
		return finish(f, FLOW_DST_ERROR, (int)-missing);
	target_wait(f);
	return FLOW_MOVED;
}

/*
 * A socket that is a target too queues what it is passed behind what it still
 * has to send, and its worker shows it to recv some time after that was sent:
 * until then neither "nothing there" nor "end of stream" can be believed. The
 * kernel's copied_seq counts what was really read.
 */
static bool bytes_hidden(struct flow *f)
{
	struct flow_group *g = f->group;
	struct sluice_flow *s = shared(f);

	if (!(f->src->roles & FLOW_TARGET) || !s->seq_valid)
		return false;
	if (!kern_probe(g->kern, g->worker, f->src->cookie))
		return false; /* it left the maps: reset or closed, recv tells */
	return g->splice->probes[g->worker].copied_seq != __atomic_load_n(&s->next_seq, __ATOMIC_RELAXED);
}

/* passed: the program's count from before the peek that found nothing. */
static enum flow_result source_empty(struct flow *f, uint64_t passed)
{
	f->state = FLOW_KERNEL;
	if (passed != f->passed && bytes_hidden(f))
		poll_later(f);
	else
		f->passed = passed;
	return FLOW_WAIT;
}

static enum flow_result source_ended(struct flow *f)
{
	if (bytes_hidden(f)) {
		poll_later(f);
		return FLOW_WAIT;
	}
	f->eof = true;
	refresh(f);
	if (f->limit != FLOW_UNTIL_EOF)
		return moved(f) == f->limit ? source_done(f) : finish(f, FLOW_EOF, 0);
	f->limit = moved(f);
	return source_done(f);
}

/*
 * Reads off the source what was sent ahead. 0, -errno, or 1: not all of it could
 * be read now (the kernel is short of memory), look again. The window update this
 * sends makes the sender fill the window at once; on loopback that happens
 * while the socket's lock is held here, and goes on with every acknowledgement.
 * The kernel takes all of that for used memory until the lock is released, and
 * if it ends with a closed window it never thinks of it again: the sender would
 * wait for its persist timer. So for the time of the read the buffer has room
 * for as much as the program will redirect and some more, which is passed and
 * has us read again. Afterwards it is small, since what it holds of passed bytes
 * is what has to be copied. Not when more lies unread behind what is consumed
 * (all is false): the burst would be passed too.
 */
static int consume(struct flow *f, bool all)
{
	int r = 0;

	if (f->ahead == 0)
		return 0;
	if (all)
		sock_source_widen(f->src, f->window - MIN_OF(f->notsent, f->window));
	while (f->ahead > 0 && r == 0) {
		ssize_t n = recv(f->src->fd, f->group->buffer, f->ahead, MSG_DONTWAIT);
		if (n > 0)
			f->ahead -= (size_t)n;
		else if (n == 0)
			r = -EPROTO;
		else if (errno != EINTR)
			r = errno == EAGAIN ? 1 : -errno;
	}
	if (all)
		sock_source_narrow(f->src);
	return r;
}

static enum flow_result room_wait(struct flow *f)
{
	int r = sock_room_wait(f->dst, f->window / 4);

	f->state = FLOW_SPILL;
	if (r < 0)
		poll_later(f); /* without the watch it is looked at now and then */
	return FLOW_WAIT;
}

/* Whether the target still has more unsent than leaves room for a burst worth its brake. */
static bool target_crowded(struct flow *f)
{
	uint64_t written;
	struct tcp_info ti;

	if (f->notsent <= f->window / 4)
		return false;
	if (sock_written(f->dst->fd, &written, &ti) == 0)
		f->notsent = ti.tcpi_notsent_bytes;
	return f->notsent > f->window / 4;
}

/* As the program has it. */
static uint32_t window_of(const struct flow *f)
{
	const struct flow_group *g = f->group;
	uint32_t window = MIN_OF((uint32_t)g->splice->window, __atomic_load_n(&g->splice->limits->window_max, __ATOMIC_RELAXED));
	bool seen = __atomic_load_n(&shared(f)->seen_epoch, __ATOMIC_RELAXED) == f->epoch;

	return sluice_window(window, seen ? __atomic_load_n(&shared(f)->rate, __ATOMIC_RELAXED) : 0);
}

static enum flow_result pump(struct flow *f)
{
	struct flow_group *g = f->group;
	uint64_t passed;
	int64_t missing;
	ssize_t n, k;
	int r;

	f->window = window_of(f);
	for (;;) {
		refresh(f);
		if (__atomic_load_n(&shared(f)->broken, __ATOMIC_RELAXED))
			return finish(f, FLOW_SRC_ERROR, EPROTO);
		if (moved(f) == f->limit) {
			r = consume(f, false);
			if (r > 0)
				return target_wait(f);
			return r < 0 ? finish(f, FLOW_SRC_ERROR, -r) : source_done(f);
		}
		missing = target_missing(f);
		if (missing < 0)
			return finish(f, FLOW_DST_ERROR, (int)-missing);
		if (missing > 0)
			return target_wait(f);
		if (target_crowded(f))
			return room_wait(f);

		passed = __atomic_load_n(&shared(f)->passed, __ATOMIC_ACQUIRE);
		n = recv(f->src->fd, g->buffer, MIN_OF((uint64_t)FLOW_BUFFER, f->limit - moved(f) + f->ahead), MSG_PEEK | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return source_empty(f, passed);
		if (n < 0)
			return finish(f, FLOW_SRC_ERROR, errno);
		if (n == 0)
			return source_ended(f);
		refresh(f);
		if (f->redirected != f->flushed)
			continue;

		if ((size_t)n > f->ahead) {
			k = send(f->dst->fd, g->buffer + f->ahead, (size_t)n - f->ahead, MSG_DONTWAIT | MSG_NOSIGNAL);
			if (k < 0 && errno == EINTR)
				continue;
			if (k < 0 && errno == EAGAIN)
				return room_wait(f);
			if (k < 0)
				return finish(f, FLOW_DST_ERROR, errno);
			f->ahead += (size_t)k;
			f->notsent += (uint32_t)k;
			f->forwarded += (uint64_t)k;
			__atomic_store_n(&shared(f)->forwarded, f->forwarded, __ATOMIC_SEQ_CST);
			KERN_COUNT(g->counters, flow_pump_bytes, k);
			KERN_COUNT(g->counters, flow_pumps, 1);
			if (f->ahead < (size_t)n)
				return room_wait(f);
		}
		/* Grown since? A full buffer is emptied first: the peek can not show more. */
		if (n < FLOW_BUFFER && moved(f) != f->limit && __atomic_load_n(&shared(f)->passed, __ATOMIC_ACQUIRE) != passed)
			continue;
		/* What was sent took of the room that the burst is to have. */
		if (n < FLOW_BUFFER && moved(f) != f->limit && target_crowded(f))
			return room_wait(f);
		r = consume(f, n < FLOW_BUFFER);
		if (r > 0)
			return target_wait(f);
		if (r < 0)
			return finish(f, FLOW_SRC_ERROR, -r);
	}
}

enum flow_result flow_step(struct flow *f)
{
	int64_t missing;

	switch ((enum flow_state)f->state) {
	case FLOW_KERNEL:
	case FLOW_SPILL:
		return pump(f);
	case FLOW_DRAIN:
		missing = target_missing(f);
		if (missing == 0)
			return finish(f, FLOW_DONE, 0);
		if (missing < 0)
			return finish(f, FLOW_DST_ERROR, (int)-missing);
		return target_wait(f);
	default:
		return FLOW_DONE;
	}
}

void flow_wake(struct flow *f)
{
	enum flow_result r = FLOW_WAIT;

	switch ((enum flow_state)f->state) {
	case FLOW_KERNEL:
	case FLOW_DRAIN:
		r = flow_step(f);
		break;
	case FLOW_SPILL:
		/* Already waiting for the target: what came since does not change what for. */
		if (!f->dst->room_wait && f->heap_index == 0)
			r = flow_step(f);
		break;
	default:
		break;
	}
	if (r != FLOW_WAIT)
		f->callback(f, r);
}

bool flow_overlooked(const struct flow *f)
{
	const struct sluice_flow *s = shared(f);

	switch ((enum flow_state)f->state) {
	case FLOW_KERNEL:
		if (__atomic_load_n(&s->passed, __ATOMIC_RELAXED) != f->passed || __atomic_load_n(&s->broken, __ATOMIC_RELAXED))
			return true;
		return __atomic_load_n(&s->seen_epoch, __ATOMIC_ACQUIRE) == f->epoch &&
		       __atomic_load_n(&s->redirected, __ATOMIC_RELAXED) + f->forwarded == f->limit;
	case FLOW_SPILL:
		return !f->dst->room_wait && f->heap_index == 0;
	case FLOW_DRAIN:
		return f->heap_index == 0;
	default:
		return false;
	}
}

static enum flow_result refuse(struct flow_sock *src, enum flow_refusal why)
{
	src->refusal = why;
	return FLOW_NOT_NOW;
}

enum flow_result flow_arm(struct flow *f, struct flow_group *g, struct flow_sock *src, struct flow_sock *dst, uint64_t nbytes)
{
	struct sluice_flow *s;
	struct tcp_info ti;
	uint64_t base;
	int r;

	if (!flow_sock_inserted(src, FLOW_SOURCE) || !flow_sock_inserted(dst, FLOW_TARGET))
		return refuse(src, FLOW_REFUSED_UNAVAILABLE);
	if (src->as_source || dst->as_target || flow_running(f))
		return refuse(src, FLOW_REFUSED_BUSY);
	if (!kern_budget_take(g->kern))
		return refuse(src, FLOW_REFUSED_MEMORY);
	r = sock_written_exact(dst->fd, &base, &ti);
	if (r < 0 || (ti.tcpi_state != SOCK_ESTABLISHED && ti.tcpi_state != SOCK_CLOSE_WAIT)) {
		kern_budget_give(g->kern);
		return refuse(src, FLOW_REFUSED_STATE);
	}
	*f = (struct flow){
		.callback = f->callback,
		.state = FLOW_KERNEL,
		.epoch = ++g->epoch ? g->epoch : ++g->epoch,
		.slot = src->slot,
		.group = g,
		.src = src,
		.dst = dst,
		.limit = nbytes,
		.written_base = base,
		.notsent = ti.tcpi_notsent_bytes,
		.spills_before = g->splice->flows[src->slot].spills,
	};
	list_push_back(&g->running, &f->link);
	src->as_source = f;
	dst->as_target = f;
	KERN_COUNT(g->counters, flow_arms, 1);

	s = shared(f);
	s->target = dst->cookie;
	sock_peer_text(s->target_peer, dst->fd);
	s->limit = nbytes;
	s->window = (uint32_t)g->splice->window;
	__atomic_store_n(&s->forwarded, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&s->epoch, f->epoch, __ATOMIC_SEQ_CST);
	/*
	 * What arrived before the store above was passed and is found by the
	 * pump's peek (both take the socket's lock); what arrives after it finds
	 * the flow armed. The pump also is what arms the sweep's timer.
	 */
	if (f->group->timer_ns == UINT64_MAX)
		group_at(f, now_ns() + POLL_MAX_NS);
	return pump(f);
}

uint64_t flow_disarm(struct flow *f)
{
	uint64_t written = 0, want, left = 0;
	struct tcp_info ti;

	if (!flow_running(f))
		return 0;
	if (f->src) {
		int fd = f->src->fd;
		__atomic_store_n(&shared(f)->epoch, 0, __ATOMIC_SEQ_CST);
		sock_program_barrier(fd);
		refresh(f);
		(void)consume(f, false);
	}
	want = f->written_base + moved(f);
	if (sock_written_exact(f->dst->fd, &written, &ti) < 0)
		left = 1;
	else if (written != want)
		left = written < want ? want - written : 1;
	(void)finish(f, FLOW_DONE, 0);
	return left;
}

void flow_progress(struct flow *f, struct flow_progress *out)
{
	if (flow_running(f))
		refresh(f);
	out->moved = moved(f);
	out->forwarded = f->forwarded;
	out->target_slow = f->state == FLOW_SPILL || f->state == FLOW_DRAIN;
	out->outstanding = 0;
	if (f->state == FLOW_KERNEL || f->state == FLOW_SPILL)
		out->outstanding = __atomic_load_n(&shared(f)->outstanding, __ATOMIC_RELAXED);
	out->spills = f->spills;
}
