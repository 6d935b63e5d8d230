/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pins below a bpffs. A name either points at a whole map or does not exist:
 * maps are pinned as NAME_new (bpffs takes no dots) and renamed over NAME. The lock is flock(2) on
 * the directory itself, which bpffs supports as any file system does; it is
 * held by the open file description, so it can be shared with a successor.
 */
#include "kern/pin.h"
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "sluice_abi.h"

#ifndef BPF_FS_MAGIC
#define BPF_FS_MAGIC 0xcafe4a11
#endif

struct pin_dir {
	char *path;
	int lock;
};

static const char *const pin_names[] = { "health", "counters", "meta", "flows", "listeners" };

/* By the descriptor: once root is given up the way there may be barred (systemd mounts the bpffs with mode 700). */
static bool pin_name(char out[PATH_MAX], const struct pin_dir *d, const char *name, const char *suffix)
{
	int n = snprintf(out, PATH_MAX, "/proc/self/fd/%d/%s%s", d->lock, name, suffix);
	return n > 0 && n < PATH_MAX;
}

/* mkdir -p below the bpffs. */
static int dirs_make(const char *path)
{
	char part[PATH_MAX];

	if (strlen(path) >= sizeof(part))
		return -ENAMETOOLONG;
	for (const char *p = path; *p; p++) {
		if (p == path || (p[0] != '/' && p[1] != '\0'))
			continue;
		size_t n = (size_t)(p - path) + (p[0] != '/');
		memcpy(part, path, n);
		part[n] = '\0';
		if (mkdir(part, 0700) < 0 && errno != EEXIST)
			return -errno;
	}
	return 0;
}

/* Whether what exists of the path is on a bpffs. */
static bool on_bpffs(const char *path)
{
	char part[PATH_MAX];
	struct statfs fs;
	char *slash;

	(void)snprintf(part, sizeof(part), "%s", path);
	while (statfs(part, &fs) < 0) {
		slash = strrchr(part, '/');
		if (!slash || slash == part)
			return false;
		*slash = '\0';
	}
	return (unsigned long)fs.f_type == BPF_FS_MAGIC;
}

struct pin_dir *pin_open(const char *path, int lock_fd, char *why, size_t why_n)
{
	struct pin_dir *d;
	struct statfs fs;
	int r, fd;

	r = dirs_make(path);
	if (r < 0) {
		if (on_bpffs(path))
			(void)snprintf(why, why_n, "%s can not be made: %s", path, strerror(-r));
		else
			(void)snprintf(why, why_n, "%s is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)", path);
		return NULL;
	}
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstatfs(fd, &fs) < 0) {
		(void)snprintf(why, why_n, "%s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	if ((unsigned long)fs.f_type != BPF_FS_MAGIC) {
		(void)snprintf(why, why_n, "%s is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)", path);
		close(fd);
		(void)rmdir(path);
		return NULL;
	}
	if (lock_fd >= 0) {
		close(fd);
		fd = fcntl(lock_fd, F_DUPFD_CLOEXEC, 3);
	} else if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		(void)snprintf(why, why_n, "%s is in use by another process", path);
		close(fd);
		return NULL;
	}
	d = calloc(1, sizeof(*d));
	if (d)
		d->path = strdup(path);
	if (!d || !d->path || fd < 0) {
		(void)snprintf(why, why_n, "%s", strerror(fd < 0 ? errno : ENOMEM));
		if (fd >= 0)
			close(fd);
		free(d);
		return NULL;
	}
	d->lock = fd;
	return d;
}

void pin_close(struct pin_dir *d)
{
	if (!d)
		return;
	close(d->lock);
	free(d->path);
	free(d);
}

const char *pin_path(const struct pin_dir *d)
{
	return d->path;
}

int pin_lock_fd(const struct pin_dir *d)
{
	return d->lock;
}

int pin_get(const struct pin_dir *d, const char *name)
{
	char path[PATH_MAX];
	int fd;

	if (!pin_name(path, d, name, ""))
		return -ENAMETOOLONG;
	fd = bpf_obj_get(path);
	return fd < 0 ? -errno : fd;
}

/* A pinned array of the wanted shape (entries 0: any number), or -errno; -ESTALE and more in why when it is another shape. */
static int pinned_array(struct pin_dir *d, const char *name, size_t value_size, uint32_t entries, char *why, size_t why_n)
{
	struct bpf_map_info info = { 0 };
	uint32_t n = sizeof(info);
	int fd = pin_get(d, name);

	if (fd < 0)
		return fd;
	if (bpf_obj_get_info_by_fd(fd, &info, &n) < 0 || info.type != BPF_MAP_TYPE_ARRAY || info.value_size != value_size ||
	    (entries && info.max_entries != entries)) {
		size_t at = strlen(why);

		(void)snprintf(why + at, why_n - at, "%s%s has %u values of %u bytes, %zu bytes are wanted: begins anew", at ? "; " : "",
			       name, info.max_entries, info.value_size, value_size);
		close(fd);
		return -ESTALE;
	}
	return fd;
}

int pin_adopt(struct pin_dir *d, struct bpf_map *meta, struct bpf_map *health, struct bpf_map *counters, char *why, size_t why_n)
{
	struct sluice_meta m;
	uint32_t zero = 0;
	int fd_m, fd_h = -1, fd_c = -1, r = 1;

	why[0] = '\0';
	fd_m = pinned_array(d, "meta", sizeof(m), 1, why, why_n);
	if (fd_m == -ENOENT)
		return -ENOENT;
	if (fd_m < 0)
		return 1;
	if (bpf_map_lookup_elem(fd_m, &zero, &m) < 0 || m.magic != SLUICE_ABI_MAGIC || m.abi_version != SLUICE_ABI_VERSION) {
		(void)snprintf(why, why_n, "layout %u, this is %u: all begin anew", m.abi_version, SLUICE_ABI_VERSION);
		goto out;
	}
	fd_h = pinned_array(d, "health", sizeof(struct sluice_health), bpf_map__max_entries(health), why, why_n);
	/* Of any number of workers. */
	fd_c = pinned_array(d, "counters", sizeof(struct sluice_counters), 0, why, why_n);
	if (fd_h < 0 && fd_c < 0)
		goto out;
	/* Each on its own: more counters in a new release must not lose the operators' health table. */
	if (bpf_map__reuse_fd(meta, fd_m) < 0 || (fd_h >= 0 && bpf_map__reuse_fd(health, fd_h) < 0) ||
	    (fd_c >= 0 && bpf_map__reuse_fd(counters, fd_c) < 0))
		goto out;
	r = 0;
out:
	close(fd_m);
	if (fd_h >= 0)
		close(fd_h);
	if (fd_c >= 0)
		close(fd_c);
	return r;
}

int pin_publish(struct pin_dir *d, const struct pin_entry *entries, size_t n)
{
	char path[PATH_MAX], aside[PATH_MAX];

	for (size_t i = 0; i < n; i++) {
		if (!pin_name(path, d, entries[i].name, "") || !pin_name(aside, d, entries[i].name, "_new"))
			return -ENAMETOOLONG;
		if (unlink(aside) < 0 && errno != ENOENT)
			return -errno;
		if (entries[i].fd < 0) {
			(void)unlink(path);
			continue;
		}
		if (bpf_obj_pin(entries[i].fd, aside) < 0)
			return -errno;
		if (rename(aside, path) < 0)
			return -errno;
	}
	return 0;
}

void pin_remove(struct pin_dir *d)
{
	char path[PATH_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(pin_names); i++)
		if (pin_name(path, d, pin_names[i], ""))
			(void)unlink(path);
	(void)rmdir(d->path);
}
