/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session does between a complete request head and the end of its
 * response. For session.c and its neighbours only.
 */
#pragma once
#include "proxy/session.h"

/* The head in worker->head is complete: routes it and gets ready to pick a backend, or answers it. */
void exchange_begin(struct session *s);
/* The bytes in s->in are not a request. */
void exchange_refuse(struct session *s, const struct http_verdict *v);

/* Steps of their states; true when the session's state may have moved. */
bool exchange_pick(struct session *s);
bool exchange_connect(struct session *s);
bool exchange_step(struct session *s);
bool exchange_tunnel(struct session *s);
bool exchange_reply(struct session *s);

/*
 * Answers with a status of our own where that is still possible, otherwise
 * cuts the connection visibly. detail: static text.
 */
void exchange_fail(struct session *s, int status, enum session_end why, const char *detail);
/* Ends the exchange and the connection now; a response under way is cut. */
void exchange_abort(struct session *s, enum session_end why);
void exchange_timeout_connect(struct session *s);
/* Frees an exchange kept for reuse. */
void exchange_free(struct exchange *x);

/* session.c, for the others */
void session_go(struct session *s, enum session_state next);
void session_close(struct session *s, bool abort);
/* All is sent: ends the client's connection. unread: the client may still be sending. */
void session_end_connection(struct session *s, bool unread);
void session_run_again(struct session *s);

/* session_time.c */
void session_timer(struct timer *t);
void session_arm_timer(struct session *s);

/* access_log.c */
void access_log_write(struct session *s, const struct exchange *x);
