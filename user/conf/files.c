/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What -t looks at outside the file. The parser noted each text that names
 * something on the system; here each is looked at with the rights of the
 * caller, and nothing is made, bound or locked, so that it can run beside the
 * serving process.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/magic.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "conf/parse.h"

#ifndef BPF_FS_MAGIC
#define BPF_FS_MAGIC 0xcafe4a11
#endif
#define PEM_LOOK 65536

static void fault(struct report *r, const struct conf_outside *o, const char *what, const char *right)
{
	report_at(r, o->pos, "%s: %s %s, %s", o->label, shown(o->text, strlen(o->text)).s, what, right);
}

/* Opens and reads what a reader of the file would; 0 or -errno. */
static int look_into(const char *path, char *p, size_t cap, size_t *n)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), e = 0;
	struct stat st;

	if (fd < 0)
		return -errno;
	*n = 0;
	if (fstat(fd, &st) < 0) {
		e = -errno;
	} else if (S_ISDIR(st.st_mode)) {
		e = -EISDIR;
	} else {
		ssize_t got = read(fd, p, cap);

		if (got < 0)
			e = -errno;
		else
			*n = (size_t)got;
	}
	close(fd);
	return e;
}

static void check_readable(struct report *r, const struct conf_outside *o)
{
	char what[128], *p = malloc(PEM_LOOK);
	size_t n = 0;
	int e;

	if (!p) {
		r->oom = true;
		return;
	}
	e = look_into(o->text, p, PEM_LOOK, &n);
	if (e < 0) {
		snprintf(what, sizeof(what), "can not be read (%s)", strerror(-e));
		fault(r, o, what, "give a file this user can read");
	} else if (n == 0) {
		fault(r, o, "is empty", "give a file with content");
	} else if (o->kind == OUTSIDE_PEM && !memmem(p, n, "-----BEGIN ", 11)) {
		fault(r, o, "is not PEM", "give a file with a -----BEGIN line");
	}
	free(p);
}

/* The directory a path stands in; "." for a bare name. */
static void directory_of(const char *path, char *out, size_t cap)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		snprintf(out, cap, ".");
	else
		snprintf(out, cap, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

static void check_creatable(struct report *r, const struct conf_outside *o)
{
	char dir[4096], inside[4100], what[256];
	struct stat st;

	if (stat(o->text, &st) == 0 && S_ISDIR(st.st_mode)) {
		fault(r, o, "is a directory", "give a file's path");
		return;
	}
	directory_of(o->text, dir, sizeof(dir));
	/* With the dot a file in its place is told as such, and not as a missing right. */
	snprintf(inside, sizeof(inside), "%s/.", dir);
	if (access(inside, W_OK | X_OK) == 0)
		return;
	snprintf(what, sizeof(what), "can not be made in %.150s (%s)", dir, strerror(errno));
	fault(r, o, what, "create the directory or allow this user to write there");
}

static void check_log(struct report *r, const struct conf_outside *o)
{
	char what[128];
	struct stat st;

	if (stat(o->text, &st) < 0 || S_ISDIR(st.st_mode)) {
		check_creatable(r, o);
		return;
	}
	if (access(o->text, W_OK) == 0)
		return;
	snprintf(what, sizeof(what), "can not be written (%s)", strerror(errno));
	fault(r, o, what, "allow this user to write it");
}

static void check_account(struct report *r, const struct conf_outside *o)
{
	uint64_t n = 0;
	bool number = value_u64(str_from(o->text), &n) == 0 && n < UINT32_MAX;

	if (o->kind == OUTSIDE_USER && !getpwnam(o->text) && !(number && getpwuid((uid_t)n)))
		fault(r, o, "is no user on this system", "create it or name another");
	if (o->kind == OUTSIDE_GROUP && !number && !getgrnam(o->text))
		fault(r, o, "is no group on this system", "create it or name another");
}

static bool on_bpffs(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) == 0 && (uint32_t)fs.f_type == BPF_FS_MAGIC;
}

/*
 * Without any BPF file system the daemon still serves, with its maps
 * unpinned: no error. An error is a directory elsewhere while there is one,
 * or a path that can not be a directory.
 */
static void check_pins(struct report *r, const struct conf_outside *o)
{
	char at[512], *slash;
	struct stat st;

	snprintf(at, sizeof(at), "%s", o->text);
	while (stat(at, &st) < 0) {
		if (errno != ENOENT) {
			char what[128];

			snprintf(what, sizeof(what), "can not be a directory (%s)", strerror(errno));
			fault(r, o, what, "give one below /sys/fs/bpf");
			return;
		}
		slash = strrchr(at, '/');
		if (!slash || slash == at)
			snprintf(at, sizeof(at), "/");
		else
			*slash = '\0';
	}
	if (!S_ISDIR(st.st_mode))
		fault(r, o, "can not be a directory", "give one below /sys/fs/bpf");
	else if (on_bpffs("/sys/fs/bpf") && !on_bpffs(at))
		fault(r, o, "is not on a BPF file system", "give a directory below /sys/fs/bpf");
}

/* An address of this host? Binding to port 0 asks without taking the real port from anyone. */
static void check_local(struct report *r, const struct conf_addr *a, const char *label)
{
	struct conf_addr probe = *a;
	int fd;

	if (a->len == 0 || a->sa.sa_family == AF_UNIX)
		return;
	if (a->sa.sa_family == AF_INET)
		probe.in.sin_port = 0;
	else
		probe.in6.sin6_port = 0;
	fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		if (errno == EAFNOSUPPORT)
			report_at(r, a->pos, "%s: \"%s\" is of a kind this host does not have, write an IPv4 address",
				  label, a->text);
		return;
	}
	if (bind(fd, &probe.sa, probe.len) < 0 && errno == EADDRNOTAVAIL)
		report_at(r, a->pos, "%s: \"%s\" is no address of this host, write one that is, or 0.0.0.0 for all",
			  label, a->text);
	close(fd);
}

int conf_check_files(const struct conf *c, struct buf *errors)
{
	struct report r = { .out = errors, .path = c->path };

	for (const struct conf_outside *o = c->outside; o; o = o->next) {
		switch (o->kind) {
		case OUTSIDE_PEM:
		case OUTSIDE_FILE:
			check_readable(&r, o);
			break;
		case OUTSIDE_LOG:
			check_log(&r, o);
			break;
		case OUTSIDE_CREATE:
			check_creatable(&r, o);
			break;
		case OUTSIDE_USER:
		case OUTSIDE_GROUP:
			check_account(&r, o);
			break;
		case OUTSIDE_PINS:
			check_pins(&r, o);
			break;
		case OUTSIDE_NONE:
			break;
		}
	}
	for (uint32_t i = 0; i < c->listener_count; i++) {
		char label[32];

		snprintf(label, sizeof(label), "listeners[%u].address", i);
		check_local(&r, &c->listeners[i].address, label);
	}
	check_local(&r, &c->admin.http, "admin.http");
	if (r.oom)
		return -ENOMEM;
	return r.errors > 0;
}
