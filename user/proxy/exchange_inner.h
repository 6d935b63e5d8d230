/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the exchange*.c files and nobody else. */
#pragma once
#include "proxy/exchange.h"

static inline bool exchange_has_body(const struct exchange *x)
{
	return !(x->framing == HTTP_BODY_NONE || (x->framing == HTTP_BODY_LENGTH && x->length == 0));
}

/* A flow has news: runs the session. body.wake. */
void exchange_wake(struct body *b);
/* Ends both bodies and the upstream connection. */
void exchange_drop_upstream(struct session *s, bool abort);
/* The response is through: accounts, keeps or closes the connections, goes on to the next request. */
void exchange_complete(struct session *s);
void exchange_client_ip(const struct session *s, char out[static SOCK_TEXT_MAX]);
/*
 * The backend in x->up failed before a byte of a response: tries again where
 * that is safe and allowed (true), otherwise answers (false). on: which
 * conf_retry_on this failure is.
 */
bool exchange_retry(struct session *s, enum conf_retry_on on, int status, enum session_end why, const char *detail);
