/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/fault.h"

int log_level_max = LOG_LEVEL_INFO;

static atomic_int log_fd = STDERR_FILENO;
static char *log_path;
static atomic_ulong lost, lost_told;
static atomic_bool torn; /* the file's last line is not whole: a disk was full */

static const char *const level_names[] = { "error", "warn", "info", "debug" };

/* Replaces the descriptor under the number that other threads may be writing to. */
static int log_switch(const char *path)
{
	int cur = atomic_load(&log_fd), fd;

	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (fd < 0)
		return -errno;
	if (cur == STDERR_FILENO) {
		atomic_store(&log_fd, fd);
	} else {
		if (dup3(fd, cur, O_CLOEXEC) < 0) {
			int e = errno;
			close(fd);
			return -e;
		}
		close(fd);
	}
	return 0;
}

int log_open(const char *path)
{
	char *copy;
	int r;

	if (!path) {
		atomic_store(&log_fd, STDERR_FILENO);
		free(log_path);
		log_path = NULL;
		return 0;
	}
	copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	r = log_switch(path);
	if (r < 0) {
		free(copy);
		return r;
	}
	free(log_path);
	log_path = copy;
	return 0;
}

int log_reopen(void)
{
	return log_path ? log_switch(log_path) : 0;
}

int log_set_level(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(level_names); i++)
		if (strcmp(name, level_names[i]) == 0) {
			log_level_max = (int)i;
			return 0;
		}
	return -EINVAL;
}

int log_descriptor(void)
{
	return atomic_load(&log_fd);
}

unsigned long log_lost(void)
{
	return atomic_load(&lost);
}

/* line[-1] is a newline, for behind a line that was cut. */
static bool log_write(const char *line, size_t n)
{
	size_t before = atomic_exchange(&torn, false);
	ssize_t r = -1;

	if (fault_hit(FAULT_LOG_WRITE))
		errno = ENOSPC;
	else
		r = write(atomic_load(&log_fd), line - before, n + before);
	if (r == (ssize_t)(n + before))
		return true;
	if (r > 0 || before)
		atomic_store(&torn, true);
	return false;
}

#define LINE_MAX_BYTES 2048

/* A line with time, level, event and the rest: written whole, or lost. */
static bool log_line(enum log_level level, const char *event, const char *fmt, va_list ap)
{
	char buf[1 + LINE_MAX_BYTES], *line = buf + 1;
	struct timespec ts;
	struct tm tm;
	size_t n;
	int k;

	buf[0] = '\n';
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = strftime(line, LINE_MAX_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
	k = snprintf(line + n, LINE_MAX_BYTES - n, ".%03ldZ level=%s event=%s ", ts.tv_nsec / 1000000, level_names[level],
		     event);
	n += (size_t)k;
	k = vsnprintf(line + n, LINE_MAX_BYTES - n - 1, fmt, ap);
	if (k > 0)
		n += MIN_OF((size_t)k, LINE_MAX_BYTES - n - 2);
	for (size_t i = 0; i < n; i++)
		if (line[i] == '\n' || line[i] == '\r')
			line[i] = ' ';
	line[n++] = '\n';
	return log_write(line, n);
}

_printf_(3, 4) static bool log_note(enum log_level level, const char *event, const char *fmt, ...)
{
	va_list ap;
	bool ok;

	va_start(ap, fmt);
	ok = log_line(level, event, fmt, ap);
	va_end(ap);
	return ok;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
	unsigned long missed = atomic_load(&lost) - atomic_load(&lost_told);
	va_list ap;
	bool ok;

	va_start(ap, fmt);
	ok = log_line(level, event, fmt, ap);
	va_end(ap);
	if (!ok)
		atomic_fetch_add(&lost, 1);
	else if (missed && log_note(LOG_LEVEL_WARN, "log_lines_lost", "lines=%lu", missed))
		atomic_fetch_add(&lost_told, missed);
}

const char *log_quote(char *out, size_t cap, struct str v)
{
	static const char hex[] = "0123456789abcdef";
	bool plain = v.n > 0;
	size_t n = 0;

	for (size_t i = 0; i < v.n && plain; i++) {
		unsigned char c = (unsigned char)v.p[i];
		plain = c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != '=';
	}
	if (!plain && cap > 1)
		out[n++] = '"';
	for (size_t i = 0; i < v.n && n + 6 < cap; i++) {
		unsigned char c = (unsigned char)v.p[i];
		if (c >= ' ' && c < 0x7f && c != '"' && c != '\\') {
			out[n++] = (char)c;
		} else {
			out[n++] = '\\';
			out[n++] = 'x';
			out[n++] = hex[c >> 4];
			out[n++] = hex[c & 15];
		}
	}
	if (!plain && n + 1 < cap)
		out[n++] = '"';
	out[n] = 0;
	return out;
}
