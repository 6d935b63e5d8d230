/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The side of an upgrade that serves and will go: it listens on upgrade_sock,
 * and hands over when it was asked to (SIGQUIT, or the operator's verb) and a
 * new process has come, in either order. The other side is control/takeover.h,
 * what they say is in control/upgrade_wire.h.
 *
 *   state      a new process ...
 *   ALONE      is not there
 *   GREETED    has connected and not said who it is
 *   WAITING    waits for us to be asked
 *   OFFERING   is being given sockets
 *   STARTING   has all, prepares itself
 *   COMMITTED  was told to go ahead; until it says that it serves, we serve too
 *   DONE       serves
 *
 * Whatever goes wrong before DONE leads back to ALONE: this process goes on
 * serving, says why, and can be asked again. Everything is called on the main
 * thread.
 */
#pragma once
#include <sys/types.h>
#include "base/buf.h"
#include "io/handed.h"
#include "io/loop.h"

#define UPGRADE_ASKED_MS 30000u	 /* from being asked until a new process must have come */
#define UPGRADE_START_MS 60000u	 /* for it to get ready */
#define UPGRADE_WAIT_MS 10000u	 /* a new process waits for the running one to be asked */

struct upgrade;
struct upgrade_child;

struct upgrade_hooks {
	/* Adds what is to be handed over to set, as borrowed descriptors. 0 or -ENOMEM. */
	int (*collect)(void *ctx, struct handed *set);
	/* The new process is ready; what it shall know last can be written down. */
	void (*ready)(void *ctx);
	/* Another process serves: stop accepting and drain. Called once, nothing follows. */
	void (*handed_over)(void *ctx, pid_t pid);
	/* A new process began and did not come up; what it may have replaced outside (pins, pid file) can be put right. */
	void (*failed)(void *ctx);
	void *ctx;
	uint32_t start_ms; /* tests only, in place of UPGRADE_START_MS; 0: as it is */
};

/*
 * path NULL: no socket, only upgrade_spawn works. fd >= 0: the socket of the
 * process before us, used if it is bound to path; owned from here on, also on
 * failure. The file has mode 0600. 0, or -errno with a text.
 */
int upgrade_new(struct upgrade **out, const char *path, int fd, char *err, size_t errlen);
/* Serves from now on; hooks are copied. 0 or -errno. */
int upgrade_start(struct upgrade *u, struct loop *loop, const struct upgrade_hooks *hooks);

/*
 * Somebody wants us to hand over. Appends a text for them. 0: begun, or waiting
 * for a new process; -errno: refused, and all is as it was.
 */
int upgrade_ask(struct upgrade *u, struct buf *answer);
/* The same, and the new process is the child, which we start (control/upgrade_spawn.h). 0: begun. */
int upgrade_spawn(struct upgrade *u, struct upgrade_child *child, bool keep_output, struct buf *answer);

/* A new process has been given sockets and is not there yet: nothing may change under it. */
bool upgrade_busy(const struct upgrade *u);
/* It has the last word already: what it is told to go ahead with can not be taken back. */
bool upgrade_committed(const struct upgrade *u);
/* The file of the socket is another process's from here on. */
void upgrade_disown(struct upgrade *u);
/* Ends an upgrade under way (the other side is told), removes the socket's file if it is ours, frees. *u becomes NULL. */
void upgrade_stop(struct upgrade **u);
