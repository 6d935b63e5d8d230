/* SPDX-License-Identifier: Apache-2.0 */
#include "privileges.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "conf/value.h"

#define BIT_OF(cap) (1ull << (cap))
#define KEPT (BIT_OF(CAP_BPF) | BIT_OF(CAP_NET_ADMIN) | BIT_OF(CAP_PERFMON) | BIT_OF(CAP_NET_BIND_SERVICE))

/* Takes up, of what is still permitted, only KEPT. */
static int keep_capabilities(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };

	if (syscall(SYS_capget, &h, d) < 0)
		return -errno;
	for (int i = 0; i < 2; i++) {
		d[i].permitted &= (unsigned)(KEPT >> (32 * i));
		d[i].effective = d[i].permitted;
		d[i].inheritable = 0;
	}
	return syscall(SYS_capset, &h, d) < 0 ? -errno : 0;
}

static bool is_number(const char *s, unsigned *out)
{
	uint64_t n;

	if (value_u64(str_from(s), &n) < 0 || n >= UINT32_MAX)
		return false;
	*out = (unsigned)n;
	return true;
}

/* A name wins over a number. NULL with err: there is none. */
static const struct passwd *find_user(const char *user, char *err, size_t errlen)
{
	const struct passwd *pw = getpwnam(user);
	unsigned uid;

	if (!pw && is_number(user, &uid))
		pw = getpwuid(uid);
	if (!pw)
		snprintf(err, errlen, "user: there is no user '%s' on this host", user);
	return pw;
}

static int find_group(const char *group, gid_t *gid, char *err, size_t errlen)
{
	const struct group *gr = getgrnam(group);

	if (gr)
		*gid = gr->gr_gid;
	else if (!is_number(group, gid)) {
		snprintf(err, errlen, "group: there is no group '%s' on this host", group);
		return -ENOENT;
	}
	return 0;
}

/* A log keeps its group, whose members read it. */
static void give(int fd, uid_t uid, gid_t gid)
{
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	if (S_ISDIR(st.st_mode))
		(void)!fchown(fd, uid, gid);
	else if (S_ISREG(st.st_mode))
		(void)!fchown(fd, uid, (gid_t)-1);
}

int privileges_drop(const char *user, const char *group, const int *own, size_t n, char *err, size_t errlen)
{
	const struct passwd *pw = NULL;
	gid_t gid = 0;
	int r;

	if (!user && !group)
		return 0;
	if (user) {
		pw = find_user(user, err, errlen);
		if (!pw)
			return -ENOENT;
		gid = pw->pw_gid;
	}
	if (group) {
		r = find_group(group, &gid, err, errlen);
		if (r < 0)
			return r;
	}
	if (geteuid() != 0) {
		if ((!pw || pw->pw_uid == geteuid()) && gid == getegid())
			return 0;
		snprintf(err, errlen, "cannot become user '%s' group '%s': only root can; start as root or leave both out",
			 user ? user : "-", group ? group : "-");
		return -EPERM;
	}
	for (size_t i = 0; pw && i < n; i++)
		give(own[i], pw->pw_uid, gid);
	prctl(PR_SET_KEEPCAPS, 1);
	if ((pw && initgroups(pw->pw_name, gid) < 0) || (!pw && setgroups(1, &gid) < 0) || setgid(gid) < 0 ||
	    (pw && setuid(pw->pw_uid) < 0)) {
		r = -errno;
		snprintf(err, errlen, "cannot become user '%s' group '%s': %s", user ? user : "-", group ? group : "-",
			 strerror(-r));
		return r;
	}
	prctl(PR_SET_KEEPCAPS, 0);
	r = pw ? keep_capabilities() : 0;
	if (r < 0)
		snprintf(err, errlen, "cannot give up capabilities: %s", strerror(-r));
	return r;
}
