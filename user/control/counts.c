/* SPDX-License-Identifier: Apache-2.0 */
#include "control/counts.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"

#define FILE_MAX (4u << 20)

static void write_stats(void *ctx, const struct upstream_stats *s)
{
	for (unsigned code = 0; code < UPSTREAM_STATUS_MAX; code++) {
		uint64_t n = upstream_status_total(s, code);

		if (n)
			buf_printf(ctx, "status %s %u %" PRIu64 "\n", s->name, code, n);
	}
}

static void write_backend(void *ctx, const struct upstream *u, struct backend *b, _unused_ uint32_t weight)
{
	uint64_t n = atomic_load_explicit(&b->requests, memory_order_relaxed);

	if (n)
		buf_printf(ctx, "backend %s/%s %" PRIu64 "\n", u->c->name, b->text, n);
}

int counts_file(void)
{
	int fd = memfd_create("sluice-counts", MFD_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int counts_write(struct lb *lb, int fd)
{
	struct buf text = BUF_INIT;
	int r = 0;

	lb_each_stats(lb, write_stats, &text);
	lb_each_backend(lb, write_backend, &text);
	if (ftruncate(fd, 0) < 0 || (text.len && pwrite(fd, buf_data(&text), text.len, 0) != (ssize_t)text.len))
		r = -EIO;
	buf_deinit(&text);
	return r;
}

static void read_line(struct lb *lb, const char *line)
{
	char name[256];
	struct backend *b;
	unsigned code;
	uint64_t n;

	if (sscanf(line, "status %255s %u %" SCNu64, name, &code, &n) == 3) {
		lb_restore_status(lb, name, code, n);
	} else if (sscanf(line, "backend %255s %" SCNu64, name, &n) == 2 && lb_find_backend(lb, str_from(name), &b) == 0) {
		atomic_fetch_add_explicit(&b->requests, n, memory_order_relaxed);
		backend_unref(b);
	}
}

void counts_read(struct lb *lb, int fd)
{
	struct stat st;
	char *text, *save = NULL;
	ssize_t n;

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && st.st_size > 0 && st.st_size < FILE_MAX && (text = malloc((size_t)st.st_size + 1))) {
		n = pread(fd, text, (size_t)st.st_size, 0);
		text[n > 0 ? n : 0] = 0;
		for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
			read_line(lb, line);
		free(text);
	}
	close(fd);
}
