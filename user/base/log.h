/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The error log: one line for one event, `time level=… event=… key=value …`.
 * A line is one write(2) to an O_APPEND file, so threads and processes do not
 * mix. A log that can not be written (full disk) never stops the service: the
 * lines are counted as lost and the count is told when writing works again.
 *
 * Keys are the same everywhere: upstream, backend, client, listener, status,
 * reason, errno, bytes, engine, worker, file, path.
 */
#pragma once
#include "base/util.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

extern int log_level_max;

/* Opens path for appending (NULL: standard error). 0 or -errno; on failure the old destination stays. */
int log_open(const char *path);
/* Opens the same path again, for rotation. 0 or -errno as above. */
int log_reopen(void);
/* Parses "error|warn|info|debug". -EINVAL when unknown. */
int log_set_level(const char *name);
/* What lines are written to, which stays the log's. */
int log_descriptor(void);
unsigned long log_lost(void);

void log_event(enum log_level level, const char *event, const char *fmt, ...) _printf_(3, 4);

#define log_at(level, ...)                           \
	do {                                         \
		if ((int)(level) <= log_level_max)   \
			log_event(level, __VA_ARGS__); \
	} while (0)
/* log_info("backend_up", "upstream=%s backend=%s", …): the first argument is the event's name. */
#define log_error(...) log_at(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_at(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)

/*
 * Writes v into out as a log value: as it is when it holds only plain
 * characters, otherwise in double quotes with \xNN for anything that could
 * break the line or the quoting. Always NUL-terminates; cuts at cap. Returns out.
 */
const char *log_quote(char *out, size_t cap, struct str v);
