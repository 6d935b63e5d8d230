/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going to the background, and the pid file.
 *
 * The parent of a daemon waits for the child's word: it returns 0 to the shell
 * only when the child serves, otherwise it prints what the child said and
 * returns 1.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

/*
 * Forks. The parent never returns. The child returns a descriptor for
 * daemon_ready or daemon_failed, or -errno.
 */
int daemon_begin(void);
/* The child serves: the parent returns 0, which is waited for. Standard streams go to /dev/null (standard error only when the log does not use it). */
void daemon_ready(int fd, bool keep_stderr);
/* The parent prints why and returns 1. */
void daemon_failed(int fd, const char *why);

/*
 * Writes our pid, mode 0644, and holds a lock on the file for as long as we
 * live. A file left by a dead process is taken over. The descriptor, or -errno
 * with a text; -EEXIST: a running process holds it.
 */
int pidfile_write(const char *path, char *err, size_t errlen);
/* Puts a file of ours in the place of a live process's. The same. */
int pidfile_replace(const char *path, char *err, size_t errlen);
/* Whether fd, which the process before us held, is the file at path. Then its lock is ours too, */
bool pidfile_is(const char *path, int fd);
/* and going on with it takes no rights on the directory. 0 or -errno. */
int pidfile_adopt(int fd);
/* Removes it if it is still ours; where it can not be removed any more it is empty. Closes fd; -1 is fine. */
void pidfile_remove(const char *path, int fd);
