/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What moving a byte costs, without HTTP around it: origin -> mover -> client
 * over loopback, by copy, splice(2) or the kernel's flows.
 *
 *   mover MODE FLOWS BODY_BYTES SECONDS [RATE_BYTES_PER_S] [WINDOW]
 *
 * Three processes. Origin: sendfile from a memfd (no copy). Client: reads with
 * MSG_TRUNC (no copy), paced when a rate is given. Every body is asked for by
 * one byte and begins with a head of 16 bytes, which the mover reads itself.
 * Prints CPU seconds per GB of the mover's process and the kernel's threads, and
 * the same with origin and client: redirection runs where the bytes arrive, on
 * loopback in the origin's time, so only the second compares fairly.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/log.h"
#include "kern/flow.h"

#define HEAD 16
#define FILE_BYTES (1u << 20)
#define COPY_BYTES (64u << 10)
#define PIPE_BYTES (256 << 10)

enum mode { MODE_COPY, MODE_SPLICE, MODE_FLOW };

static uint64_t body_bytes, rate;
static unsigned flows;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int listener(struct sockaddr_in *a)
{
	socklen_t n = sizeof(*a);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (bind(l, (struct sockaddr *)a, sizeof(*a)) < 0 || listen(l, 1024) < 0 || getsockname(l, (struct sockaddr *)a, &n) < 0)
		die("listen");
	return l;
}

static int dial(const struct sockaddr_in *a)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	if (connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0)
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static int take(int l)
{
	int fd = accept4(l, NULL, NULL, SOCK_NONBLOCK), one = 1;
	if (fd < 0)
		die("accept");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void watch(int ep, int op, int fd, uint32_t events, void *p)
{
	struct epoll_event ev = { .events = events, .data.ptr = p };
	if (epoll_ctl(ep, op, fd, &ev) < 0)
		die("epoll_ctl");
}

/* --- origin --- */

struct origin {
	int fd;
	uint64_t head, left;
};

static void origin_run(int l)
{
	struct origin *o = calloc(flows, sizeof(*o));
	int ep = epoll_create1(0), file = memfd_create("body", 0);
	char head[HEAD] = "head", b;

	if (!o || ftruncate(file, FILE_BYTES) < 0)
		die("memfd");
	/* Holes would be zero pages one by one. */
	void *m = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	memset(m, 'x', FILE_BYTES);
	for (unsigned i = 0; i < flows; i++) {
		o[i].fd = take(l);
		watch(ep, EPOLL_CTL_ADD, o[i].fd, EPOLLIN | EPOLLOUT | EPOLLET, &o[i]);
	}
	for (;;) {
		struct epoll_event ev[64];
		int n = epoll_wait(ep, ev, 64, -1);
		for (int i = 0; i < n; i++) {
			struct origin *c = ev[i].data.ptr;
			for (;;) {
				if (!c->left) {
					if (recv(c->fd, &b, 1, 0) != 1)
						break;
					if (send(c->fd, head, HEAD, MSG_MORE) != HEAD)
						die("head");
					c->left = body_bytes;
				}
				off_t at = (off_t)((body_bytes - c->left) % FILE_BYTES);
				ssize_t k = sendfile(c->fd, file, &at, MIN_OF(c->left, (uint64_t)(FILE_BYTES - (uint64_t)at)));
				if (k < 0)
					break;
				c->left -= (uint64_t)k;
			}
		}
	}
}

/* --- client --- */

struct client {
	int fd;
	uint64_t got, due, start;
};

static void client_run(const struct sockaddr_in *a, uint64_t *total)
{
	struct client *c = calloc(flows, sizeof(*c));
	int ep = epoll_create1(0);
	uint64_t want = body_bytes + HEAD;

	for (unsigned i = 0; i < flows; i++) {
		c[i].fd = dial(a);
		c[i].start = now_ns() + (rate ? hash_u64(i + 1) % (20 * NS_PER_MS) : 0);
		watch(ep, EPOLL_CTL_ADD, c[i].fd, rate ? 0 : EPOLLIN, &c[i]);
		if (send(c[i].fd, "G", 1, 0) != 1)
			die("ask");
	}
	for (;;) {
		struct epoll_event ev[64];
		/* Paced: every 20 ms each takes what its rate allows. */
		int n = rate ? (int)flows : epoll_wait(ep, ev, 64, -1);
		uint64_t now = now_ns();
		for (int i = 0; i < n; i++) {
			struct client *x = rate ? &c[i] : ev[i].data.ptr;
			uint64_t may = (uint64_t)1 << 20;
			if (rate) {
				if (now < x->start)
					continue;
				may = (uint64_t)((double)(now - x->start) / 1e9 * (double)rate);
				may = may > x->due ? may - x->due : 0;
			}
			while (may > 0) {
				ssize_t k = recv(x->fd, NULL, MIN_OF(may, want - x->got), MSG_TRUNC | MSG_DONTWAIT);
				if (k == 0)
					exit(1);
				if (k < 0)
					break;
				may -= (uint64_t)k;
				x->due += (uint64_t)k;
				x->got += (uint64_t)k;
				__atomic_fetch_add(total, (uint64_t)k, __ATOMIC_RELAXED);
				if (x->got == want) {
					x->got = 0;
					(void)send(x->fd, "G", 1, 0);
				}
			}
		}
		if (rate) {
			struct timespec t = { .tv_nsec = 20 * 1000 * 1000 };
			nanosleep(&t, NULL);
		}
	}
}

/* --- mover --- */

struct lane {
	enum { LANE_ASK, LANE_HEAD, LANE_BODY } state;
	int client, origin, pipe[2];
	uint64_t head, left, in_pipe;
	struct flow_sock src, dst;
	struct flow flow;
	char *buf;
	size_t at, n;
	bool quiet;
	int ep;
	struct flow_group *group;
};

static void lane_run(struct lane *l, enum mode mode);

static void lane_told(struct flow *f, enum flow_result what)
{
	struct lane *l = container_of(f, struct lane, flow);

	if (what == FLOW_MOVED)
		return;
	if (what != FLOW_DONE) {
		fprintf(stderr, "flow ended with %d\n", what);
		exit(1);
	}
	l->left = 0;
	lane_run(l, MODE_FLOW);
}

static bool body_copy(struct lane *l)
{
	while (l->left || l->n) {
		if (!l->n) {
			ssize_t k = recv(l->origin, l->buf, MIN_OF(l->left, (uint64_t)COPY_BYTES), 0);
			if (k <= 0)
				return false;
			l->at = 0;
			l->n = (size_t)k;
			l->left -= (uint64_t)k;
		}
		ssize_t k = send(l->client, l->buf + l->at, l->n, MSG_NOSIGNAL);
		if (k <= 0)
			return false;
		l->at += (size_t)k;
		l->n -= (size_t)k;
	}
	return true;
}

static bool body_splice(struct lane *l)
{
	for (;;) {
		bool went = false;
		if (l->left && l->in_pipe < PIPE_BYTES) {
			ssize_t k = splice(l->origin, NULL, l->pipe[1], NULL, MIN_OF(l->left, (uint64_t)PIPE_BYTES), SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
			if (k > 0) {
				l->left -= (uint64_t)k;
				l->in_pipe += (uint64_t)k;
				went = true;
			}
		}
		if (l->in_pipe) {
			ssize_t k = splice(l->pipe[0], NULL, l->client, NULL, l->in_pipe,
					   SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (l->left ? SPLICE_F_MORE : 0));
			if (k > 0) {
				l->in_pipe -= (uint64_t)k;
				went = true;
			}
		}
		if (!l->left && !l->in_pipe)
			return true;
		if (!went)
			return false;
	}
}

static bool body_flow(struct lane *l)
{
	enum flow_result r;

	if (!l->left)
		return true;
	if (flow_running(&l->flow))
		return false;
	if (!l->quiet) {
		watch(l->ep, EPOLL_CTL_MOD, l->origin, EPOLLRDHUP | EPOLLET, l);
		l->quiet = true;
	}
	r = flow_arm(&l->flow, l->group, &l->src, &l->dst, l->left);
	if (r == FLOW_DONE)
		l->left = 0;
	return r == FLOW_DONE;
}

static void lane_run(struct lane *l, enum mode mode)
{
	char b[HEAD];
	ssize_t k;

	for (;;) {
		switch (l->state) {
		case LANE_ASK:
			if (recv(l->client, b, 1, 0) != 1)
				return;
			if (send(l->origin, b, 1, 0) != 1)
				die("ask");
			l->head = 0;
			l->state = LANE_HEAD;
			break;
		case LANE_HEAD:
			k = recv(l->origin, b, HEAD - l->head, 0);
			if (k <= 0)
				return;
			if (send(l->client, b, (size_t)k, mode == MODE_FLOW ? 0 : MSG_MORE) != k)
				die("head");
			l->head += (uint64_t)k;
			if (l->head < HEAD)
				break;
			l->left = body_bytes;
			l->state = LANE_BODY;
			break;
		case LANE_BODY:
			if (!(mode == MODE_COPY ? body_copy(l) : mode == MODE_SPLICE ? body_splice(l) : body_flow(l)))
				return;
			if (l->quiet) {
				watch(l->ep, EPOLL_CTL_MOD, l->origin, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, l);
				l->quiet = false;
			}
			l->state = LANE_ASK;
			break;
		}
	}
}

/* CPU of all kernel threads, in ticks: the flows' workers and ksoftirqd are among them. Other processes do not disturb it much. */
static uint64_t kthread_ticks(void)
{
	uint64_t sum = 0;
	struct dirent *e;
	DIR *d = opendir("/proc");

	while (d && (e = readdir(d))) {
		char path[300];
		unsigned long long u, s;
		int ppid;
		if (e->d_name[0] < '1' || e->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		FILE *f = fopen(path, "r");
		if (!f)
			continue;
		if (fscanf(f, "%*d (%*[^)]) %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &ppid, &u, &s) == 3 && ppid == 2)
			sum += u + s;
		fclose(f);
	}
	if (d)
		closedir(d);
	return sum;
}

/* CPU of a running child, in ticks. */
static uint64_t pid_ticks(pid_t pid)
{
	char path[64];
	unsigned long long u, s;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *f = fopen(path, "r");
	if (!f || fscanf(f, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &u, &s) != 2)
		die(path);
	fclose(f);
	return u + s;
}

int main(int argc, char **argv)
{
	enum mode mode;
	struct sockaddr_in a_origin, a_mover;
	struct kern *k = NULL;
	struct flow_group *g = NULL;
	struct sluice_counters c0 = { 0 }, c1 = { 0 };
	uint64_t *total, t0 = 0, b0 = 0, cpu0 = 0, load0 = 0, self0 = 0, end = UINT64_MAX, warm;
	double seconds;

	if (argc < 5) {
		fprintf(stderr, "usage: mover copy|splice|flow FLOWS BODY_BYTES SECONDS [RATE] [WINDOW]\n");
		return 2;
	}
	mode = argv[1][0] == 'c' ? MODE_COPY : argv[1][0] == 's' ? MODE_SPLICE : MODE_FLOW;
	flows = (unsigned)atoi(argv[2]);
	body_bytes = strtoull(argv[3], NULL, 0);
	seconds = atof(argv[4]);
	rate = argc > 5 ? strtoull(argv[5], NULL, 0) : 0;
	signal(SIGPIPE, SIG_IGN);
	log_set_level("error");
	total = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	int l_origin = listener(&a_origin), l_mover = listener(&a_mover);
	if (getenv("MOVER_PORTS"))
		fprintf(stderr, "origin %u mover %u\n", ntohs(a_origin.sin_port), ntohs(a_mover.sin_port));
	pid_t origin = fork();
	if (origin == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		origin_run(l_origin);
	}
	pid_t client = fork();
	if (client == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		client_run(&a_mover, total);
	}

	if (mode == MODE_FLOW) {
		struct kern_options o = { .workers = 1, .lock_fd = -1, .window = argc > 6 ? strtoull(argv[6], NULL, 0) : 0 };
		if (kern_open(&k, &o) < 0 || flow_group_new(&g, k, 0) < 0) {
			fprintf(stderr, "no sockmap: %s\n", k ? kern_features(k)->reason_sockmap : "");
			goto out;
		}
	}
	int ep = epoll_create1(0);
	struct lane *lanes = calloc(flows, sizeof(*lanes));
	for (unsigned i = 0; i < flows; i++) {
		struct lane *l = &lanes[i];
		*l = (struct lane){ .src = FLOW_SOCK_INIT, .dst = FLOW_SOCK_INIT, .flow.callback = lane_told, .ep = ep, .group = g };
		l->client = take(l_mover);
		l->origin = dial(&a_origin);
		l->buf = mode == MODE_COPY ? malloc(COPY_BYTES) : NULL;
		if (mode == MODE_SPLICE && (pipe2(l->pipe, O_NONBLOCK) < 0 || fcntl(l->pipe[1], F_SETPIPE_SZ, PIPE_BYTES) < 0))
			die("pipe");
		if (mode == MODE_FLOW && (flow_sock_insert(g, &l->dst, l->client, FLOW_TARGET) || flow_sock_insert(g, &l->src, l->origin, FLOW_SOURCE)))
			die("insert");
		watch(ep, EPOLL_CTL_ADD, l->client, EPOLLIN | EPOLLOUT | EPOLLET, l);
		watch(ep, EPOLL_CTL_ADD, l->origin, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, l);
		lane_run(l, mode);
	}
	if (g)
		watch(ep, EPOLL_CTL_ADD, flow_group_fd(g), EPOLLIN | EPOLLET, NULL);
	warm = now_ns() + NS_PER_S;
	while (now_ns() < end) {
		struct epoll_event ev[64];
		int n = epoll_wait(ep, ev, 64, 100);
		for (int i = 0; i < n; i++) {
			if (ev[i].data.ptr)
				lane_run(ev[i].data.ptr, mode);
			else
				flow_group_dispatch(g);
		}
		if (warm && now_ns() > warm) {
			warm = 0;
			t0 = now_ns();
			b0 = *total;
			cpu0 = kthread_ticks();
			load0 = pid_ticks(origin) + pid_ticks(client);
			self0 = pid_ticks(getpid());
			if (k)
				kern_counters_sum(k, &c0);
			end = t0 + (uint64_t)(seconds * 1e9);
		}
	}
	double gb = (double)(*total - b0) / 1e9, s = (double)(now_ns() - t0) / 1e9;
	double threads = (double)(kthread_ticks() - cpu0) / 100, load = (double)(pid_ticks(origin) + pid_ticks(client) - load0) / 100;
	double self = (double)(pid_ticks(getpid()) - self0) / 100;
	printf("%-6s %4u x %9llu rate %9llu: %6.2f Gbit/s  mover %.3f CPU s/GB (process %.3f kernel threads %.3f)  with origin and client %.3f", argv[1],
	       flows, (unsigned long long)body_bytes, (unsigned long long)rate, gb * 8 / s, (self + threads) / gb, self / gb, threads / gb,
	       (self + threads + load) / gb);
	if (k) {
		kern_counters_sum(k, &c1);
		double red = (double)(c1.verdict_redirect_bytes - c0.verdict_redirect_bytes), pump = (double)(c1.flow_pump_bytes - c0.flow_pump_bytes);
		printf("  redirected %.1f%%  spills/s %.0f pumps/s %.0f polls/s %.0f pump %.0f KiB", 100 * red / (red + pump),
		       (double)(c1.flow_spills - c0.flow_spills) / s, (double)(c1.flow_pumps - c0.flow_pumps) / s,
		       (double)(c1.flow_polls - c0.flow_polls) / s,
		       c1.flow_pumps > c0.flow_pumps ? pump / (double)(c1.flow_pumps - c0.flow_pumps) / 1024 : 0);
	}
	printf("\n");
out:
	kill(origin, SIGKILL);
	kill(client, SIGKILL);
	while (wait(NULL) > 0)
		;
	return 0;
}
