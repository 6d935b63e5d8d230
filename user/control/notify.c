/* SPDX-License-Identifier: Apache-2.0 */
#include "control/notify.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un manager;
static socklen_t manager_len; /* 0: there is none */
static uint64_t watchdog_ns;

static uint64_t env_u64(const char *name)
{
	const char *z = getenv(name);
	char *end;
	unsigned long long v;

	if (!z || *z < '0' || *z > '9')
		return 0;
	v = strtoull(z, &end, 10);
	return *end ? 0 : v;
}

void notify_init(void)
{
	const char *z = getenv("NOTIFY_SOCKET");
	uint64_t pid = env_u64("WATCHDOG_PID"), usec = env_u64("WATCHDOG_USEC");
	size_t n = z ? strlen(z) : 0;

	manager_len = 0;
	watchdog_ns = 0;
	if (n < 2 || n >= sizeof(manager.sun_path) || (z[0] != '/' && z[0] != '@'))
		return;
	memset(&manager, 0, sizeof(manager));
	manager.sun_family = AF_UNIX;
	memcpy(manager.sun_path, z, n);
	/* An abstract name begins with NUL and has no end but its length. */
	if (z[0] == '@')
		manager.sun_path[0] = 0;
	manager_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (z[0] == '/'));
	if (usec && usec < UINT64_MAX / 1000 && (pid == 0 || pid == (uint64_t)getpid()))
		watchdog_ns = usec * 1000 / 2;
}

static void notify_send(const char *text)
{
	int fd;

	if (!manager_len)
		return;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	(void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&manager, manager_len);
	close(fd);
}

/* A newline would begin another assignment. */
static void one_line(char *z)
{
	for (; *z; z++)
		if ((unsigned char)*z < ' ')
			*z = ' ';
}

void notify_ready(const char *status)
{
	char text[512] = "READY=1", line[480];

	if (status) {
		snprintf(line, sizeof(line), "%s", status);
		one_line(line);
		snprintf(text, sizeof(text), "READY=1\nSTATUS=%s", line);
	}
	notify_send(text);
}

void notify_reloading(void)
{
	char text[64];

	/* The manager compares the clock with its own, so as not to take an older READY for the answer. */
	snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)(now_ns() / 1000));
	notify_send(text);
}

void notify_stopping(void)
{
	notify_send("STOPPING=1");
}

void notify_status(const char *fmt, ...)
{
	char text[512] = "STATUS=";
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text + 7, sizeof(text) - 7, fmt, ap);
	va_end(ap);
	one_line(text + 7);
	notify_send(text);
}

void notify_main_pid(int pid)
{
	char text[32];

	snprintf(text, sizeof(text), "MAINPID=%d", pid);
	notify_send(text);
}

uint64_t notify_watchdog_interval(void)
{
	return watchdog_ns;
}

void notify_watchdog(void)
{
	if (watchdog_ns)
		notify_send("WATCHDOG=1");
}
