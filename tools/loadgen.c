/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clients of the benchmarks: a closed loop over HTTP/1.1 keep-alive.
 *
 * Model. One thread, one epoll set, N clients; each asks for the same path,
 * takes the whole body, asks again. Bodies are thrown away in the kernel
 * (MSG_TRUNC), so that what is measured is the proxy and not this program;
 * a sample of them is read and compared with the origin's bytes.
 *
 *   CONNECT -> HEAD -> BODY | CHUNKS -> HEAD ...
 *   with --hold:        HEAD -> ... -> IDLE    one answer, then nothing more
 *   with --stall-after: BODY -> IDLE           the rest is left unread
 *
 * With --rate a client in BODY is not in the epoll set: it stands in a queue
 * ordered by time and reads what its rate allows, so the kernel's receive buffer fills
 * and the proxy sees a slow reader.
 *
 * The program announces {"event":"begin"} after the warm-up and {"event":"end",...}
 * with the figures of the time between. With --linger it keeps the load up until
 * its standard input closes: whoever measures CPU samples a steady state twice.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/list.h"

enum {
	TABLE_BYTES = 16777213, /* of the origin's pattern: tools/origin/origin.h */
	READ_BYTES = 256 * 1024,
	TURN_BYTES = 1 << 20, /* one client takes at most this before the others get a turn */
	SAMPLE_BYTES = 512,
	CONNECTING_MAX = 128, /* below any listen backlog, so that no SYN is dropped */
	ERRORS_MAX = 1000,
	LATENCY_SUB = 32, /* buckets per power of two: 3% */
	LATENCY_BUCKETS = 64 * LATENCY_SUB,
};

enum state { ST_CONNECT, ST_HEAD, ST_BODY, ST_CHUNKS, ST_IDLE };
enum chunk_state { CH_SIZE, CH_EXTENSION, CH_DATA, CH_DATA_END, CH_TRAILER };

struct client {
	int fd; /* -1: not open */
	enum state st;
	enum chunk_state ch;
	bool close_after, line_empty;
	uint64_t left, off; /* of the body, or of the chunk; off: in the body */
	uint64_t next_sample, taken;
	uint64_t asked_ns, due_ns, paid_ns;
	struct buf part; /* an incomplete head */
	struct list pace_link;
};

struct figures {
	uint64_t requests, bytes, errors, corrupt, reconnects;
	uint64_t latency[LATENCY_BUCKETS];
};

static struct {
	struct sockaddr_in to;
	const char *path;
	unsigned connections;
	uint64_t rate, period_ns, sample, stall_after, requests;
	int rcvbuf;
	double warmup, duration;
	bool hold, linger;
} opt = { .path = "/", .connections = 1, .period_ns = 10 * NS_PER_MS, .duration = 5, .sample = 1 << 20 };

static int ep;
static struct client *clients;
static unsigned opened, connecting, idle;
static struct buf request = BUF_INIT;
static struct list paced;
static struct figures now_figures; /* of the window; cleared when it begins */
static uint64_t errors_ever, bytes_ever;
static unsigned char *table;
static char *scratch;
static bool ended;

static _Noreturn void die(const char *what, const char *detail)
{
	fprintf(stderr, "loadgen: %s: %s\n", what, detail);
	exit(1);
}

static void table_make(void)
{
	EVP_MD_CTX *md = EVP_MD_CTX_new();

	table = malloc(TABLE_BYTES);
	if (!table || !md || !EVP_DigestInit_ex(md, EVP_shake128(), NULL) || !EVP_DigestUpdate(md, "sluice", 6) ||
	    !EVP_DigestFinalXOF(md, table, TABLE_BYTES))
		die("shake128", "failed");
	EVP_MD_CTX_free(md);
}

static void check(uint64_t off, const char *p, size_t n)
{
	while (table && n) {
		size_t at = (size_t)(off % TABLE_BYTES), k = MIN_OF(n, TABLE_BYTES - at);

		if (memcmp(p, table + at, k)) {
			now_figures.corrupt++;
			return;
		}
		off += k;
		p += k;
		n -= k;
	}
}

static unsigned latency_bucket(uint64_t us)
{
	unsigned e;

	if (us < LATENCY_SUB)
		return (unsigned)us;
	e = 63u - (unsigned)__builtin_clzll(us);
	return (e - 4) * LATENCY_SUB + (unsigned)(us >> (e - 5)) - LATENCY_SUB;
}

/* The lowest value of a bucket, the inverse of the above. */
static uint64_t latency_value(unsigned bucket)
{
	unsigned e = bucket / LATENCY_SUB + 4;

	return bucket < LATENCY_SUB ? bucket : (uint64_t)(LATENCY_SUB + bucket % LATENCY_SUB) << (e - 5);
}

/* ---- one client ---- */

static void watch(struct client *c, uint32_t events, int op)
{
	struct epoll_event e = { .events = events, .data.ptr = c };

	if (epoll_ctl(ep, op, c->fd, &e) < 0)
		die("epoll_ctl", strerror(errno));
}

static void client_open(struct client *c)
{
	int one = 1;

	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("socket", strerror(errno));
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	/* Before connect: the window scale is settled in the handshake. */
	if (opt.rcvbuf)
		setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &opt.rcvbuf, sizeof(opt.rcvbuf));
	if (connect(c->fd, (void *)&opt.to, sizeof(opt.to)) < 0 && errno != EINPROGRESS)
		die("connect", strerror(errno));
	c->st = ST_CONNECT;
	connecting++;
	list_init(&c->pace_link);
	watch(c, EPOLLOUT, EPOLL_CTL_ADD);
}

static void client_close(struct client *c)
{
	list_unlink(&c->pace_link);
	connecting -= c->st == ST_CONNECT;
	idle -= c->st == ST_IDLE;
	close(c->fd);
	buf_deinit(&c->part);
	c->fd = -1;
}

static void client_failed(struct client *c, const char *why)
{
	now_figures.errors++;
	if (errors_ever++ < 5)
		fprintf(stderr, "loadgen: client %td: %s (state %d, %" PRIu64 " left)\n", c - clients, why, (int)c->st,
			c->left);
	if (errors_ever > ERRORS_MAX)
		die("given up", "too many errors");
	client_close(c);
	if (!opt.hold && !opt.stall_after)
		client_open(c);
	else
		idle++, c->st = ST_IDLE;
}

static void client_ask(struct client *c)
{
	bool was_paced = !list_empty(&c->pace_link);

	list_unlink(&c->pace_link);
	if (send(c->fd, buf_data(&request), request.len, MSG_NOSIGNAL) != (ssize_t)request.len) {
		client_failed(c, "the request was not taken");
		return;
	}
	c->asked_ns = now_ns();
	if (c->st == ST_CONNECT || was_paced)
		watch(c, EPOLLIN, EPOLL_CTL_MOD);
	connecting -= c->st == ST_CONNECT;
	c->st = ST_HEAD;
}

static void client_rest(struct client *c)
{
	c->st = ST_IDLE;
	idle++;
	list_unlink(&c->pace_link);
	watch(c, 0, EPOLL_CTL_MOD);
}

static void client_done(struct client *c)
{
	now_figures.requests++;
	now_figures.latency[latency_bucket((now_ns() - c->asked_ns) / 1000)]++;
	if (opt.hold) {
		client_rest(c);
	} else if (c->close_after) {
		now_figures.reconnects++;
		client_close(c);
		client_open(c);
	} else {
		client_ask(c);
	}
}

/* Accounts n bytes of body. False: the client reads no more of it. */
static bool body_taken(struct client *c, uint64_t n)
{
	now_figures.bytes += n;
	bytes_ever += n;
	c->off += n;
	c->left -= n;
	c->taken += n;
	if (opt.stall_after && c->taken >= opt.stall_after) {
		client_rest(c);
		return false;
	}
	if (c->left == 0 && c->st == ST_BODY) {
		client_done(c);
		return false;
	}
	return true;
}

/* Takes chunked bytes. >0: more is to come; 0: the body is complete; -1: not chunked. */
static int chunks_take(struct client *c, const char *p, size_t n)
{
	const char *end = p + n;

	while (p < end) {
		if (c->ch == CH_DATA) {
			size_t k = (size_t)MIN_OF(c->left, (uint64_t)(end - p));

			check(c->off, p, MIN_OF(k, (size_t)SAMPLE_BYTES));
			body_taken(c, k);
			p += k;
			if (c->left == 0)
				c->ch = CH_DATA_END;
			continue;
		}
		char b = *p++;

		switch (c->ch) {
		case CH_SIZE:
			if (b >= '0' && b <= '9')
				c->left = c->left * 16 + (uint64_t)(b - '0');
			else if ((b | 32) >= 'a' && (b | 32) <= 'f')
				c->left = c->left * 16 + (uint64_t)((b | 32) - 'a' + 10);
			else
				c->ch = CH_EXTENSION;
			break;
		case CH_EXTENSION:
			if (b != '\n')
				break;
			c->ch = c->left ? CH_DATA : CH_TRAILER;
			c->line_empty = true;
			break;
		case CH_DATA_END:
			if (b != '\r' && b != '\n')
				return -1;
			if (b == '\n')
				c->ch = CH_SIZE;
			break;
		case CH_TRAILER:
			if (b == '\n' && c->line_empty)
				return p == end ? 0 : -1;
			c->line_empty = b == '\n' || (c->line_empty && b == '\r');
			break;
		case CH_DATA:
			break;
		}
	}
	return 1;
}

static const char *field(const char *head, size_t n, const char *name)
{
	size_t k = strlen(name);

	for (const char *p = head; (p = memchr(p, '\n', n - (size_t)(p - head))) && (size_t)(p - head) + k + 2 < n;) {
		p++;
		if (!strncasecmp(p, name, k) && p[k] == ':') {
			p += k + 1;
			while (*p == ' ')
				p++;
			return p;
		}
	}
	return NULL;
}

/* A response's head and what came behind it. False: the client is elsewhere now. */
static bool client_head(struct client *c, const char *p, size_t n)
{
	const char *end = memmem(p, n, "\r\n\r\n", 4), *v;
	size_t head, rest;

	if (!end) {
		if (c->part.len || buf_append(&c->part, p, n) < 0 || n > READ_BYTES / 2)
			client_failed(c, "a head that does not end");
		return false;
	}
	head = (size_t)(end + 4 - p);
	rest = n - head;
	if (strncmp(p, "HTTP/1.1 200", 12)) {
		client_failed(c, "an answer other than 200");
		return false;
	}
	v = field(p, head, "Connection");
	c->close_after = v && !strncasecmp(v, "close", 5);
	c->off = c->left = 0;
	c->next_sample = opt.sample;
	v = field(p, head, "Content-Length");
	if (!v) {
		v = field(p, head, "Transfer-Encoding");
		if (!v || strncasecmp(v, "chunked", 7)) {
			client_failed(c, "a body without a length");
			return false;
		}
		c->st = ST_CHUNKS;
		c->ch = CH_SIZE;
		if (rest) {
			int r = chunks_take(c, end + 4, rest);

			if (r < 0)
				client_failed(c, "bad chunks");
			else if (r == 0)
				client_done(c);
			return false;
		}
		return true;
	}
	c->st = ST_BODY;
	c->left = strtoull(v, NULL, 10);
	if (rest > c->left) {
		client_failed(c, "bytes behind the body");
		return false;
	}
	check(0, end + 4, rest);
	if (!c->left) {
		client_done(c);
		return false;
	}
	if (!body_taken(c, rest))
		return false;
	if (opt.rate) {
		watch(c, 0, EPOLL_CTL_MOD);
		c->due_ns = c->paid_ns = now_ns();
		list_push_back(&paced, &c->pace_link);
		return false;
	}
	return true;
}

/* Reads at most max bytes of body: >0 bytes, 0: nothing there, -1: the client is elsewhere now. */
static ssize_t client_body(struct client *c, uint64_t max)
{
	bool sample = opt.sample && c->off >= c->next_sample;
	size_t want = (size_t)MIN_OF(MIN_OF(max, c->left), (uint64_t)(sample ? SAMPLE_BYTES : TURN_BYTES));
	ssize_t n = recv(c->fd, scratch, want, sample ? 0 : MSG_TRUNC);

	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) {
		client_failed(c, n == 0 ? "the body was cut short" : strerror(errno));
		return -1;
	}
	if (sample) {
		check(c->off, scratch, (size_t)n);
		c->next_sample = c->off + opt.sample;
	}
	return body_taken(c, (uint64_t)n) ? n : -1;
}

static void client_read(struct client *c)
{
	uint64_t turn = 0;

	while (turn < TURN_BYTES) {
		ssize_t n;
		int r;

		if (c->st == ST_BODY) {
			n = client_body(c, TURN_BYTES - turn);
			if (n <= 0)
				return;
			turn += (uint64_t)n;
			continue;
		}
		if (c->st == ST_HEAD && c->part.len)
			memcpy(scratch, buf_data(&c->part), c->part.len);
		n = recv(c->fd, scratch + c->part.len, READ_BYTES - c->part.len, 0);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			client_failed(c, n == 0 ? "closed instead of an answer" : strerror(errno));
			return;
		}
		if (c->st == ST_HEAD) {
			size_t all = c->part.len + (size_t)n;

			buf_deinit(&c->part);
			if (!client_head(c, scratch, all))
				return;
			continue;
		}
		r = chunks_take(c, scratch, (size_t)n);
		if (r < 0)
			client_failed(c, "bad chunks");
		else if (r == 0)
			client_done(c);
		if (r <= 0 || n < READ_BYTES)
			return;
		turn += (uint64_t)n;
	}
}

static void client_event(struct client *c, uint32_t events)
{
	int err = 0;
	socklen_t len = sizeof(err);

	if (c->fd < 0)
		return;
	if (c->st == ST_CONNECT) {
		if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 || err)
			client_failed(c, strerror(err));
		else
			client_ask(c);
	} else if (events & EPOLLIN) {
		client_read(c);
	} else if (events & (EPOLLERR | EPOLLHUP)) {
		client_failed(c, "reset");
	}
}

/* ---- the queue of paced readers ---- */

static void pace_run(uint64_t now)
{
	struct list *it, *tmp;

	list_for_each_safe(it, tmp, &paced)
	{
		struct client *c = list_entry(it, struct client, pace_link);
		uint64_t allowed;

		if (c->due_ns > now)
			return;
		/* What a client could not read because nothing was there is not made up for, beyond a few periods. */
		if (now - c->paid_ns > 4 * opt.period_ns)
			c->paid_ns = now - 4 * opt.period_ns;
		allowed = (uint64_t)((double)(now - c->paid_ns) * (double)opt.rate / 1e9);
		c->due_ns = now + opt.period_ns;
		list_unlink(&c->pace_link);
		list_push_back(&paced, &c->pace_link);
		while (allowed) {
			ssize_t n = client_body(c, allowed);

			if (n <= 0)
				break;
			allowed -= (uint64_t)n;
			c->paid_ns += (uint64_t)((double)n * 1e9 / (double)opt.rate);
		}
	}
}

static int pace_timeout(uint64_t now, uint64_t until)
{
	if (!list_empty(&paced))
		until = MIN_OF(until, list_entry(paced.next, struct client, pace_link)->due_ns);
	return until <= now ? 0 : (int)MIN_OF((until - now) / NS_PER_MS + 1, 1000ull);
}

/* ---- the window ---- */

static double cpu_seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double percentile(double p)
{
	uint64_t want = (uint64_t)((double)now_figures.requests * p), seen = 0;

	for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
		seen += now_figures.latency[i];
		if (seen > want)
			return (double)latency_value(i) / 1e6;
	}
	return 0;
}

static void report(double seconds, double cpu)
{
	printf("{\"event\":\"end\",\"requests\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"seconds\":%.6f,\"errors\":%" PRIu64
	       ",\"corrupt\":%" PRIu64 ",\"reconnects\":%" PRIu64 ",\"connections\":%u,\"cpu_seconds\":%.6f,"
	       "\"latency\":{\"p50\":%.6f,\"p90\":%.6f,\"p99\":%.6f,\"p999\":%.6f}}\n",
	       now_figures.requests, now_figures.bytes, seconds, now_figures.errors, now_figures.corrupt,
	       now_figures.reconnects, opened, cpu, percentile(0.5), percentile(0.9), percentile(0.99),
	       percentile(0.999));
	fflush(stdout);
	ended = true;
}

static void announce(const char *event)
{
	printf("{\"event\":\"%s\",\"bytes\":%" PRIu64 "}\n", event, bytes_ever);
	fflush(stdout);
}

static void run(void)
{
	uint64_t start = now_ns(), begin = 0, until = start + (uint64_t)(opt.warmup * 1e9);
	struct epoll_event ev[256];
	double cpu = 0;
	bool told_held = false;

	for (;;) {
		uint64_t now;
		int n;

		while (opened < opt.connections && connecting < CONNECTING_MAX)
			client_open(&clients[opened++]);
		n = epoll_wait(ep, ev, ARRAY_SIZE(ev), pace_timeout(now_ns(), until));
		for (int i = 0; i < n; i++) {
			if (!ev[i].data.ptr)
				return;
			client_event(ev[i].data.ptr, ev[i].events);
		}
		now = now_ns();
		pace_run(now);
		if ((opt.hold || opt.stall_after) && !told_held && idle == opt.connections) {
			announce("held");
			told_held = true;
		}
		if (!begin && now >= until) {
			begin = now_ns();
			until = begin + (uint64_t)(opt.duration * 1e9);
			cpu = cpu_seconds();
			now_figures = (struct figures){ 0 };
			announce("begin");
		} else if (begin && !ended && (now >= until || (opt.requests && now_figures.requests >= opt.requests))) {
			report((double)(now_ns() - begin) / 1e9, cpu_seconds() - cpu);
			if (!opt.linger)
				return;
			until = UINT64_MAX;
		}
	}
}

/* ---- arguments ---- */

static void usage(FILE *f)
{
	fprintf(f, "usage: loadgen [options] ADDRESS:PORT\n"
		   "  --path P            what is asked for                         (/)\n"
		   "  --connections N     clients                                   (1)\n"
		   "  --rate BYTES        each client reads so many bytes a second  (as fast as it can)\n"
		   "  --period MS         how often a paced client reads            (10)\n"
		   "  --rcvbuf BYTES      SO_RCVBUF of each client                  (the kernel's)\n"
		   "  --warmup SECONDS    before the figures begin                  (0)\n"
		   "  --duration SECONDS  of the figures                            (5)\n"
		   "  --requests N        end the figures earlier, after so many    (no)\n"
		   "  --sample BYTES      compare some bytes of each so many; 0: no (1048576)\n"
		   "  --hold              one answer for each, then stay connected\n"
		   "  --stall-after BYTES read so many, then stop reading\n"
		   "  --linger            go on after the figures, until standard input closes\n"
		   "Prints JSON lines.\n");
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "path", 1, NULL, 'p' },     { "connections", 1, NULL, 'c' }, { "rate", 1, NULL, 'r' },
		{ "period", 1, NULL, 'P' },   { "rcvbuf", 1, NULL, 'b' },      { "warmup", 1, NULL, 'w' },
		{ "duration", 1, NULL, 'd' }, { "requests", 1, NULL, 'n' },    { "sample", 1, NULL, 's' },
		{ "hold", 0, NULL, 'H' },     { "stall-after", 1, NULL, 'S' }, { "linger", 0, NULL, 'L' },
		{ "help", 0, NULL, 'h' },     { NULL, 0, NULL, 0 },
	};
	char *colon, host[64];
	int o;

	while ((o = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (o) {
		case 'p':
			opt.path = optarg;
			break;
		case 'c':
			opt.connections = (unsigned)MAX_OF(atoi(optarg), 1);
			break;
		case 'r':
			opt.rate = strtoull(optarg, NULL, 10);
			break;
		case 'P':
			opt.period_ns = MAX_OF(strtoull(optarg, NULL, 10), 1ull) * NS_PER_MS;
			break;
		case 'b':
			opt.rcvbuf = atoi(optarg);
			break;
		case 'w':
			opt.warmup = atof(optarg);
			break;
		case 'd':
			opt.duration = atof(optarg);
			break;
		case 'n':
			opt.requests = strtoull(optarg, NULL, 10);
			break;
		case 's':
			opt.sample = strtoull(optarg, NULL, 10);
			break;
		case 'H':
			opt.hold = true;
			break;
		case 'L':
			opt.linger = true;
			break;
		case 'S':
			opt.stall_after = strtoull(optarg, NULL, 10);
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	colon = optind == argc - 1 ? strrchr(argv[optind], ':') : NULL;
	if (!colon) {
		usage(stderr);
		exit(2);
	}
	snprintf(host, sizeof(host), "%.*s", (int)(colon - argv[optind]), argv[optind]);
	opt.to.sin_family = AF_INET;
	opt.to.sin_port = htons((uint16_t)atoi(colon + 1));
	if (inet_pton(AF_INET, host, &opt.to.sin_addr) != 1)
		die(argv[optind], "want an IPv4 address and a port");
}

int main(int argc, char **argv)
{
	struct epoll_event input = { .events = EPOLLRDHUP | EPOLLHUP | EPOLLIN };
	struct rlimit files;

	parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	list_init(&paced);
	scratch = malloc(TURN_BYTES);
	clients = calloc(opt.connections, sizeof(*clients));
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (!scratch || !clients || ep < 0)
		die("start", strerror(errno));
	if (opt.sample)
		table_make();
	if (buf_printf(&request, "GET %s HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: loadgen\r\n\r\n", opt.path) < 0)
		die("start", strerror(ENOMEM));
	for (unsigned i = 0; i < opt.connections; i++)
		clients[i].fd = -1;
	if (opt.linger && epoll_ctl(ep, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0)
		die("epoll_ctl", strerror(errno));
	run();
	return 0;
}
