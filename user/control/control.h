/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control room: what an operator sees and does. Two doors, both served by
 * the main thread's loop and never blocking it:
 *
 *   admin HTTP      GET and HEAD of /metrics /status /healthz and / ; reads only
 *   control socket  one request line, one answer, close; reads and changes.
 *                   Unix socket, mode 0600: who may open it may do everything.
 *
 * Life: control_open (privileged, nothing is served yet) -> control_start
 * (main loop runs, proxy is started) -> control_stop, before proxy_stop.
 * Everything here is called from the main thread.
 */
#pragma once
#include "base/buf.h"
#include "conf/conf.h"
#include "io/loop.h"
#include "proxy/proxy.h"

struct control;

/*
 * Verbs that main owns. Each appends text for the operator to answer (no
 * trailing newline needed) whatever comes of it. 0: done, or begun where it
 * takes time; negative -errno: refused, and all is as it was. A NULL function:
 * the verb answers "not available". They run inside a callback of the main
 * loop: do not call control_stop from them, use loop_later.
 */
struct control_hooks {
	int (*reload)(void *ctx, struct buf *answer);
	int (*upgrade)(void *ctx, struct buf *answer);
	void *ctx;
};

/*
 * Binds what conf.admin names; neither named is fine too. A stale control
 * socket is replaced, one that answers is not (-EADDRINUSE). 0, or -errno with
 * a text in err that names the address and what could be done.
 */
int control_open(struct control **out, const struct conf *conf, char *err, size_t errlen);
/*
 * The same for a process that takes over: listening sockets of the old process
 * (-1: none) are used where they are bound to what conf names, otherwise
 * closed. Owns both descriptors from here on, also on failure.
 */
int control_open_inherited(struct control **out, const struct conf *conf, int http_fd, int socket_fd, char *err,
			   size_t errlen);
/* The listening sockets, to be handed to a process that takes over; -1: none. They stay the control's. */
int control_http_fd(const struct control *c);
int control_socket_fd(const struct control *c);

/* Before control_start; copied. Without hooks their verbs are "not available". */
void control_set_hooks(struct control *c, const struct control_hooks *hooks);
/* Serves from now on. p must be started and outlive c. 0 or -errno. */
int control_start(struct control *c, struct loop *main_loop, struct proxy *p);
/*
 * Goes over to the addresses of another snapshot: what is new is bound before
 * anything old is let go. Answers under way are finished. 0, or -errno with a
 * text and all is as before.
 */
int control_reload(struct control *c, const struct conf *conf, char *err, size_t errlen);
/* For /metrics and /status: how the last reload went (by signal or by verb). */
void control_note_reload(struct control *c, bool ok);
/*
 * Another process serves both doors now: stops accepting, leaves the socket
 * file alone. Answers under way are finished; control_stop is still due.
 */
void control_hand_over(struct control *c);
/* Closes everything, removes the socket file if it is still ours, frees. *c becomes NULL; NULL is fine. */
void control_stop(struct control **c);

/* The address admin HTTP is bound to, the kernel's choice of port filled in; "" when there is none. */
const char *control_http_text(const struct control *c);
