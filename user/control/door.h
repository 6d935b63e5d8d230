/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A door: one listening socket and the peers that came in by it. What the two
 * doors of the control room have in common: accepting, reading a request,
 * writing an answer as the socket takes it, timeouts, a bound on peers. What a
 * request is and what answers it, the service says.
 *
 *   READ --service: answered--> WRITE --all taken, keep--> READ
 *   WRITE --all taken--> LINGER --peer closed, or its time is up--> DEAD
 *   any --error, timeout--> DEAD
 *
 * LINGER: the sending side is closed and what still comes is thrown away;
 * closing at once would make the kernel send RST, and the peer could lose an
 * answer that it has not read yet.
 */
#pragma once
#include "base/buf.h"
#include "base/list.h"
#include "io/conn.h"

#define DOOR_TIMEOUT (10 * NS_PER_S)   /* to send a whole request; to take some of an answer */
#define DOOR_IDLE (60 * NS_PER_S)      /* between requests */
#define DOOR_LINGER (2 * NS_PER_S)
#define DOOR_REQUESTS_MAX 1000u	       /* by one connection; bounds what one wakeup can cost */

enum peer_state { PEER_READ, PEER_WRITE, PEER_LINGER, PEER_DEAD };

struct door;
struct peer {
	struct door *door;
	struct conn conn;
	struct list link;
	struct timer timer;
	struct defer defer;
	struct buf in, out;
	size_t scan;	 /* the service's cursor in `in`; 0 for a new request */
	unsigned served; /* requests answered */
	enum peer_state state;
	bool keep; /* another request may follow */
};

struct door_service {
	const char *name;
	unsigned peers_max;
	size_t request_max; /* bytes of p->in; the service must decide before it is full */
	/*
	 * Looks at p->in. 0: it took a request out of it, the answer is in p->out
	 * and p->keep says whether another may follow; 1: the request is not
	 * complete; negative: the connection is dropped.
	 */
	int (*answer)(struct peer *p);
};

struct door {
	struct loop *loop; /* NULL: not started */
	const struct door_service *service;
	void *owner; /* for the service */
	struct watch listen;
	struct timer retry; /* accept again, after the descriptors ran out */
	struct list peers;
	unsigned n;
};

void door_init(struct door *d, const struct door_service *service, void *owner);
/* Accepts on fd from now on, in place of what it listened on before (closed). fd is owned from here on; -1: none. 0 or -errno. */
int door_listen(struct door *d, struct loop *l, int fd);
/* Closes everything. */
void door_deinit(struct door *d);
