/* SPDX-License-Identifier: Apache-2.0 */
#include "control/upgrade_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"

extern char **environ;

/* What the starter says of each process it started. */
struct starter_word {
	pid_t pid;  /* 0: it could not be forked; */
	int status; /* then an errno, else as waitpid says */
};

static const int our_signals[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGPIPE };

void upgrade_child_init(struct upgrade_child *c, const char *const *argv)
{
	*c = (struct upgrade_child){ .argv = argv, .ended.fd = -1, .output = -1 };
}

/* ---- in the new process, before it is one ---- */

/* Between fork and exec, in a process that had threads: system calls only. */
static void pass_capabilities(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };

	if (geteuid() == 0 || syscall(SYS_capget, &h, d) < 0)
		return;
	for (int i = 0; i < 2; i++)
		d[i].inheritable = d[i].permitted;
	if (syscall(SYS_capset, &h, d) < 0)
		return;
	for (int cap = 0; cap < 64; cap++)
		if (d[cap / 32].permitted & (1u << (cap % 32)))
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
}

static _Noreturn void child_run(const char *const *argv, char **env, int fd, int output)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(our_signals); i++)
		signal(our_signals[i], SIG_DFL);
	if (output >= 0) {
		dup2(output, STDOUT_FILENO);
		dup2(output, STDERR_FILENO);
	}
	fcntl(fd, F_SETFD, 0);
	pass_capabilities();
	execve(argv[0], (char *const *)(uintptr_t)argv, env);
	_exit(127);
}

/* The environment with our variable in it. NULL: no memory. The strings stay whose they are, but the last before NULL. */
static char **environment_with(int fd)
{
	size_t n = 0, k = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 2, sizeof(*env));
	if (!env)
		return NULL;
	/* WATCHDOG_PID names us; the service manager's watch goes on with the next process. */
	for (size_t i = 0; i < n; i++)
		if (strncmp(environ[i], UPGRADE_FD_VARIABLE "=", sizeof(UPGRADE_FD_VARIABLE)) != 0 &&
		    strncmp(environ[i], "WATCHDOG_PID=", sizeof("WATCHDOG_PID")) != 0)
			env[k++] = environ[i];
	if (asprintf(&env[k], UPGRADE_FD_VARIABLE "=%d", fd) < 0) {
		free(env);
		return NULL;
	}
	return env;
}

static void environment_free(char **env)
{
	size_t n = 0;

	while (env[n])
		n++;
	free(env[n - 1]);
	free(env);
}

/* fd: the end for the new process; it stays the caller's, as output does. Its pid or -errno. */
static pid_t child_fork(const char *const *argv, int fd, int output)
{
	char **env = environment_with(fd);
	pid_t pid;

	if (!env)
		return -ENOMEM;
	pid = fork();
	if (pid == 0)
		child_run(argv, env, fd, output);
	if (pid < 0)
		pid = -errno;
	environment_free(env);
	return pid;
}

/* ---- the starter ---- */

/*
 * An order is one byte. With the socket for the new process, and perhaps where it prints: start it. Alone (*fd is -1): end
 * what was started. 0: we are not needed any more.
 */
static int order_receive(int from, int *fd, int *output)
{
	char byte;
	_Alignas(struct cmsghdr) char room[CMSG_SPACE(2 * sizeof(int))];
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	struct cmsghdr *c;
	ssize_t n;

	*fd = *output = -1;
	do
		n = recvmsg(from, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len >= CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(c), sizeof(*fd));
	if (*fd >= 0 && c->cmsg_len >= CMSG_LEN(2 * sizeof(int)))
		memcpy(output, CMSG_DATA(c) + sizeof(int), sizeof(*output));
	return n > 0;
}

static void order_close(int fd, int output)
{
	if (fd >= 0)
		close(fd);
	if (output >= 0)
		close(output);
}

/* Until the process has ended. When who gives the orders goes, the process goes on: it may be all that is left. */
static void order_wait(int from, pid_t pid, int *status)
{
	struct pollfd p[2] = { { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN }, { .fd = from, .events = POLLIN } };
	int fd, output;

	while (p[0].fd >= 0 && poll(p, 2, -1) >= 0 && !p[0].revents) {
		if (!order_receive(from, &fd, &output))
			_exit(0);
		if (fd < 0)
			kill(pid, SIGKILL);
		order_close(fd, output);
	}
	if (p[0].fd >= 0)
		close(p[0].fd);
	while (waitpid(pid, status, 0) < 0 && errno == EINTR)
		;
}

static void order_run(const char *const *argv, int from, int fd, int output, struct starter_word *w)
{
	*w = (struct starter_word){ .pid = child_fork(argv, fd, output) };
	order_close(fd, output);
	if (w->pid < 0)
		*w = (struct starter_word){ .status = -w->pid };
	else
		order_wait(from, w->pid, &w->status);
}

static void let_go_of_output(bool keep_stderr)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	if (!keep_stderr)
		dup2(null, STDERR_FILENO);
}

static _Noreturn void starter_run(int fd, const struct upgrade_child *c, bool keep_stderr)
{
	struct starter_word word;
	int end, output;

	prctl(PR_SET_NAME, "sluice-starter");
	/* Signals to all processes of a name or a terminal are for the one that serves. */
	for (size_t i = 0; i < ARRAY_SIZE(our_signals); i++)
		signal(our_signals[i], SIG_IGN);
	let_go_of_output(keep_stderr);
	/* Above all the word that the process which went to the background owes its parent. */
	fd = dup2(fd, STDERR_FILENO + 1);
	close_range((unsigned)fd + 1, ~0u, 0);
	while (fd >= 0 && order_receive(fd, &end, &output)) {
		if (end < 0)
			continue;
		order_run(c->argv, fd, end, output, &word);
		if (send(fd, &word, sizeof(word), MSG_NOSIGNAL) < 0)
			break;
	}
	_exit(0);
}

int upgrade_starter_begin(struct upgrade_child *c, bool keep_stderr)
{
	int sv[2], r;

	c->starter = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	fflush(NULL);
	c->starter = fork();
	r = c->starter < 0 ? -errno : 0;
	if (c->starter == 0)
		starter_run(sv[1], c, keep_stderr);
	close(sv[1]);
	if (r < 0) {
		close(sv[0]);
		return r;
	}
	fcntl(sv[0], F_SETFL, O_NONBLOCK);
	c->ended.fd = sv[0];
	return 0;
}

/* fd -1: end it. */
static int order_send(const struct upgrade_child *c, int fd)
{
	_Alignas(struct cmsghdr) char room[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	int fds[2] = { fd, c->output };
	size_t bytes = c->output >= 0 ? sizeof(fds) : sizeof(fd);
	struct iovec iov = { (char[]){ 0 }, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CMSG_SPACE(bytes) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);

	if (fd < 0)
		return send(c->ended.fd, "", 1, MSG_NOSIGNAL) < 0 ? -errno : 0;
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(h), fds, bytes);
	return sendmsg(c->ended.fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* ---- who asked for it ---- */

static void child_forget(struct upgrade_child *c)
{
	if (c->output >= 0)
		close(c->output);
	c->output = -1;
	c->running = false;
	c->pid = 0;
	if (c->starter)
		return;
	if (c->ended.fd >= 0)
		close(c->ended.fd);
	c->ended.fd = -1;
}

static void starter_forget(struct upgrade_child *c, struct loop *l)
{
	if (l && c->loop)
		loop_del(l, &c->ended);
	close(c->ended.fd);
	c->ended.fd = -1;
	waitpid(c->starter, NULL, WNOHANG);
	c->starter = -1;
}

/* With -d it ends when the daemon it forked serves, or does not. */
static void tell_end(const struct upgrade_child *c, pid_t pid, int status)
{
	char text[1024] = "", quoted[1200];
	ssize_t n;

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return;
	n = c->output >= 0 ? pread(c->output, text, sizeof(text) - 1, 0) : 0;
	while (n > 0 && text[n - 1] == '\n')
		n--;
	log_error("upgrade_process_ended", "pid=%d status=%d signal=%d output=%s", (int)pid,
		  WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
		  log_quote(quoted, sizeof(quoted), (struct str){ text, n > 0 ? (size_t)n : 0 }));
}

static void child_ended(struct watch *w, _unused_ uint32_t events)
{
	struct upgrade_child *c = container_of(w, struct upgrade_child, ended);
	int status = 0;

	if (waitpid(c->pid, &status, WNOHANG) <= 0)
		return;
	tell_end(c, c->pid, status);
	child_forget(c);
}

static void starter_event(struct watch *w, _unused_ uint32_t events)
{
	struct upgrade_child *c = container_of(w, struct upgrade_child, ended);
	struct starter_word word;
	ssize_t n;

	while ((n = recv(w->fd, &word, sizeof(word), 0)) == sizeof(word)) {
		if (!word.pid)
			log_error("upgrade_process_ended", "reason=\"it could not be forked: %s\"", strerror(word.status));
		else
			tell_end(c, word.pid, word.status);
		child_forget(c);
	}
	if (n < 0 && errno == EAGAIN)
		return;
	log_warn("upgrade_starter_gone", "pid=%d reason=\"the process that keeps root for sluicectl upgrade ended\"",
		 (int)c->starter);
	child_forget(c);
	starter_forget(c, c->loop);
}

static int start_by_starter(struct upgrade_child *c, struct loop *l, int fd)
{
	int r = 0;

	if (!c->loop) {
		c->ended.cb = starter_event;
		r = loop_add(l, &c->ended, EPOLLIN);
	}
	if (r < 0)
		return r;
	c->loop = l;
	r = order_send(c, fd);
	return r == -EPIPE || r == -ECONNRESET ? -ESRCH : r;
}

static int start_here(struct upgrade_child *c, struct loop *l, int fd)
{
	pid_t pid = child_fork(c->argv, fd, c->output);

	if (pid < 0)
		return pid;
	c->pid = pid;
	c->ended = (struct watch){ .fd = (int)syscall(SYS_pidfd_open, pid, 0), .cb = child_ended };
	/* Without it only the log of its end is missing. */
	if (c->ended.fd < 0 || loop_add(l, &c->ended, EPOLLIN) < 0)
		child_forget(c);
	return 0;
}

int upgrade_child_start(struct upgrade_child *c, struct loop *l, bool keep_output, int *fd)
{
	int sv[2], r;

	if (c->running)
		return -EBUSY;
	if (c->starter < 0)
		return -ESRCH;
	/* What root may run, the starter knows. */
	if ((!c->starter && access(c->argv[0], X_OK) < 0) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return -errno;
	c->output = keep_output ? -1 : memfd_create("sluice-upgrade", MFD_CLOEXEC);
	c->running = true;
	r = c->starter ? start_by_starter(c, l, sv[1]) : start_here(c, l, sv[1]);
	close(sv[1]);
	if (r < 0) {
		close(sv[0]);
		child_forget(c);
		return r;
	}
	*fd = sv[0];
	return 0;
}

void upgrade_child_kill(struct upgrade_child *c)
{
	if (!c->running)
		return;
	if (c->starter > 0)
		(void)order_send(c, -1);
	else if (c->pid)
		kill(c->pid, SIGKILL);
}

void upgrade_child_deinit(struct upgrade_child *c, struct loop *l)
{
	if (!c->starter && l)
		loop_del(l, &c->ended);
	child_forget(c);
	if (c->starter > 0)
		starter_forget(c, l);
}
