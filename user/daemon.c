/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

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

int pidfile_write(const char *path, bool take_over, char *err, size_t errlen)
{
	char text[16], holder[16];
	int fd, r;

	if (take_over && unlink(path) < 0 && errno != ENOENT) {
		r = -errno;
		snprintf(err, errlen, "pid_file %s: %s", path, strerror(errno));
		return r;
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0) {
		r = -errno;
		snprintf(err, errlen, "pid_file %s: %s; choose a place this user can write to", path, strerror(errno));
		return r;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		read_holder(fd, holder);
		snprintf(err, errlen,
			 "pid_file %s is held by running process %s; stop it (kill %s), or take over from it with -u",
			 path, holder, holder);
		close(fd);
		return -EEXIST;
	}
	snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, strlen(text), 0) != (ssize_t)strlen(text)) {
		r = errno ? -errno : -ENOSPC;
		snprintf(err, errlen, "pid_file %s can not be written: %s", path, strerror(-r));
		close(fd);
		return r;
	}
	return fd;
}

void pidfile_remove(const char *path, int fd)
{
	struct stat ours, there;

	if (fd < 0)
		return;
	if (fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_ino == there.st_ino &&
	    ours.st_dev == there.st_dev)
		unlink(path);
	close(fd);
}
