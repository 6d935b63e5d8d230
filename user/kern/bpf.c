/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading and owning the maps and programs; the only file that knows libbpf.
 *
 * Two objects: `state` (maps only: health, counters, meta) and `splice` (the
 * verdict program and its maps, sharing `counters`). Each may be missing on
 * its own; health and counters then live in anonymous memory.
 *
 * The free-slot ring holds exactly the slots no flow_sock owns.
 */
#include "kern/bpf.h"
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>
#include "base/fault.h"
#include "base/log.h"
#include "kern/internal.h"
#include "kern/pin.h"
#include "splice.skel.h"
#include "state.skel.h"

#define FLOWS_DEFAULT 16384u
#define BACKENDS_DEFAULT 1024u
#define WINDOW_DEFAULT (1u << 20)
#define WINDOW_FLOOR (64u << 10)

struct kern {
	struct kern_features features;
	unsigned workers, backends, entries; /* entries: of counters */
	struct state_bpf *state;
	struct splice_bpf *splice_obj;
	int *rings;
	struct kern_splice splice;
	struct sluice_health *health;
	struct sluice_counters *counters;
	struct pin_dir *pins;
};

const struct counter_name kern_counter_names[] = {
#define X(field, text) { #field, text, offsetof(struct sluice_counters, field) },
#include "sluice_counters.def"
#undef X
};
const size_t kern_counter_names_n = ARRAY_SIZE(kern_counter_names);

const char *kern_libbpf_version(void)
{
	return libbpf_version_string() + (libbpf_version_string()[0] == 'v');
}

/* Without the privileges what fails is told in one line of ours, not in five of the library's. Set while opening, by its thread. */
static bool refusal_expected;

static int libbpf_log(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	char line[1024], quoted[1200];
	size_t n;

	/* Its debug level is hundreds of lines about every relocation; even at ours they would bury the requests. */
	if (level == LIBBPF_DEBUG || (level == LIBBPF_INFO && log_level_max < LOG_LEVEL_DEBUG))
		return 0;
	(void)vsnprintf(line, sizeof(line), fmt, ap);
	n = strlen(line);
	while (n > 0 && line[n - 1] == '\n')
		n--;
	log_quote(quoted, sizeof(quoted), (struct str){ line, n });
	if (level == LIBBPF_WARN && !refusal_expected)
		log_warn("libbpf", "text=%s", quoted);
	else
		log_debug("libbpf", "text=%s", quoted);
	return 0;
}

static size_t page_round(size_t n)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	return (n + page - 1) / page * page;
}

static void *map_memory(int fd, size_t size)
{
	void *p = mmap(NULL, page_round(size), PROT_READ | PROT_WRITE, fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

static void unmap_memory(void *p, size_t size)
{
	if (p)
		munmap(p, page_round(size));
}

/* --- state: health, counters, meta --- */

static int state_load(struct kern *k)
{
	char why[160] = "";
	int r;

	k->state = state_bpf__open();
	if (!k->state)
		return -errno;
	bpf_map__set_max_entries(k->state->maps.health, k->backends);
	bpf_map__set_max_entries(k->state->maps.counters, k->entries);
	if (k->pins) {
		/* Maps of an earlier process go on where their layout is ours; else new ones take their place. */
		r = pin_adopt(k->pins, k->state->maps.meta, k->state->maps.health, k->state->maps.counters, why, sizeof(why));
		k->features.adopted = r == 0;
		if (why[0])
			log_info("pins_replaced", "path=%s reason=\"%s\"", pin_path(k->pins), why);
	}
	r = state_bpf__load(k->state);
	if (r < 0)
		return r;
	k->entries = bpf_map__max_entries(k->state->maps.counters);
	k->health = map_memory(bpf_map__fd(k->state->maps.health), k->backends * sizeof(*k->health));
	k->counters = map_memory(bpf_map__fd(k->state->maps.counters), k->entries * sizeof(*k->counters));
	return k->health && k->counters ? 0 : -errno;
}

static void state_unload(struct kern *k)
{
	unmap_memory(k->health, k->backends * sizeof(*k->health));
	unmap_memory(k->counters, k->entries * sizeof(*k->counters));
	k->health = NULL;
	k->counters = NULL;
	state_bpf__destroy(k->state);
	k->state = NULL;
}

/* --- splice: the program and its maps --- */

static int rings_make(struct kern *k)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts);

	k->rings = calloc(k->workers, sizeof(*k->rings));
	if (!k->rings)
		return -ENOMEM;
	for (unsigned i = 0; i < k->workers; i++)
		k->rings[i] = -1;
	for (unsigned i = 0; i < k->workers; i++) {
		k->rings[i] = bpf_map_create(BPF_MAP_TYPE_RINGBUF, "sluice_events", 0, 0, 65536, &opts);
		if (k->rings[i] < 0)
			return k->rings[i];
		if (bpf_map_update_elem(bpf_map__fd(k->splice_obj->maps.rings), &i, &k->rings[i], BPF_ANY) < 0)
			return -errno;
	}
	return 0;
}

static int slots_make(struct kern_splice *s)
{
	s->free = calloc(s->flows_n, sizeof(*s->free));
	if (!s->free)
		return -ENOMEM;
	for (unsigned i = 0; i < s->flows_n; i++)
		s->free[i] = i;
	s->free_head = 0;
	s->free_n = s->flows_n;
	return 0;
}

static int splice_load(struct kern *k, const struct kern_options *o, const char **step)
{
	struct kern_splice *s = &k->splice;
	struct splice_bpf *b;
	int r;

	*step = "open";
	k->splice_obj = b = splice_bpf__open();
	if (!b)
		return -errno;
	b->rodata->trim_enabled = !o->test_no_trim;
	b->rodata->counter_entries = k->entries;
	bpf_map__set_max_entries(b->maps.flows, s->flows_n);
	bpf_map__set_max_entries(b->maps.flow_index, s->flows_n);
	bpf_map__set_max_entries(b->maps.sources, s->flows_n);
	bpf_map__set_max_entries(b->maps.targets, s->flows_n * 2);
	bpf_map__set_max_entries(b->maps.rings, k->workers);
	bpf_map__set_max_entries(b->maps.probes, k->workers);
	r = bpf_map__reuse_fd(b->maps.counters, bpf_map__fd(k->state->maps.counters));
	if (r < 0)
		return r;
	*step = "load";
	if ((r = splice_bpf__load(b)) < 0)
		return r;
	*step = "rings";
	if ((r = rings_make(k)) < 0)
		return r;
	*step = "attach";
	/* Before any socket goes in: it takes over the program at insertion. */
	r = bpf_prog_attach(bpf_program__fd(b->progs.splice_verdict), bpf_map__fd(b->maps.sources), BPF_SK_SKB_VERDICT, 0);
	if (r < 0)
		return r;
	*step = "mmap";
	s->flows = map_memory(bpf_map__fd(b->maps.flows), s->flows_n * sizeof(*s->flows));
	s->limits = map_memory(bpf_map__fd(b->maps.limits), sizeof(*s->limits));
	s->probes = map_memory(bpf_map__fd(b->maps.probes), k->workers * sizeof(*s->probes));
	if (!s->flows || !s->limits || !s->probes)
		return -errno;
	s->targets = bpf_map__fd(b->maps.targets);
	s->sources = bpf_map__fd(b->maps.sources);
	s->index = bpf_map__fd(b->maps.flow_index);
	*step = "slots";
	return slots_make(s);
}

static void splice_unload(struct kern *k)
{
	struct kern_splice *s = &k->splice;

	unmap_memory(s->flows, s->flows_n * sizeof(*s->flows));
	unmap_memory(s->limits, sizeof(*s->limits));
	unmap_memory(s->probes, k->workers * sizeof(*s->probes));
	s->flows = NULL;
	s->limits = NULL;
	s->probes = NULL;
	for (unsigned i = 0; k->rings && i < k->workers; i++)
		if (k->rings[i] >= 0)
			close(k->rings[i]);
	free(k->rings);
	k->rings = NULL;
	free(s->free);
	s->free = NULL;
	s->targets = s->sources = s->index = -1;
	splice_bpf__destroy(k->splice_obj);
	k->splice_obj = NULL;
}

static void splice_open(struct kern *k, const struct kern_options *o)
{
	struct kern_features *f = &k->features;
	const char *step = "";
	char why[120];
	int r;

	if (o->limit == KERN_LIMIT_NO_SOCKMAP) {
		reason_set(f->reason_sockmap, "the configuration limits the engine");
		return;
	}
	if (!caps_privileges(why, sizeof(why)) || (!o->skip_kernel_floor && !caps_kernel_floor(why, sizeof(why)))) {
		reason_set(f->reason_sockmap, "%s", why);
		return;
	}
	if (!k->state) {
		reason_set(f->reason_sockmap, "no BPF maps: %.120s", f->reason_maps);
		return;
	}
	r = splice_load(k, o, &step);
	if (r < 0) {
		reason_set(f->reason_sockmap, "%s of the program failed: %s", step, strerror(-r));
		splice_unload(k);
		return;
	}
	f->sockmap = true;
	kern_set_bounds(k, o->window, o->memory);
	r = o->test_no_selftest ? 0 : caps_selftest(k, why, sizeof(why));
	if (r < 0) {
		reason_set(f->reason_sockmap, "self-test failed: %s", why);
		f->sockmap = false;
		splice_unload(k);
	}
}

/* --- open, close --- */

static void pins_make(struct kern *k)
{
	struct kern_features *f = &k->features;
	struct pin_entry entries[] = {
		{ "health", bpf_map__fd(k->state->maps.health) },
		{ "counters", bpf_map__fd(k->state->maps.counters) },
		{ "meta", bpf_map__fd(k->state->maps.meta) },
		{ "flows", k->splice_obj ? bpf_map__fd(k->splice_obj->maps.flows) : -1 },
	};
	struct timespec ts;
	uint32_t zero = 0;
	int r;

	clock_gettime(CLOCK_REALTIME, &ts);
	struct sluice_meta meta = {
		.magic = SLUICE_ABI_MAGIC,
		.abi_version = SLUICE_ABI_VERSION,
		.pid = (uint32_t)getpid(),
		.started_ns = (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec,
		.counters_size = sizeof(struct sluice_counters),
	};
	(void)bpf_map_update_elem(bpf_map__fd(k->state->maps.meta), &zero, &meta, BPF_ANY);
	r = pin_publish(k->pins, entries, ARRAY_SIZE(entries));
	if (r < 0)
		reason_set(f->reason_pinned, "%s: %s", pin_path(k->pins), strerror(-r));
	else
		f->pinned = true;
}

static int memory_make(struct kern *k)
{
	if (!k->health)
		k->health = map_memory(-1, k->backends * sizeof(*k->health));
	if (!k->counters)
		k->counters = map_memory(-1, k->entries * sizeof(*k->counters));
	return k->health && k->counters ? 0 : -ENOMEM;
}

int kern_open(struct kern **out, const struct kern_options *o)
{
	struct kern *k = calloc(1, sizeof(*k));
	struct kern_features *f;
	int r;

	if (!k)
		return -ENOMEM;
	f = &k->features;
	libbpf_set_print(libbpf_log);
	libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
	k->workers = o->workers ? o->workers : 1;
	k->backends = o->max_backends ? o->max_backends : BACKENDS_DEFAULT;
	/* Room for the threads that a next process on this host is likely to have. */
	k->entries = MAX_OF(k->workers, (unsigned)get_nprocs()) + 1;
	k->splice = (struct kern_splice){ .targets = -1, .sources = -1, .index = -1, .flows_n = o->max_flows ? o->max_flows : FLOWS_DEFAULT };
	pthread_mutex_init(&k->splice.lock, NULL);

	if (!o->pin_dir)
		reason_set(f->reason_pinned, "no pin_dir");
	else
		k->pins = pin_open(o->pin_dir, o->lock_fd, f->reason_pinned, sizeof(f->reason_pinned));

	refusal_expected = !caps_privileges((char[160]){ 0 }, 160);
	r = fault_hit(FAULT_MAP_UPDATE) ? -EPERM : state_load(k);
	refusal_expected = false;
	if (r < 0) {
		reason_set(f->reason_maps, "%s", r == -EPERM ? "making BPF maps is not permitted (CAP_BPF)" : strerror(-r));
		if (k->pins)
			reason_set(f->reason_pinned, "no BPF maps");
		state_unload(k);
	} else {
		f->bpf_maps = true;
	}
	if (memory_make(k) < 0) {
		kern_close(k, false);
		return -ENOMEM;
	}
	splice_open(k, o);
	if (k->pins && k->state)
		pins_make(k);
	*out = k;
	return 0;
}

void kern_close(struct kern *k, bool unpin)
{
	if (!k)
		return;
	splice_unload(k);
	if (k->pins) {
		if (unpin && k->features.pinned)
			pin_remove(k->pins);
		pin_close(k->pins);
	}
	state_unload(k);
	pthread_mutex_destroy(&k->splice.lock);
	free(k);
}

/* --- what the rest of the program sees --- */

const struct kern_features *kern_features(const struct kern *k)
{
	return &k->features;
}

struct sluice_health *kern_health(struct kern *k, unsigned *n)
{
	if (n)
		*n = k->backends;
	return k->health;
}

struct sluice_counters *kern_counters(struct kern *k, unsigned worker)
{
	return &k->counters[MIN_OF(worker, k->workers) % k->entries];
}

unsigned kern_workers(const struct kern *k)
{
	return k->workers;
}

void kern_counters_sum(struct kern *k, struct sluice_counters *out)
{
	__u64 *sum = (__u64 *)(void *)out;

	memset(out, 0, sizeof(*out));
	for (unsigned e = 0; e < k->entries; e++) {
		const __u64 *c = (const __u64 *)(const void *)&k->counters[e];
		for (size_t i = 0; i < sizeof(*out) / sizeof(*sum); i++)
			sum[i] += __atomic_load_n(&c[i], __ATOMIC_RELAXED);
	}
}

int kern_lock_fd(const struct kern *k)
{
	return k->pins ? pin_lock_fd(k->pins) : -1;
}

struct pin_dir *kern_pins(struct kern *k)
{
	return k->features.pinned ? k->pins : NULL;
}

void kern_repin(struct kern *k)
{
	if (k->pins && k->state)
		pins_make(k);
}

uint64_t kern_outstanding(struct kern *k)
{
	uint64_t sum = 0;

	for (unsigned i = 0; k->splice.flows && i < k->splice.flows_n; i++) {
		const struct sluice_flow *f = &k->splice.flows[i];
		uint32_t epoch = __atomic_load_n(&f->epoch, __ATOMIC_RELAXED);
		if (epoch && epoch == __atomic_load_n(&f->seen_epoch, __ATOMIC_RELAXED))
			sum += __atomic_load_n(&f->outstanding, __ATOMIC_RELAXED);
	}
	return sum;
}

/*
 * Half of what all TCP sockets of the host may hold before the kernel calls it
 * pressure (tcp_mem[0]). Beyond that it refuses send buffers their room, and the
 * workers that find them full come back tick after tick.
 */
static uint64_t tcp_memory(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/sys/net/ipv4/tcp_mem", "re");

	if (f && fscanf(f, "%lu", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	return pages ? (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) / 2 : UINT64_MAX;
}

static uint64_t send_buffer_max(void)
{
	FILE *f = fopen("/proc/sys/net/ipv4/tcp_wmem", "re");
	unsigned long most = 0;

	if (f && fscanf(f, "%*u %*u %lu", &most) != 1)
		most = 0;
	if (f)
		fclose(f);
	return most;
}

void kern_set_bounds(struct kern *k, uint64_t window, uint64_t memory)
{
	struct kern_splice *s = &k->splice;
	struct sysinfo si;

	if (memory == 0)
		memory = sysinfo(&si) == 0 ? (uint64_t)si.totalram * si.mem_unit / 8 : 1u << 30;
	if (window == 0)
		window = WINDOW_DEFAULT;
	s->window = MIN_OF(MAX_OF(window, (uint64_t)WINDOW_FLOOR), (uint64_t)INT32_MAX);
	s->memory = MIN_OF(memory, tcp_memory());
	s->send_buffer_max = send_buffer_max();
	kern_bounds_apply(k);
}

void kern_bounds_apply(struct kern *k)
{
	struct kern_splice *s = &k->splice;
	unsigned armed = atomic_load(&s->armed);
	uint64_t share;

	if (!s->limits)
		return;
	share = MIN_OF(s->window, s->memory / MAX_OF(armed, 1u));
	__atomic_store_n(&s->limits->window_max, (uint32_t)MAX_OF(share, (uint64_t)WINDOW_FLOOR), __ATOMIC_RELAXED);
}

bool kern_budget_take(struct kern *k)
{
	struct kern_splice *s = &k->splice;
	unsigned now = atomic_fetch_add(&s->armed, 1) + 1;

	if ((uint64_t)now * WINDOW_FLOOR > s->memory) {
		atomic_fetch_sub(&s->armed, 1);
		return false;
	}
	if ((uint64_t)now * s->window > s->memory)
		kern_bounds_apply(k);
	return true;
}

void kern_budget_give(struct kern *k)
{
	struct kern_splice *s = &k->splice;
	unsigned was = atomic_fetch_sub(&s->armed, 1);

	if ((uint64_t)was * s->window > s->memory)
		kern_bounds_apply(k);
}

/* --- for flow.c and caps.c --- */

struct kern_splice *kern_splice(struct kern *k)
{
	return &k->splice;
}

/* All but the generation, which tells one owner's events from the next one's. */
static void slot_clear(struct sluice_flow *f)
{
	uint32_t generation = f->generation;

	memset(f, 0, sizeof(*f));
	f->generation = generation;
}

int kern_slot_take(struct kern *k)
{
	struct kern_splice *s = &k->splice;
	int slot = -1;

	pthread_mutex_lock(&s->lock);
	if (s->free_n > 0 && !fault_hit(FAULT_ALLOC)) {
		slot = (int)s->free[s->free_head];
		s->free_head = (s->free_head + 1) % s->flows_n;
		s->free_n--;
	}
	pthread_mutex_unlock(&s->lock);
	if (slot >= 0) {
		slot_clear(&s->flows[slot]);
		s->flows[slot].generation++;
	}
	return slot;
}

void kern_slot_give(struct kern *k, uint32_t slot)
{
	struct kern_splice *s = &k->splice;

	slot_clear(&s->flows[slot]); /* so that a dump shows what is live alone */
	pthread_mutex_lock(&s->lock);
	s->free[(s->free_head + s->free_n) % s->flows_n] = slot;
	s->free_n++;
	pthread_mutex_unlock(&s->lock);
}

int kern_map_set(int map, uint64_t key, const void *value)
{
	if (fault_hit(FAULT_MAP_UPDATE))
		return -ENOMEM;
	return bpf_map_update_elem(map, &key, value, BPF_ANY) < 0 ? -errno : 0;
}

int kern_map_unset(int map, uint64_t key)
{
	return bpf_map_delete_elem(map, &key) < 0 ? -errno : 0;
}

bool kern_probe(struct kern *k, unsigned worker, uint64_t cookie)
{
	char packet[16] = { 0 }; /* an Ethernet header is the least a test run takes */
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = packet, .data_size_in = sizeof(packet), .repeat = 1);
	struct sluice_probe *p = &k->splice.probes[worker];

	memcpy(packet, &worker, sizeof(worker));
	p->cookie = cookie;
	p->found = 0;
	return bpf_prog_test_run_opts(bpf_program__fd(k->splice_obj->progs.sock_probe), &opts) == 0 && p->found;
}

int kern_ring_new(struct ring_reader **out, struct kern *k, unsigned worker, int (*cb)(void *, void *, size_t), void *ctx)
{
	struct ring_buffer *r;

	if (!k->rings || worker >= k->workers)
		return -EINVAL;
	r = ring_buffer__new(k->rings[worker], cb, ctx, NULL);
	if (!r)
		return -errno;
	*out = (struct ring_reader *)(void *)r;
	return 0;
}

void kern_ring_free(struct ring_reader *r)
{
	ring_buffer__free((struct ring_buffer *)(void *)r);
}

int kern_ring_fd(struct kern *k, unsigned worker)
{
	return k->rings[worker];
}

void kern_ring_consume(struct ring_reader *r)
{
	(void)ring_buffer__consume((struct ring_buffer *)(void *)r);
}
