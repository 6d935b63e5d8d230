/* SPDX-License-Identifier: Apache-2.0 */
#include "control/upgrade.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "control/upgrade_spawn.h"
#include "control/upgrade_wire.h"

#define HELLO_MS 10000u

enum upgrade_state { ALONE, GREETED, WAITING, OFFERING, STARTING, COMMITTED, DONE, _STATES };

static const char *const state_names[_STATES] = {
	[ALONE] = "alone",	 [GREETED] = "greeted",	    [WAITING] = "waiting", [OFFERING] = "offering",
	[STARTING] = "starting", [COMMITTED] = "committed", [DONE] = "done",
};

/* How long a state may last, ms; 0: the other side decides. */
static const uint32_t state_limit[_STATES] = {
	[GREETED] = HELLO_MS,
	[WAITING] = UPGRADE_WAIT_MS + HELLO_MS,
	[OFFERING] = UPGRADE_START_MS,
	[STARTING] = UPGRADE_START_MS,
};

struct upgrade {
	enum upgrade_state state;
	struct loop *loop; /* NULL: not started */
	struct upgrade_hooks hooks;
	char path[HANDED_NAME_MAX]; /* "": no socket */
	bool owns_path;
	struct watch listen, peer;
	struct timer limit, asked_limit; /* asked_limit is set while we have been asked and nobody has come */
	bool asked, spawned; /* spawned: the new process is the child, nobody else will come for it */
	struct upgrade_child *child;
	pid_t pid; /* of the new process, as it says */
	struct handed set; /* borrowed */
	size_t sent;
};

static void upgrade_advance(struct upgrade *u);

static uint32_t limit_of(const struct upgrade *u, enum upgrade_state s)
{
	return state_limit[s] == UPGRADE_START_MS && u->hooks.start_ms ? u->hooks.start_ms : state_limit[s];
}

static void go(struct upgrade *u, enum upgrade_state next)
{
	log_debug("upgrade_state", "from=%s to=%s pid=%d", state_names[u->state], state_names[next], (int)u->pid);
	u->state = next;
	if (limit_of(u, next))
		timer_set(u->loop, &u->limit, loop_now_fresh(u->loop) + limit_of(u, next) * NS_PER_MS);
	else
		timer_off(&u->limit);
}

static void drop_peer(struct upgrade *u)
{
	if (u->peer.fd < 0)
		return;
	loop_del(u->loop, &u->peer);
	close(u->peer.fd);
	u->peer.fd = -1;
	handed_forget(&u->set);
	u->sent = 0;
}

/* Back to serving alone. told: what the other side hears, NULL when it has gone. */
static void give_up(struct upgrade *u, const char *why, const char *told)
{
	bool begun = u->state >= OFFERING;
	struct upgrade_message m = { .type = UPGRADE_REFUSED, .pid = (uint32_t)getpid() };
	char quoted[640];

	if (told && u->peer.fd >= 0) {
		snprintf(m.text, sizeof(m.text), "%s", told);
		upgrade_send(u->peer.fd, &m, NULL, 0);
	}
	drop_peer(u);
	log_at(begun ? LOG_LEVEL_ERROR : LOG_LEVEL_WARN, "upgrade_failed",
	       "pid=%d state=%s action=\"this process goes on serving\" reason=%s", (int)u->pid, state_names[u->state],
	       log_quote(quoted, sizeof(quoted), str_from(why)));
	go(u, ALONE);
	if (begun || u->spawned) {
		u->asked = u->spawned = false;
		timer_off(&u->asked_limit);
	}
	if (begun)
		u->hooks.failed(u->hooks.ctx);
}

static void limit_over(struct timer *t)
{
	struct upgrade *u = container_of(t, struct upgrade, limit);
	char why[160];

	snprintf(why, sizeof(why), "nothing came within %u s", limit_of(u, u->state) / 1000);
	if (u->spawned)
		upgrade_child_kill(u->child);
	give_up(u, why, u->state == STARTING ? "not ready in time" : "it took too long");
}

static void asked_over(struct timer *t)
{
	struct upgrade *u = container_of(t, struct upgrade, asked_limit);

	u->asked = false;
	if (u->state == ALONE)
		log_warn("upgrade_failed",
			 "action=\"this process goes on serving\" reason=\"no new process came within %u s: start one with -u\"",
			 UPGRADE_ASKED_MS / 1000);
}

/* ---- what is sent ---- */

static int send_simple(struct upgrade *u, enum upgrade_message_type type, const char *text)
{
	struct upgrade_message m = { .type = (uint16_t)type, .pid = (uint32_t)getpid() };

	snprintf(m.text, sizeof(m.text), "%s", text);
	snprintf(m.program, sizeof(m.program), "%s", SLUICE_VERSION);
	return upgrade_send(u->peer.fd, &m, NULL, 0);
}

static void begin_offer(struct upgrade *u)
{
	int r;

	u->asked = false;
	timer_off(&u->asked_limit);
	go(u, OFFERING);
	r = u->hooks.collect(u->hooks.ctx, &u->set);
	if (r == 0 && u->listen.fd >= 0)
		r = handed_add(&u->set, u->listen.fd, HANDED_UPGRADE, HANDED_OWNS_PATH, u->path);
	if (r < 0) {
		give_up(u, "out of memory", "the running process is out of memory");
		return;
	}
	log_info("upgrade_begun", "pid=%d sockets=%zu", (int)u->pid, u->set.n);
	upgrade_advance(u);
}

/* Sends what the socket takes; the rest when it is writable again. */
static void upgrade_advance(struct upgrade *u)
{
	struct upgrade_message m = { .type = UPGRADE_SOCKETS }, end = { .type = UPGRADE_OFFERED };
	int r = 0;

	if (u->state != OFFERING)
		return;
	fault_exit(FAULT_EXIT_OFFER);
	while (u->sent < u->set.n) {
		size_t n = MIN_OF(u->set.n - u->sent, UPGRADE_BATCH);

		r = upgrade_send(u->peer.fd, &m, u->set.v + u->sent, n);
		if (r < 0)
			break;
		u->sent += n;
	}
	if (r == 0) {
		end.count = (uint32_t)u->set.n;
		end.pid = (uint32_t)getpid();
		snprintf(end.program, sizeof(end.program), "%s", SLUICE_VERSION);
		r = upgrade_send(u->peer.fd, &end, NULL, 0);
	}
	if (r == -EAGAIN)
		return;
	if (r < 0) {
		give_up(u, strerror(-r), "the sockets could not be handed over");
		return;
	}
	go(u, STARTING);
	fault_exit(FAULT_EXIT_OFFERED);
}

/* ---- what comes ---- */

static void take_hello(struct upgrade *u, const struct upgrade_message *m)
{
	char text[256];

	u->pid = (pid_t)m->pid;
	if (u->asked) {
		begin_offer(u);
		return;
	}
	go(u, WAITING);
	snprintf(text, sizeof(text), "process %d serves and has not been asked to hand over", (int)getpid());
	log_info("upgrade_waiting", "pid=%d reason=\"a new process is here: SIGQUIT to %d lets it take over\"", (int)u->pid,
		 (int)getpid());
	if (send_simple(u, UPGRADE_WAIT, text) < 0)
		give_up(u, "the new process does not read", NULL);
}

static void take_ready(struct upgrade *u)
{
	int r;

	fault_exit(FAULT_EXIT_COMMIT);
	u->hooks.ready(u->hooks.ctx);
	r = send_simple(u, UPGRADE_GO, "");
	if (r < 0) {
		give_up(u, strerror(-r), NULL);
		return;
	}
	go(u, COMMITTED);
	fault_exit(FAULT_EXIT_COMMITTED);
}

static void take_serving(struct upgrade *u)
{
	go(u, DONE);
	drop_peer(u);
	if (u->listen.fd >= 0) {
		loop_del(u->loop, &u->listen);
		close(u->listen.fd);
		u->listen.fd = -1;
	}
	u->owns_path = false;
	u->hooks.handed_over(u->hooks.ctx, u->pid);
}

static void take_failed(struct upgrade *u, const struct upgrade_message *m)
{
	give_up(u, m->text[0] ? m->text : "the new process gave up", NULL);
}

/* Which message may come in which state; anything else ends the upgrade. Unknown ones are passed over. */
static void take_message(struct upgrade *u, const struct upgrade_message *m)
{
	switch (m->type) {
	case UPGRADE_HELLO:
		if (u->state == GREETED) {
			take_hello(u, m);
			return;
		}
		break;
	case UPGRADE_READY:
		if (u->state == STARTING) {
			take_ready(u);
			return;
		}
		break;
	case UPGRADE_SERVING:
		if (u->state == COMMITTED) {
			take_serving(u);
			return;
		}
		break;
	case UPGRADE_FAILED:
		take_failed(u, m);
		return;
	default:
		return;
	}
	give_up(u, "the new process does not keep to the order of messages", "out of order");
}

static void peer_event(struct watch *w, _unused_ uint32_t events)
{
	struct upgrade *u = container_of(w, struct upgrade, peer);
	struct upgrade_message m;

	while (u->peer.fd >= 0) {
		int r = upgrade_receive(u->peer.fd, &m, NULL);

		if (r == -EAGAIN)
			break;
		if (r == 0) {
			take_message(u, &m);
		} else if (r == 1) {
			give_up(u, u->state <= WAITING ? "the new process went away" : "the new process ended before it served",
				NULL);
		} else {
			give_up(u, r == -EPROTO ? "what came is not this protocol" : strerror(-r), "not understood");
		}
	}
	if (u->peer.fd >= 0)
		upgrade_advance(u);
}

static int watch_peer(struct upgrade *u, int fd)
{
	int r;

	u->peer = (struct watch){ .fd = fd, .cb = peer_event };
	r = loop_add(u->loop, &u->peer, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
	if (r < 0) {
		u->peer.fd = -1;
		close(fd);
		return r;
	}
	u->pid = 0;
	go(u, GREETED);
	/* So that the other side can tell our end from that of a connection, whenever it comes. */
	(void)send_simple(u, UPGRADE_HERE, "");
	return 0;
}

static void refuse(int fd, const char *text)
{
	struct upgrade_message m = { .type = UPGRADE_REFUSED, .pid = (uint32_t)getpid() };

	snprintf(m.text, sizeof(m.text), "%s", text);
	upgrade_send(fd, &m, NULL, 0);
	close(fd);
}

static void listen_event(struct watch *w, _unused_ uint32_t events)
{
	struct upgrade *u = container_of(w, struct upgrade, listen);
	unsigned uid;
	int fd;

	while (u->listen.fd >= 0 && (fd = accept4(u->listen.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
		if (upgrade_peer_check(fd, &uid) < 0) {
			log_warn("upgrade_refused", "uid=%u reason=\"only root and our own user may take over\"", uid);
			refuse(fd, "only root and the user of the running process may take over");
		} else if (u->state != ALONE) {
			char text[160];

			snprintf(text, sizeof(text), "another upgrade is under way (to process %d)", (int)u->pid);
			log_warn("upgrade_refused", "pid=%d reason=\"another upgrade is under way\"", (int)u->pid);
			refuse(fd, text);
		} else {
			watch_peer(u, fd);
		}
	}
}

/* ---- being asked ---- */

int upgrade_ask(struct upgrade *u, struct buf *answer)
{
	if (!u->path[0]) {
		buf_printf(answer, "upgrade_sock is not set in the configuration, so no new process can come");
		return -EINVAL;
	}
	switch (u->state) {
	case ALONE:
	case GREETED:
		u->asked = true;
		timer_set(u->loop, &u->asked_limit, loop_now_fresh(u->loop) + UPGRADE_ASKED_MS * NS_PER_MS);
		log_info("upgrade_asked", "reason=\"waiting up to %u s for a new process (-u)\"", UPGRADE_ASKED_MS / 1000);
		buf_printf(answer, "waiting up to %u s for a new process: sluice -u", UPGRADE_ASKED_MS / 1000);
		return 0;
	case WAITING:
		buf_printf(answer, "handing over to process %d", (int)u->pid);
		begin_offer(u);
		return 0;
	default:
		buf_printf(answer, "an upgrade to process %d is under way", (int)u->pid);
		log_warn("upgrade_refused", "pid=%d reason=\"another upgrade is under way\"", (int)u->pid);
		return -EALREADY;
	}
}

int upgrade_spawn(struct upgrade *u, struct upgrade_child *child, bool keep_output, struct buf *answer)
{
	const char *exe = child->argv[0];
	int fd, r;

	if (u->state != ALONE) {
		buf_printf(answer, "an upgrade to process %d is under way", (int)u->pid);
		return -EALREADY;
	}
	r = upgrade_child_start(child, u->loop, keep_output, &fd);
	if (r == -ESRCH) {
		buf_printf(answer, "the process that kept root for this has gone; as root: kill -QUIT %d, then start %s with -u",
			   (int)getpid(), exe);
		return r;
	}
	if (r < 0) {
		buf_printf(answer, "%s can not be started: %s", exe, strerror(-r));
		return r;
	}
	r = watch_peer(u, fd);
	if (r < 0) {
		buf_printf(answer, "%s", strerror(-r));
		return r;
	}
	u->asked = u->spawned = true;
	u->child = child;
	log_info("upgrade_asked", "path=%s%s", exe, child->starter ? " by=starter" : "");
	buf_printf(answer, "started %s; this process (%d) serves until that one is ready", exe, (int)getpid());
	return 0;
}

bool upgrade_busy(const struct upgrade *u)
{
	return u && u->state >= OFFERING && u->state < DONE;
}

bool upgrade_committed(const struct upgrade *u)
{
	return u && u->state >= COMMITTED;
}

/* ---- life ---- */

static int open_socket(const char *path, char *err, size_t errlen)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct stat st;
	mode_t mask;
	int fd, r = 0;

	if (strlen(path) >= sizeof(un.sun_path)) {
		snprintf(err, errlen, "upgrade_sock %s: longer than a socket's path can be", path);
		return -ENAMETOOLONG;
	}
	snprintf(un.sun_path, sizeof(un.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* A file that nobody answers on was left by a process that was killed. */
	if (lstat(path, &st) == 0) {
		if (!S_ISSOCK(st.st_mode)) {
			snprintf(err, errlen, "upgrade_sock %s: a file that is no socket is in the way", path);
			close(fd);
			return -EEXIST;
		}
		if (connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0 || errno != ECONNREFUSED) {
			snprintf(err, errlen,
				 "upgrade_sock %s: a running process answers there; take over from it with -u, or choose another path",
				 path);
			close(fd);
			return -EADDRINUSE;
		}
		unlink(path);
	}
	mask = umask(0177);
	if (bind(fd, (struct sockaddr *)&un, sizeof(un)) < 0 || listen(fd, 8) < 0)
		r = -errno;
	umask(mask);
	if (r < 0) {
		snprintf(err, errlen, "upgrade_sock %s: %s", path, strerror(-r));
		close(fd);
		return r;
	}
	return fd;
}

int upgrade_new(struct upgrade **out, const char *path, int fd, char *err, size_t errlen)
{
	struct upgrade *u = calloc(1, sizeof(*u));
	struct sock_addr has;

	*out = NULL;
	if (!u) {
		if (fd >= 0)
			close(fd);
		snprintf(err, errlen, "out of memory");
		return -ENOMEM;
	}
	u->listen.fd = u->peer.fd = -1;
	timer_init(&u->limit, limit_over);
	timer_init(&u->asked_limit, asked_over);
	if (fd >= 0 && (!path || sock_local(fd, &has) < 0 || strcmp(has.un.sun_path, path) != 0)) {
		close(fd);
		fd = -1;
	}
	if (path) {
		if (fd < 0)
			fd = open_socket(path, err, errlen);
		if (fd < 0) {
			free(u);
			return fd;
		}
		snprintf(u->path, sizeof(u->path), "%s", path);
		u->owns_path = true;
		u->listen = (struct watch){ .fd = fd, .cb = listen_event };
	}
	*out = u;
	return 0;
}

int upgrade_start(struct upgrade *u, struct loop *loop, const struct upgrade_hooks *hooks)
{
	u->loop = loop;
	u->hooks = *hooks;
	return u->listen.fd >= 0 ? loop_add(loop, &u->listen, EPOLLIN) : 0;
}

void upgrade_disown(struct upgrade *u)
{
	if (u)
		u->owns_path = false;
}

void upgrade_stop(struct upgrade **pu)
{
	struct upgrade *u = *pu;

	*pu = NULL;
	if (!u)
		return;
	if (u->loop) {
		if (u->peer.fd >= 0 && u->state < COMMITTED)
			send_simple(u, UPGRADE_REFUSED, "the running process was told to stop");
		drop_peer(u);
		timer_remove(u->loop, &u->limit);
		timer_remove(u->loop, &u->asked_limit);
		loop_del(u->loop, &u->listen);
	}
	if (u->listen.fd >= 0)
		close(u->listen.fd);
	if (u->owns_path)
		unlink(u->path);
	free(u);
}
