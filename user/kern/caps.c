/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this kernel and this process may do. Three gates before the sockmap
 * engine is on: privileges, a version floor (sockmap lost or duplicated bytes
 * in older kernels), and selftest.c, because versions lie both ways.
 */
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "kern/internal.h"

/* Stable series with the fixes from the given patch level on; a newer series has them all. */
static const struct floor {
	unsigned major, minor, patch;
} floors[] = {
	{ 6, 1, 147 },
	{ 6, 12, 35 },
};
static const struct floor newest = { 6, 16, 0 };

bool caps_version_ok(unsigned major, unsigned minor, unsigned patch)
{
	for (size_t i = 0; i < ARRAY_SIZE(floors); i++)
		if (major == floors[i].major && minor == floors[i].minor)
			return patch >= floors[i].patch;
	return major > newest.major || (major == newest.major && minor >= newest.minor);
}

/* Distributions put the upstream version elsewhere than in the release: Debian in the version text, Ubuntu in a file. */
bool caps_version_parse(const char *release, const char *version, const char *signature, unsigned v[3])
{
	const char *p = version ? strstr(version, "Debian ") : NULL;

	v[0] = v[1] = v[2] = 0;
	if (p && sscanf(p + 7, "%u.%u.%u", &v[0], &v[1], &v[2]) >= 2)
		return true;
	/* "Ubuntu 6.8.0-31.31-generic 6.8.1" */
	p = signature && strncmp(signature, "Ubuntu ", 7) == 0 ? strrchr(signature, ' ') : NULL;
	if (p && sscanf(p + 1, "%u.%u.%u", &v[0], &v[1], &v[2]) >= 2)
		return true;
	return sscanf(release, "%u.%u.%u", &v[0], &v[1], &v[2]) >= 2;
}

bool caps_kernel_floor(char *why, size_t n)
{
	char signature[128] = "";
	struct utsname u;
	unsigned v[3];
	FILE *f = fopen("/proc/version_signature", "re");

	if (f) {
		if (!fgets(signature, sizeof(signature), f))
			signature[0] = '\0';
		fclose(f);
		signature[strcspn(signature, "\n")] = '\0';
	}
	if (uname(&u) < 0 || !caps_version_parse(u.release, u.version, signature, v)) {
		(void)snprintf(why, n, "the kernel's version can not be told");
		return false;
	}
	if (caps_version_ok(v[0], v[1], v[2]))
		return true;
	(void)snprintf(why, n, "kernel %u.%u.%u: sockmap keeps its bytes from 6.1.147, 6.12.35 or 6.16 on", v[0], v[1], v[2]);
	return false;
}

bool caps_privileges(char *why, size_t n)
{
	static const struct {
		int cap;
		const char *name;
	} needed[] = { { 39, "CAP_BPF" }, { CAP_NET_ADMIN, "CAP_NET_ADMIN" }, { 38, "CAP_PERFMON" } };
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { 0 };

	if (syscall(SYS_capget, &h, d) < 0)
		return true; /* the load will tell */
	/* CAP_SYS_ADMIN stands for BPF and PERFMON both. */
	if (d[0].effective & 1u << CAP_SYS_ADMIN && d[0].effective & 1u << CAP_NET_ADMIN)
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (!(d[needed[i].cap / 32].effective & 1u << (needed[i].cap % 32))) {
			(void)snprintf(why, n, "no %s", needed[i].name);
			return false;
		}
	return true;
}
