/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's connection and the requests that come over it, one after the
 * other. The states are in session_state.def, the ways a request can end in
 * session_end.def; one loop (session_run) drives both.
 *
 * A session that waits for its next request owns no buffer and no exchange.
 * Everything a request needs is in its exchange, which is taken when its head
 * is complete and given back when its response was sent.
 */
#pragma once
#include "base/buf.h"
#include "base/list.h"
#include "io/conn.h"
#include "io/sock.h"
#include "lb/upstream.h"
#include "proxy/body.h"
#include "proxy/upconn.h"

struct listener;

enum session_state {
#define X(name, text) SESSION_##name,
#include "proxy/session_state.def"
#undef X
	_SESSION_STATE_MAX,
};

enum session_end {
#define X(name, is_error, text) END_##name,
#include "proxy/session_end.def"
#undef X
	_END_MAX,
};

enum response_state {
	RESPONSE_HEAD,	  /* nothing final from the backend yet */
	RESPONSE_BODY,	  /* its head is on the way to the client */
	RESPONSE_DONE,	  /* sent */
	RESPONSE_OWN,	  /* the proxy answers itself */
};

/* One request and its response. */
struct exchange {
	struct exchange *next_free;
	struct worker_site *site; /* one reference: the configuration it began with */
	const struct conf_listener *listener;
	const struct conf_upstream *upstream; /* NULL until routed */

	struct buf raw; /* the request's head as received; the views below point into it */
	struct str method, target, host;
	struct str key; /* for hashing balancers */
	enum http_method method_id;
	uint8_t client_minor;
	bool keep_alive, idempotent;
	struct str upgrade; /* what was offered to the backend; empty: nothing */
	bool last; /* the client's connection ends after this response */
	enum http_framing framing;
	uint64_t length;

	struct buf head; /* to send upstream; kept for a retry */
	struct body request;
	bool request_done;

	struct buf out; /* response heads and answers of our own, to the client */
	struct body response;
	enum response_state response_state;
	bool answered;	      /* a final response head was given to the client */
	bool request_dead;    /* the backend takes no more of the request */
	bool up_keep_alive;   /* the backend will take another request on this connection */
	bool tunnel_down_done;
	uint32_t interim;     /* 1xx responses seen */

	struct upconn *up;
	struct upstream_tried tried;
	bool avoids_last; /* the last of them is only the second choice */
	uint32_t attempts;
	bool reused;   /* up came from the pool */
	size_t scan;   /* cursor in the response head */
	bool fresh_only; /* take no idle connection any more */
	int last_status; /* what to answer when there is nobody left to try */
	enum session_end last_end;
	char backend_text[CONF_ADDRESS_MAX + 1];

	int status;
	enum session_end end;
	const char *detail; /* more about the end; static text */
	char detail_text[160];

	/* ns; 0: did not happen */
	uint64_t t_start, t_head, t_upstream, t_connected, t_sent, t_response, t_end;

	/* Rates and stalls: see session_time.c */
	uint64_t request_mark, request_mark_ns;
	uint64_t client_mark, client_mark_ns;
	unsigned client_slow; /* windows in a row in which the client took too little */
	uint64_t up_mark, up_mark_ns;
};

struct session {
	enum session_state state;
	struct worker *worker;
	struct listener *listener;
	struct list link; /* worker->sessions */
	struct conn client;
	struct buf in; /* read from the client and not yet used */
	size_t scan;
	struct timer timer;
	struct task again;
	bool again_queued, running, rerun;
	bool shut_pending, lingers; /* LINGER: close_notify is still to be sent; there is something to wait for after it */
	struct defer reap;
	struct flow_sock flow;
	struct exchange *x; /* NULL between requests */
	uint64_t since;	    /* when the state began; HEAD: when its first byte came */
	uint32_t requests;
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} peer;
};

/* Takes over an accepted socket. 0 or -errno (closed). */
int session_new(struct worker *w, struct listener *l, int fd, const struct sock_addr *peer);
/* Something happened to one of its connections. */
void session_event(struct session *s);
/* Ends it now; a response under way is cut visibly. */
void session_kill(struct session *s, enum session_end why);
/* The worker drains and wants idle sessions gone: ends it if it waits for a request and none has arrived. */
void session_drain(struct session *s);

/*
 * Ends the session that has been without a request for longest, of those where
 * none is on its way, to make room for another. False: there is none.
 */
bool session_end_idle(struct worker *w);

const char *session_end_name(enum session_end e);
bool session_end_is_error(enum session_end e);
