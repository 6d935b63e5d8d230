/* SPDX-License-Identifier: Apache-2.0 */
#include "control/upgrade_wire.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"

#define MAGIC 0x63756c73u
#define RIGHTS_MAX 253u /* SCM_MAX_FD */

enum attribute_type {
	ATTRIBUTE_PID = 1,     /* u32 */
	ATTRIBUTE_TEXT = 2,    /* bytes */
	ATTRIBUTE_COUNT = 3,   /* u32: sockets in all */
	ATTRIBUTE_PROGRAM = 4, /* bytes: version of the program */
	ATTRIBUTE_SOCKET = 5,  /* u16 kind, u16 flags, bytes: name; one for each descriptor, in their order */
};

struct wire_header {
	uint32_t magic;
	uint16_t version, type;
};

struct wire_attribute {
	uint16_t type, length;
};

struct wire_socket {
	uint16_t kind, flags;
};

union rights {
	char room[CMSG_SPACE(sizeof(int) * RIGHTS_MAX)];
	struct cmsghdr align;
};

static void put(struct buf *b, enum attribute_type type, const void *head, size_t head_n, const void *p, size_t n)
{
	static const char zero[4];
	struct wire_attribute a = { .type = (uint16_t)type, .length = (uint16_t)(head_n + n) };

	buf_append(b, &a, sizeof(a));
	buf_append(b, head, head_n);
	buf_append(b, p, n);
	buf_append(b, zero, (4 - (head_n + n) % 4) % 4);
}

static int render(struct buf *b, const struct upgrade_message *m, const struct handed_fd *v, size_t n)
{
	struct wire_header h = { .magic = MAGIC, .version = UPGRADE_VERSION, .type = m->type };

	/* One allocation; nothing after it can fail. */
	if (buf_reserve(b, UPGRADE_MESSAGE_MAX) < 0)
		return -ENOMEM;
	buf_append(b, &h, sizeof(h));
	if (m->pid)
		put(b, ATTRIBUTE_PID, NULL, 0, &m->pid, sizeof(m->pid));
	if (m->count)
		put(b, ATTRIBUTE_COUNT, NULL, 0, &m->count, sizeof(m->count));
	if (m->text[0])
		put(b, ATTRIBUTE_TEXT, NULL, 0, m->text, strlen(m->text));
	if (m->program[0])
		put(b, ATTRIBUTE_PROGRAM, NULL, 0, m->program, strlen(m->program));
	for (size_t i = 0; i < n; i++) {
		struct wire_socket s = { .kind = v[i].kind, .flags = v[i].flags };

		put(b, ATTRIBUTE_SOCKET, &s, sizeof(s), v[i].name, strlen(v[i].name));
	}
	return 0;
}

int upgrade_send(int fd, const struct upgrade_message *m, const struct handed_fd *v, size_t n)
{
	struct buf b = BUF_INIT;
	union rights rights;
	struct msghdr msg = { 0 };
	struct iovec iov;
	ssize_t r;

	if (n > UPGRADE_BATCH)
		return -EINVAL;
	if (render(&b, m, v, n) < 0)
		return -ENOMEM;
	iov = (struct iovec){ .iov_base = buf_data(&b), .iov_len = b.len };
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	if (n) {
		struct cmsghdr *c;

		memset(&rights, 0, sizeof(rights));
		msg.msg_control = rights.room;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n);
		for (size_t i = 0; i < n; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &v[i].fd, sizeof(int));
	}
	do
		r = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	r = r < 0 ? -errno : 0;
	buf_deinit(&b);
	return r == -EWOULDBLOCK ? -EAGAIN : (int)r;
}

static void take_text(char *out, size_t cap, const char *p, size_t n)
{
	n = MIN_OF(n, cap - 1);
	for (size_t i = 0; i < n; i++)
		out[i] = (unsigned char)p[i] < ' ' || p[i] == 0x7f ? ' ' : p[i];
	out[n] = 0;
}

/* One attribute. fds that have come and are not yet named: *fds, *fds_n. 0 or -errno. */
static int take_attribute(struct upgrade_message *m, unsigned type, const char *p, size_t n, struct handed *set,
			  const int **fds, size_t *fds_n)
{
	struct wire_socket s;
	char name[HANDED_NAME_MAX];
	int r;

	switch (type) {
	case ATTRIBUTE_PID:
	case ATTRIBUTE_COUNT:
		if (n != sizeof(uint32_t))
			return -EPROTO;
		memcpy(type == ATTRIBUTE_PID ? &m->pid : &m->count, p, n);
		return 0;
	case ATTRIBUTE_TEXT:
		take_text(m->text, sizeof(m->text), p, n);
		return 0;
	case ATTRIBUTE_PROGRAM:
		take_text(m->program, sizeof(m->program), p, n);
		return 0;
	case ATTRIBUTE_SOCKET:
		if (n < sizeof(s) || *fds_n == 0 || !set)
			return -EPROTO;
		memcpy(&s, p, sizeof(s));
		take_text(name, sizeof(name), p + sizeof(s), n - sizeof(s));
		r = handed_add(set, **fds, s.kind, s.flags, name);
		if (r < 0)
			return r;
		++*fds;
		--*fds_n;
		return 0;
	default:
		return type & UPGRADE_MUST_KNOW ? -EPROTO : 0;
	}
}

static int parse(const char *p, size_t n, struct upgrade_message *m, struct handed *set, const int **fds, size_t *fds_n)
{
	struct wire_header h;
	int r = 0;

	if (n < sizeof(h))
		return -EPROTO;
	memcpy(&h, p, sizeof(h));
	if (h.magic != MAGIC || h.version == 0)
		return -EPROTO;
	m->type = h.type;
	m->version = h.version;
	p += sizeof(h);
	n -= sizeof(h);
	while (n && r == 0) {
		struct wire_attribute a;
		size_t padded;

		if (n < sizeof(a))
			return -EPROTO;
		memcpy(&a, p, sizeof(a));
		padded = sizeof(a) + ((size_t)a.length + 3) / 4 * 4;
		if (padded > n)
			return -EPROTO;
		r = take_attribute(m, a.type, p + sizeof(a), a.length, set, fds, fds_n);
		p += padded;
		n -= padded;
	}
	return r;
}

int upgrade_receive(int fd, struct upgrade_message *m, struct handed *set)
{
	char data[UPGRADE_MESSAGE_MAX];
	int fds[RIGHTS_MAX];
	const int *left = fds;
	size_t left_n = 0;
	union rights rights;
	struct iovec iov = { .iov_base = data, .iov_len = sizeof(data) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = rights.room, .msg_controllen = sizeof(rights.room) };
	ssize_t n = -1;
	int r;

	memset(m, 0, sizeof(*m));
	/* A reset comes before what the other side said last; it is told once. */
	for (unsigned i = 0; i < 3; i++) {
		n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0 || (errno != EINTR && errno != ECONNRESET))
			break;
	}
	if (n < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : errno == ECONNRESET ? 1 : -errno;
	if (n == 0)
		return 1;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t k = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		k = MIN_OF(k, RIGHTS_MAX - left_n);
		memcpy(fds + left_n, CMSG_DATA(c), k * sizeof(int));
		left_n += k;
	}
	/* Cut short by the kernel means that descriptors are missing: we are out of them. */
	if (msg.msg_flags & MSG_CTRUNC)
		r = -EMFILE;
	else
		r = msg.msg_flags & MSG_TRUNC ? -EPROTO : parse(data, (size_t)n, m, set, &left, &left_n);
	for (size_t i = 0; i < left_n; i++)
		close(left[i]);
	return r;
}

int upgrade_peer_check(int fd, unsigned *uid)
{
	struct ucred cred;
	socklen_t n = sizeof(cred);

	*uid = ~0u;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
		return -EPERM;
	*uid = cred.uid;
	return cred.uid == 0 || cred.uid == geteuid() ? 0 : -EPERM;
}
