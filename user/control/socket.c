/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket: one line of words, one answer, close. The first line of
 * the answer is "ok", or "error: " and why; text follows. It is made to be
 * used by hand too: echo status | nc -U /run/sluice/admin.sock
 */
#include <stdio.h>
#include <sys/socket.h>

#include "control/control_inner.h"

#define LINE_MAX_BYTES 1024u

static int socket_answer(struct peer *p)
{
	const char *nl = memchr(buf_data(&p->in), '\n', p->in.len);
	struct str line = buf_str(&p->in);
	struct ucred cred = { .pid = 0, .uid = (uid_t)-1 };
	socklen_t n = sizeof(cred);
	char who[64];
	int r;

	p->keep = false;
	if (!nl) {
		if (line.n < LINE_MAX_BYTES)
			return 1;
		buf_deinit(&p->in);
		return buf_printf(&p->out, "error: the line is longer than %u bytes\n", LINE_MAX_BYTES);
	}
	line.n = (size_t)(nl - line.p);
	if (line.n && line.p[line.n - 1] == '\r')
		line.n--;
	getsockopt(p->conn.watch.fd, SOL_SOCKET, SO_PEERCRED, &cred, &n);
	snprintf(who, sizeof(who), "uid=%ld pid=%ld", (long)cred.uid, (long)cred.pid);
	r = verb_run(p->door->owner, line, who, &p->out);
	buf_deinit(&p->in);
	return r;
}

const struct door_service socket_service = {
	.name = "socket",
	.peers_max = 16,
	.request_max = LINE_MAX_BYTES + 1,
	.answer = socket_answer,
};
