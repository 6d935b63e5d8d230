/* SPDX-License-Identifier: Apache-2.0 */
#include "privileges.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

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

int privileges_drop(const char *user, const char *group, int dir, char *err, size_t errlen)
{
	const struct passwd *pw = NULL;
	gid_t gid = 0;
	int r;

	if (!user && !group)
		return 0;
	if (user) {
		pw = getpwnam(user);
		if (!pw) {
			snprintf(err, errlen, "user: there is no user '%s' on this host", user);
			return -ENOENT;
		}
		gid = pw->pw_gid;
	}
	if (group) {
		const struct group *gr = getgrnam(group);
		if (!gr) {
			snprintf(err, errlen, "group: there is no group '%s' on this host", group);
			return -ENOENT;
		}
		gid = gr->gr_gid;
	}
	if (geteuid() != 0) {
		if ((!pw || pw->pw_uid == geteuid()) && gid == getegid())
			return 0;
		snprintf(err, errlen, "cannot become user '%s' group '%s': only root can; start as root or leave both out",
			 user ? user : "-", group ? group : "-");
		return -EPERM;
	}
	if (pw && dir >= 0)
		(void)!fchown(dir, pw->pw_uid, gid);
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
