/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of this room share. Nobody outside includes it.
 */
#pragma once
#include <sys/stat.h>
#include "control/control.h"
#include "control/door.h"
#include "control/view.h"

/* A listening socket and what it was made for. */
struct bound {
	int fd; /* -1: none */
	char wanted[SOCK_TEXT_MAX]; /* as configured; "" for none */
	char text[SOCK_TEXT_MAX];   /* as bound */
	dev_t dev;		    /* of a socket file; ino 0: not a file, or not ours to remove */
	ino_t ino;
};

struct control {
	struct bound http, socket;
	struct door http_door, socket_door; /* listen on the above once started */
	struct control_hooks hooks;
	struct loop *loop; /* NULL: not started */
	struct proxy *proxy;
	uint64_t started_ns, started_mono_ns; /* CLOCK_REALTIME, CLOCK_MONOTONIC */
	uint64_t reloads, reloads_failed, reload_ns;
	bool reload_failed;
};

extern const struct door_service http_service;	 /* http.c; door.owner is the control */
extern const struct door_service socket_service; /* socket.c; likewise */

/*
 * Runs one request line of the control socket. The whole answer, first line
 * included, is appended to out. who: the caller, for the log. 0 or -ENOMEM.
 */
int verb_run(struct control *c, struct str line, const char *who, struct buf *out);

/* page.c: the page for people. */
struct str page_html(void);
