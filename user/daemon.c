/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"

#define PARENT_END_MS 2000

/* Waits for the child's word: "+" when it serves, otherwise text. */
static void parent_wait(int fd, pid_t child)
{
	char text[2048];
	size_t n = 0;
	ssize_t r;

	while (n < sizeof(text) - 1 && (r = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t)r;
	text[n] = 0;
	if (strcmp(text, "+") == 0)
		_exit(0);
	if (n)
		fprintf(stderr, "sluice: %s\n", text);
	else
		fprintf(stderr, "sluice: the daemon (pid %d) ended before it could serve; see its error_log\n", (int)child);
	_exit(1);
}

int daemon_begin(void)
{
	int fd[2];
	pid_t pid;

	if (pipe2(fd, O_CLOEXEC) < 0)
		return -errno;
	fflush(NULL);
	pid = fork();
	if (pid < 0) {
		int e = errno;
		close(fd[0]);
		close(fd[1]);
		return -e;
	}
	if (pid > 0) {
		close(fd[1]);
		parent_wait(fd[0], pid);
	}
	close(fd[0]);
	setsid();
	return fd[1];
}

void daemon_ready(int fd, bool keep_stderr)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct pollfd parent = { .fd = (int)syscall(SYS_pidfd_open, getppid(), 0), .events = POLLIN };

	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		if (!keep_stderr)
			dup2(null, STDERR_FILENO);
		close(null);
	}
	if (write(fd, "+", 1) < 0) {
		/* The parent was killed; nobody waits for our word. */
	}
	close(fd);
	if (parent.fd < 0)
		return;
	poll(&parent, 1, PARENT_END_MS);
	close(parent.fd);
}

void daemon_failed(int fd, const char *why)
{
	if (write(fd, why, strlen(why)) < 0) {
		/* as above */
	}
	close(fd);
}

/* Who holds the file, as text for a message. */
static void read_holder(int fd, char out[16])
{
	ssize_t n = pread(fd, out, 15, 0);

	out[n > 0 ? n : 0] = 0;
	out[strcspn(out, "\n")] = 0;
}

/* Readers never see anything but one pid or the other, with line feeds behind it for a moment. */
static int write_pid(int fd)
{
	char text[64];
	struct stat st;
	int n = snprintf(text, sizeof(text), "%d\n", (int)getpid()), all = n;

	if (fstat(fd, &st) == 0 && st.st_size > n)
		all = (int)MIN_OF(st.st_size, (off_t)sizeof(text));
	memset(text + n, '\n', (size_t)(all - n));
	errno = 0;
	if (pwrite(fd, text, (size_t)all, 0) != all || ftruncate(fd, n) < 0)
		return errno ? -errno : -ENOSPC;
	return 0;
}

static int fail(int r, const char *path, const char *advice, char *err, size_t errlen)
{
	snprintf(err, errlen, "pid_file %s: %s%s", path, strerror(-r), advice);
	return r;
}

static int open_and_lock(const char *path, const char *named, char *err, size_t errlen)
{
	char holder[16];
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644), r;

	if (fd < 0)
		return fail(-errno, named, "; choose a place this user can write to", err, errlen);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		read_holder(fd, holder);
		snprintf(err, errlen,
			 "pid_file %s is held by running process %s; stop it (kill %s), or take over from it with -u",
			 named, holder, holder);
		close(fd);
		return -EEXIST;
	}
	r = write_pid(fd);
	if (r < 0) {
		close(fd);
		return fail(r, named, "; it can not be written", err, errlen);
	}
	return fd;
}

int pidfile_write(const char *path, char *err, size_t errlen)
{
	return open_and_lock(path, path, err, errlen);
}

int pidfile_replace(const char *path, char *err, size_t errlen)
{
	char aside[PATH_MAX];
	int fd, r;

	if (snprintf(aside, sizeof(aside), "%s.%d", path, (int)getpid()) >= (int)sizeof(aside))
		return fail(-ENAMETOOLONG, path, "", err, errlen);
	fd = open_and_lock(aside, path, err, errlen);
	if (fd >= 0 && rename(aside, path) < 0) {
		r = -errno;
		unlink(aside);
		close(fd);
		return fail(r, path, "", err, errlen);
	}
	return fd;
}

bool pidfile_is(const char *path, int fd)
{
	struct stat ours, there;

	return fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_ino == there.st_ino &&
	       ours.st_dev == there.st_dev;
}

int pidfile_adopt(int fd)
{
	return write_pid(fd);
}

void pidfile_remove(const char *path, int fd)
{
	if (fd < 0)
		return;
	if (pidfile_is(path, fd) && unlink(path) < 0 && ftruncate(fd, 0) < 0) {
		/* Then it names a process that is not there; the lock tells. */
	}
	close(fd);
}
