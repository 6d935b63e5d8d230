/* SPDX-License-Identifier: Apache-2.0 */
#include "control/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "control/upgrade.h"
#include "control/upgrade_spawn.h"
#include "control/upgrade_wire.h"

#define DEATH_LOOK_MS 50
#define DEATH_MS 2000 /* from the end of a killed process's connections to its own */

struct takeover {
	int fd; /* -1: the running process has gone */
	pid_t pid;  /* 0: it has not said yet */
	const char *path; /* NULL: we were given a socket */
};

/* Why a wait ended without a message. Positive ones are conditions, as everywhere. */
enum { GONE = 1 };

static int fail(char *why, size_t n, int r, const char *text)
{
	snprintf(why, n, "%s", text);
	return r;
}

/* The next message. 0; GONE; -ETIMEDOUT; -ECANCELED; or -errno. */
static int wait_message(struct takeover *t, uint64_t deadline, int cancel_fd, struct upgrade_message *m, struct handed *set)
{
	for (;;) {
		struct pollfd p[2] = { { .fd = t->fd, .events = POLLIN }, { .fd = cancel_fd, .events = POLLIN } };
		uint64_t now = now_ns();
		int r = upgrade_receive(t->fd, m, set);

		if (r != -EAGAIN)
			return r;
		if (now >= deadline)
			return -ETIMEDOUT;
		r = poll(p, 2, (int)((deadline - now) / NS_PER_MS) + 1);
		if (r < 0 && errno != EINTR)
			return -errno;
		if (r > 0 && p[1].revents)
			return -ECANCELED;
	}
}

static int no_process(const char *path, int err, char *why, size_t n)
{
	snprintf(why, n,
		 "upgrade_sock %s: %s: no running process listens there, so there is nothing to take over; "
		 "start without -u (both processes must name the same upgrade_sock)",
		 path, strerror(err));
	return -err;
}

static int connect_to(struct takeover *t, const char *path, char *why, size_t n)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	unsigned uid;

	if (!path)
		return fail(why, n, -EINVAL, "-u needs upgrade_sock in the configuration, the same as that of the running process");
	if (strlen(path) >= sizeof(un.sun_path))
		return fail(why, n, -ENAMETOOLONG, "upgrade_sock is longer than a socket's path can be");
	memcpy(un.sun_path, path, strlen(path) + 1);
	t->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (t->fd < 0)
		return fail(why, n, -errno, strerror(errno));
	if (connect(t->fd, (struct sockaddr *)&un, sizeof(un)) < 0)
		return no_process(path, errno, why, n);
	if (upgrade_peer_check(t->fd, &uid) < 0) {
		snprintf(why, n, "upgrade_sock %s belongs to a process of user %u, which is neither root nor ours", path, uid);
		return -EPERM;
	}
	return 0;
}

/* The socket that the running process gave us when it started us. -1: it did not. */
static int passed_socket(void)
{
	const char *z = getenv(UPGRADE_FD_VARIABLE);
	int fd = z ? atoi(z) : -1, type = 0;
	socklen_t len = sizeof(type);

	unsetenv(UPGRADE_FD_VARIABLE);
	if (fd <= STDERR_FILENO || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
		return -1;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
}

/* An end of the connection is not yet the end of the process. */
static bool process_ended(const struct takeover *t)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct pollfd p = { .events = POLLIN };
	bool ended = false;

	if (t->pid) {
		p.fd = (int)syscall(SYS_pidfd_open, t->pid, 0);
		if (p.fd < 0)
			return errno == ESRCH;
		ended = poll(&p, 1, DEATH_MS) > 0;
		close(p.fd);
		return ended;
	}
	if (!t->path)
		return false;
	/* Whoever it was, nobody listens any more; a dying process may have closed our connection first. */
	memcpy(un.sun_path, t->path, strlen(t->path) + 1);
	for (unsigned i = 0; i < DEATH_MS / DEATH_LOOK_MS && !ended; i++) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

		ended = fd >= 0 && connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0 && errno == ECONNREFUSED;
		if (fd >= 0)
			close(fd);
		if (!ended)
			poll(NULL, 0, DEATH_LOOK_MS);
	}
	return ended;
}

/* The connection has ended. Where the process did too, what came from it is ours alone. */
static int go_alone(struct takeover *t, const struct handed *set, char *why, size_t n)
{
	if (!process_ended(t)) {
		snprintf(why, n, "process %d ended the upgrade without a word and goes on", (int)t->pid);
		return -ECONNABORTED;
	}
	log_warn("upgrade", "pid=%d sockets=%zu reason=\"the running process ended\" action=\"this one serves\"", (int)t->pid,
		 set->n);
	close(t->fd);
	t->fd = -1;
	return 0;
}

static int refused(const struct upgrade_message *m, char *why, size_t n)
{
	snprintf(why, n, "the running process %u goes on: %s", m->pid, m->text[0] ? m->text : "it refused");
	return -ECONNREFUSED;
}

static int wait_failed(int r, const struct takeover *t, bool offered, char *why, size_t n)
{
	switch (r) {
	case -ETIMEDOUT:
		if (!offered)
			snprintf(why, n, "process %d was not asked to hand over within %u s: kill -QUIT %d, then start with -u again",
				 (int)t->pid, UPGRADE_WAIT_MS / 1000, (int)t->pid);
		else
			snprintf(why, n, "process %d began to hand over and did not end it", (int)t->pid);
		break;
	case -ECANCELED:
		snprintf(why, n, "stopped by a signal before process %d handed over", (int)t->pid);
		break;
	case -EPROTO:
		snprintf(why, n, "what process %d says is not understood; is it another version or another program?", (int)t->pid);
		break;
	case -EMFILE:
		snprintf(why, n, "too few file descriptors for the sockets of process %d: raise the limit on open files", (int)t->pid);
		break;
	default:
		snprintf(why, n, "%s", strerror(-r));
	}
	return r;
}

/* Reads until everything is here. */
static int receive_offer(struct takeover *t, int cancel_fd, struct handed *set, char *why, size_t n)
{
	uint64_t deadline = now_ns() + UPGRADE_WAIT_MS * NS_PER_MS;
	struct upgrade_message m;
	bool offered = false;

	for (;;) {
		int r = wait_message(t, deadline, cancel_fd, &m, set);

		if (r == GONE)
			return go_alone(t, set, why, n);
		if (r < 0)
			return wait_failed(r, t, offered, why, n);
		if (m.pid)
			t->pid = (pid_t)m.pid;
		switch (m.type) {
		case UPGRADE_WAIT:
			log_info("upgrade_waiting", "pid=%d reason=\"%s; waiting up to %u s for: kill -QUIT %d\"", (int)t->pid,
				 m.text, UPGRADE_WAIT_MS / 1000, (int)t->pid);
			if (isatty(STDERR_FILENO))
				fprintf(stderr, "sluice: %s; waiting up to %u s for: kill -QUIT %d\n", m.text,
					UPGRADE_WAIT_MS / 1000, (int)t->pid);
			break;
		case UPGRADE_SOCKETS:
			offered = true;
			deadline = now_ns() + UPGRADE_START_MS * NS_PER_MS;
			break;
		case UPGRADE_OFFERED:
			if (m.count != set->n)
				return fail(why, n, -EPROTO, "sockets were lost on the way");
			log_info("upgrade_adopting", "pid=%d program=%s sockets=%zu", (int)t->pid, m.program, set->n);
			return 0;
		case UPGRADE_REFUSED:
			return refused(&m, why, n);
		default:
			break; /* of a later version */
		}
	}
}

int takeover_begin(struct takeover **out, const char *path, int cancel_fd, struct handed *set, char *why, size_t n)
{
	struct upgrade_message hello = { .type = UPGRADE_HELLO, .pid = (uint32_t)getpid(), .program = SLUICE_VERSION };
	struct takeover *t = calloc(1, sizeof(*t));
	size_t before = set->n;
	int r = 0;

	*out = NULL;
	if (!t)
		return fail(why, n, -ENOMEM, "out of memory");
	t->fd = passed_socket();
	t->path = t->fd < 0 ? path : NULL;
	if (t->fd < 0)
		r = connect_to(t, path, why, n);
	if (r == 0 && (r = upgrade_send(t->fd, &hello, NULL, 0)) < 0 && r != -EPIPE)
		fail(why, n, r, strerror(-r));
	if (r == -EPIPE) /* a refusal may be there to read */
		r = 0;
	fault_exit(FAULT_EXIT_HELLO);
	if (r == 0) {
		struct handed got = HANDED_INIT;

		r = receive_offer(t, cancel_fd, &got, why, n);
		for (size_t i = 0; r == 0 && i < got.n; i++) {
			r = handed_add(set, got.v[i].fd, got.v[i].kind, got.v[i].flags, got.v[i].name);
			if (r == 0)
				got.v[i].fd = -1;
		}
		handed_deinit(&got);
	}
	if (r < 0) {
		takeover_failed(&t, why);
		return r;
	}
	log_debug("upgrade_sockets", "from_manager=%zu in_all=%zu", before, set->n);
	fault_exit(FAULT_EXIT_ADOPT);
	*out = t;
	return 0;
}

bool takeover_alone(const struct takeover *t)
{
	return t->fd < 0;
}

pid_t takeover_pid(const struct takeover *t)
{
	return t->pid;
}

int takeover_ready(struct takeover *t, int cancel_fd, char *why, size_t n)
{
	struct upgrade_message m = { .type = UPGRADE_READY, .pid = (uint32_t)getpid() };
	uint64_t deadline = now_ns() + UPGRADE_START_MS * NS_PER_MS;
	struct handed none = HANDED_INIT;
	int r;

	if (t->fd < 0)
		return 0;
	fault_exit(FAULT_EXIT_READY);
	r = upgrade_send(t->fd, &m, NULL, 0);
	if (r == -EPIPE || r == -ECONNRESET)
		r = 0; /* what it said last, or its end, is to be read */
	while (r == 0) {
		r = wait_message(t, deadline, cancel_fd, &m, NULL);
		if (r == GONE)
			return go_alone(t, &none, why, n);
		if (r < 0)
			break;
		if (m.type == UPGRADE_REFUSED)
			return refused(&m, why, n);
		if (m.type == UPGRADE_GO) {
			fault_exit(FAULT_EXIT_GO);
			return 0;
		}
	}
	return wait_failed(r, t, true, why, n);
}

void takeover_serving(struct takeover **pt)
{
	struct takeover *t = *pt;
	struct upgrade_message m = { .type = UPGRADE_SERVING, .pid = (uint32_t)getpid() };

	*pt = NULL;
	if (t->fd >= 0) {
		fault_exit(FAULT_EXIT_SERVING);
		if (upgrade_send(t->fd, &m, NULL, 0) < 0)
			log_warn("upgrade", "pid=%d reason=\"the process before us is gone\"", (int)t->pid);
		close(t->fd);
	}
	free(t);
}

void takeover_failed(struct takeover **pt, const char *why)
{
	struct takeover *t = *pt;
	struct upgrade_message m = { .type = UPGRADE_FAILED, .pid = (uint32_t)getpid() };

	*pt = NULL;
	if (!t)
		return;
	if (t->fd >= 0) {
		snprintf(m.text, sizeof(m.text), "%.*s", (int)sizeof(m.text) - 1, why);
		upgrade_send(t->fd, &m, NULL, 0);
		close(t->fd);
	}
	free(t);
}
