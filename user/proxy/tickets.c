/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/tickets.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bool keys_read(struct tls_ticket_keys *k, int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_size == sizeof(k->bytes) &&
	       pread(fd, k->bytes, sizeof(k->bytes), 0) == sizeof(k->bytes);
}

static int keys_file(const struct tls_ticket_keys *k)
{
	int fd = memfd_create("sluice-tickets", MFD_CLOEXEC);

	if (fd >= 0 && pwrite(fd, k->bytes, sizeof(k->bytes), 0) != sizeof(k->bytes)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int tickets_init(struct tickets *t, struct handed *handed)
{
	int r;

	t->fd = handed ? handed_take(handed, HANDED_TICKETS, NULL) : -1;
	if (t->fd >= 0 && keys_read(&t->keys, t->fd))
		return 0;
	tickets_deinit(t);
	r = tls_ticket_keys_init(&t->keys);
	if (r == 0)
		t->fd = keys_file(&t->keys);
	return r;
}

int tickets_collect(const struct tickets *t, struct handed *set)
{
	return t->fd >= 0 ? handed_add(set, t->fd, HANDED_TICKETS, 0, "") : 0;
}

void tickets_deinit(struct tickets *t)
{
	if (t->fd >= 0)
		close(t->fd);
	explicit_bzero(&t->keys, sizeof(t->keys));
	t->fd = -1;
}
