/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/util.h"

static const char *const fault_names[_FAULT_MAX] = {
	[FAULT_ALLOC] = "alloc",	   [FAULT_ACCEPT] = "accept",	      [FAULT_SOCKET] = "socket",
	[FAULT_CONNECT] = "connect",	   [FAULT_READ] = "read",	      [FAULT_WRITE] = "write",
	[FAULT_PIPE] = "pipe",		   [FAULT_MAP_UPDATE] = "map_update", [FAULT_EPOLL] = "epoll",
	[FAULT_LOG_WRITE] = "log_write",
	[FAULT_KTLS_RX] = "ktls_rx",
	[FAULT_EXIT_HELLO] = "exit_hello",   [FAULT_EXIT_OFFER] = "exit_offer",	  [FAULT_EXIT_OFFERED] = "exit_offered",
	[FAULT_EXIT_ADOPT] = "exit_adopt",   [FAULT_EXIT_OPENED] = "exit_opened", [FAULT_EXIT_READY] = "exit_ready",
	[FAULT_EXIT_COMMIT] = "exit_commit", [FAULT_EXIT_COMMITTED] = "exit_committed",
	[FAULT_EXIT_GO] = "exit_go",	     [FAULT_EXIT_SERVING] = "exit_serving",
};

bool fault_armed;

static struct {
	unsigned long first, count; /* fails calls first .. first+count-1; first 0: off */
	atomic_ulong calls;
} faults[_FAULT_MAX];

bool fault_count(enum fault f)
{
	unsigned long n;

	if (!faults[f].first)
		return false;
	n = atomic_fetch_add_explicit(&faults[f].calls, 1, memory_order_relaxed) + 1;
	return n >= faults[f].first && n - faults[f].first < faults[f].count;
}

void fault_exit(enum fault f)
{
	if (fault_hit(f))
		kill(getpid(), SIGKILL);
}

int fault_init(const char *spec)
{
	while (spec && *spec) {
		size_t f, n = strcspn(spec, ":");
		char *end;

		for (f = 0; f < _FAULT_MAX; f++)
			if (strlen(fault_names[f]) == n && strncmp(spec, fault_names[f], n) == 0)
				break;
		if (f == _FAULT_MAX || spec[n] != ':')
			return -EINVAL;
		faults[f].first = strtoul(spec + n + 1, &end, 10);
		faults[f].count = 1;
		if (*end == '+') {
			const char *num = end + 1;
			faults[f].count = strtoul(num, &end, 10);
			if (end == num)
				faults[f].count = ~0ul;
		}
		if (!faults[f].first || (*end && *end != ','))
			return -EINVAL;
		atomic_store(&faults[f].calls, 0); /* a test counts anew for each spec */
		fault_armed = true;
		spec = *end ? end + 1 : end;
	}
	return 0;
}
