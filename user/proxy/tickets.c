/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/tickets.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int tickets_init(struct tickets *t, struct handed *handed)
{
	unsigned char state[TLS_TICKETS_STATE];
	int fd = handed ? handed_take(handed, HANDED_TICKETS, NULL) : -1, r;
	struct stat st;
	ssize_t n = 0;

	if (fd >= 0) {
		if (fstat(fd, &st) == 0 && st.st_size == sizeof(state))
			n = pread(fd, state, sizeof(state), 0);
		close(fd);
	}
	r = tls_tickets_new(&t->keys, state, n > 0 ? (size_t)n : 0);
	explicit_bzero(state, sizeof(state));
	t->fd = r == 0 ? memfd_create("sluice-tickets", MFD_CLOEXEC) : -1;
	return r;
}

int tickets_collect(const struct tickets *t, struct handed *set)
{
	unsigned char state[TLS_TICKETS_STATE];
	bool ok;

	if (t->fd < 0)
		return 0;
	tls_tickets_save(t->keys, state);
	ok = pwrite(t->fd, state, sizeof(state), 0) == sizeof(state);
	explicit_bzero(state, sizeof(state));
	return ok ? handed_add(set, t->fd, HANDED_TICKETS, 0, "") : 0;
}

void tickets_deinit(struct tickets *t)
{
	if (t->fd >= 0)
		close(t->fd);
	t->fd = -1;
	tls_tickets_unref(t->keys);
	t->keys = NULL;
}
