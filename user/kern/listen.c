/* SPDX-License-Identifier: Apache-2.0 */
#include "kern/listen.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kern/internal.h"
#include "kern/pin.h"
#include "listen.skel.h"

#define ENTRIES 1024u

struct kern_listen {
	struct kern *kern;
	int listeners, loads; /* -1: off */
	struct sluice_worker_load *load;
	size_t load_size;
	char reason[160];
};

static int adopt_pinned(const struct pin_dir *pins)
{
	struct bpf_map_info info = { 0 };
	uint32_t n = sizeof(info);
	int fd = pin_get(pins, "listeners");

	if (fd >= 0 && (bpf_obj_get_info_by_fd(fd, &info, &n) < 0 || info.type != BPF_MAP_TYPE_REUSEPORT_SOCKARRAY ||
			info.value_size != sizeof(uint64_t) || info.max_entries != ENTRIES)) {
		close(fd);
		fd = -1;
	}
	return fd < 0 ? -1 : fd;
}

static int open_maps(struct kern_listen *l)
{
	LIBBPF_OPTS(bpf_map_create_opts, mapped, .map_flags = BPF_F_MMAPABLE);
	struct pin_dir *pins = kern_pins(l->kern);
	void *p;

	if (pins)
		l->listeners = adopt_pinned(pins);
	if (l->listeners < 0) {
		l->listeners = bpf_map_create(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, "listeners", sizeof(uint32_t), sizeof(uint64_t), ENTRIES,
					      NULL);
		if (l->listeners < 0)
			return -errno;
		struct pin_entry entry = { "listeners", l->listeners };
		if (pins)
			(void)pin_publish(pins, &entry, 1);
	}
	l->loads = bpf_map_create(BPF_MAP_TYPE_ARRAY, "loads", sizeof(uint32_t), sizeof(struct sluice_worker_load),
				  kern_workers(l->kern), &mapped);
	if (l->loads < 0)
		return -errno;
	p = mmap(NULL, l->load_size, PROT_READ | PROT_WRITE, MAP_SHARED, l->loads, 0);
	if (p == MAP_FAILED)
		return -errno;
	l->load = p;
	return 0;
}

int kern_listen_open(struct kern_listen **out, struct kern *k)
{
	struct kern_listen *l = calloc(1, sizeof(*l));
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int r;

	if (!l)
		return -ENOMEM;
	l->kern = k;
	l->listeners = l->loads = -1;
	l->load_size = (kern_workers(k) * sizeof(*l->load) + page - 1) / page * page;
	r = kern_features(k)->bpf_maps ? open_maps(l) : -EPERM;
	if (r < 0) {
		reason_set(l->reason, "%s", r == -EPERM ? "making BPF maps is not permitted" : strerror(-r));
		/* The workers write their loads all the same; nobody reads them. */
		l->load = mmap(NULL, l->load_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (l->load == MAP_FAILED) {
			l->load = NULL;
			kern_listen_close(l);
			return -ENOMEM;
		}
	}
	*out = l;
	return 0;
}

void kern_listen_close(struct kern_listen *l)
{
	if (!l)
		return;
	if (l->load)
		munmap(l->load, l->load_size);
	if (l->listeners >= 0)
		close(l->listeners);
	if (l->loads >= 0)
		close(l->loads);
	free(l);
}

const char *kern_listen_reason(const struct kern_listen *l)
{
	return l->reason;
}

struct sluice_worker_load *kern_listen_load(struct kern_listen *l, unsigned worker)
{
	return &l->load[worker % kern_workers(l->kern)];
}

/* ---- entries ---- */

static uint64_t cookie_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t n = sizeof(cookie);

	return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &n) == 0 ? cookie : 0;
}

/* What is in the map: cookies, 0 where an entry is free. */
static void read_entries(const struct kern_listen *l, uint64_t have[ENTRIES])
{
	for (uint32_t i = 0; i < ENTRIES; i++)
		if (bpf_map_lookup_elem(l->listeners, &i, &have[i]) < 0)
			have[i] = 0;
}

static bool fits_at(const uint64_t have[ENTRIES], uint32_t base, const uint64_t *want, unsigned n, bool empty)
{
	if (base + n > ENTRIES)
		return false;
	for (unsigned i = 0; i < n; i++)
		if (have[base + i] != want[i] && (!empty || have[base + i]))
			return false;
	return true;
}

/* A socket has one entry at the most: the kernel refuses a second. */
static void drop_entries(const struct kern_listen *l, uint64_t have[ENTRIES], const uint64_t *want, unsigned n)
{
	for (uint32_t i = 0; i < ENTRIES; i++)
		for (unsigned k = 0; k < n && have[i]; k++)
			if (have[i] == want[k] && bpf_map_delete_elem(l->listeners, &i) == 0)
				have[i] = 0;
}

/* Puts the sockets into n entries in a row: where they are already, or where there is room. The first, or -errno. */
static int place_sockets(const struct kern_listen *l, const int *fd, unsigned n)
{
	uint64_t have[ENTRIES], *want = calloc(n, sizeof(*want));
	int base = -ENOSPC;

	if (!want)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++)
		want[i] = cookie_of(fd[i]);
	read_entries(l, have);
	for (uint32_t at = 0; at < ENTRIES && base < 0; at++)
		if (fits_at(have, at, want, n, false))
			base = (int)at;
	if (base < 0) {
		drop_entries(l, have, want, n);
		for (uint32_t at = 0; at < ENTRIES && base < 0; at++)
			if (fits_at(have, at, want, n, true))
				base = (int)at;
		for (unsigned i = 0; base >= 0 && i < n; i++) {
			uint32_t key = (uint32_t)base + i;
			uint64_t value = (uint64_t)fd[i];

			if (bpf_map_update_elem(l->listeners, &key, &value, BPF_ANY) < 0)
				base = -errno;
		}
	}
	free(want);
	return base;
}

int kern_listen_add(struct kern_listen *l, const int *fd, unsigned n)
{
	struct listen_bpf *b;
	int base, prog, r;

	if (l->reason[0])
		return -ENOTSUP;
	base = place_sockets(l, fd, n);
	if (base < 0)
		return base;
	b = listen_bpf__open();
	if (!b)
		return -errno;
	b->rodata->base = (uint32_t)base;
	b->rodata->n = n;
	b->rodata->workers = kern_workers(l->kern);
	r = bpf_map__reuse_fd(b->maps.listeners, l->listeners);
	if (r == 0)
		r = bpf_map__reuse_fd(b->maps.loads, l->loads);
	if (r == 0)
		r = listen_bpf__load(b);
	if (r == 0) {
		prog = bpf_program__fd(b->progs.listen_choose);
		r = setsockopt(fd[0], SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &prog, sizeof(prog)) < 0 ? -errno : 0;
	}
	/* The group of sockets holds the program, and that its maps. */
	listen_bpf__destroy(b);
	return r;
}
