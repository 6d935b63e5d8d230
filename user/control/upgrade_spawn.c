/* SPDX-License-Identifier: Apache-2.0 */
#include "control/upgrade_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
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

void upgrade_child_init(struct upgrade_child *c)
{
	*c = (struct upgrade_child){ .ended.fd = -1, .output = -1 };
}

static void child_forget(struct upgrade_child *c)
{
	if (c->ended.fd >= 0)
		close(c->ended.fd);
	if (c->output >= 0)
		close(c->output);
	upgrade_child_init(c);
}

/* With -d it ends when the daemon it forked serves, or does not. */
static void child_ended(struct watch *w, _unused_ uint32_t events)
{
	struct upgrade_child *c = container_of(w, struct upgrade_child, ended);
	char text[1024] = "", quoted[1200];
	int status = 0;
	ssize_t n;

	if (waitpid(c->pid, &status, WNOHANG) <= 0)
		return;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		n = c->output >= 0 ? pread(c->output, text, sizeof(text) - 1, 0) : 0;
		while (n > 0 && text[n - 1] == '\n')
			n--;
		log_error("upgrade_process_ended", "pid=%d status=%d signal=%d output=%s", (int)c->pid,
			  WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
			  log_quote(quoted, sizeof(quoted), (struct str){ text, n > 0 ? (size_t)n : 0 }));
	}
	child_forget(c);
}

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

static void child_run(const char *exe, char *const *argv, char **env, int fd, int output)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (output >= 0) {
		dup2(output, STDOUT_FILENO);
		dup2(output, STDERR_FILENO);
	}
	fcntl(fd, F_SETFD, 0);
	pass_capabilities();
	execve(exe, argv, env);
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

int upgrade_child_start(struct upgrade_child *c, struct loop *l, const char *exe, char *const *argv, bool keep_output,
			int *fd)
{
	char **env;
	int sv[2], r;

	if (c->pid)
		return -EBUSY;
	if (access(exe, X_OK) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return -errno;
	env = environment_with(sv[1]);
	if (!env) {
		close(sv[0]);
		close(sv[1]);
		return -ENOMEM;
	}
	c->output = keep_output ? -1 : memfd_create("sluice-upgrade", MFD_CLOEXEC);
	c->pid = fork();
	if (c->pid == 0)
		child_run(exe, argv, env, sv[1], c->output);
	r = c->pid < 0 ? -errno : 0;
	close(sv[1]);
	environment_free(env);
	if (r == 0) {
		c->ended = (struct watch){ .fd = (int)syscall(SYS_pidfd_open, c->pid, 0), .cb = child_ended };
		*fd = sv[0];
		/* Without it only the log of its end is missing. */
		if (c->ended.fd < 0 || loop_add(l, &c->ended, EPOLLIN) < 0)
			child_forget(c);
		return 0;
	}
	close(sv[0]);
	child_forget(c);
	return r;
}

void upgrade_child_deinit(struct upgrade_child *c, struct loop *l)
{
	loop_del(l, &c->ended);
	child_forget(c);
}
