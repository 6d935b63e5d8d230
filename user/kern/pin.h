/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory of pins: lock, adoption of what an earlier process left,
 * replacement without a half-made state in between, removal.
 */
#pragma once
#include "base/util.h"

struct pin_dir;
struct bpf_map;

struct pin_entry {
	const char *name;
	int fd; /* -1: the pin is removed if there is one */
};

/*
 * Makes the directory where it is missing and locks it. NULL, with why set,
 * when there is no bpffs, no permission, or another process holds the lock.
 * lock_fd >= 0 is the lock of the process being taken over from: it is shared
 * (duplicated) and holds on when that process ends.
 */
struct pin_dir *pin_open(const char *path, int lock_fd, char *why, size_t why_n);
void pin_close(struct pin_dir *d);
const char *pin_path(const struct pin_dir *d);
int pin_lock_fd(const struct pin_dir *d);

/* The map pinned under a name, the caller's to close, or -errno. */
int pin_get(const struct pin_dir *d, const char *name);

/*
 * Between open and load: makes the maps take over the pinned ones. 0: adopted.
 * 1: there are pins, but of another layout. -ENOENT: none. why: which were not adopted, and how they differ; "" none.
 */
int pin_adopt(struct pin_dir *d, struct bpf_map *meta, struct bpf_map *health, struct bpf_map *counters, char *why, size_t why_n);

/* Pins each under a temporary name and renames it into place. 0 or -errno. */
int pin_publish(struct pin_dir *d, const struct pin_entry *entries, size_t n);
/* Removes what pin_publish made, and the directory when it is empty then. */
void pin_remove(struct pin_dir *d);
