/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Retransmissions that overlap what was seen before. The source's peer is this
 * test: it speaks TCP by hand over a TUN device in a network namespace of its
 * own, so it can send any sequence number it likes. The kernel hands such
 * segments to the verdict program whole; every byte must come out once.
 */
#include "kern_rig.h"
#include <arpa/inet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#define PEER_ADDR 0x0a090002u
#define HOST_ADDR 0x0a090001u
#define TUN_MTU 65000

static int tun = -1;

struct segment {
	unsigned char ip[20];
	unsigned char tcp[24];
	unsigned char data[TUN_MTU];
};

/* The hand-made end of a connection. seq and ack are what its next segment carries. */
struct peer {
	uint16_t port, host_port;
	uint32_t isn, ack;
	uint64_t salt;
};

static uint32_t sum_words(uint32_t sum, const unsigned char *p, size_t n)
{
	for (size_t i = 0; i + 1 < n; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	if (n & 1)
		sum += (uint32_t)p[n - 1] << 8;
	return sum;
}

static uint16_t sum_fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void put16(unsigned char *p, uint16_t v)
{
	p[0] = (unsigned char)(v >> 8);
	p[1] = (unsigned char)v;
}

static void put32(unsigned char *p, uint32_t v)
{
	put16(p, (uint16_t)(v >> 16));
	put16(p + 2, (uint16_t)v);
}

static uint32_t get32(const unsigned char *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* flags: TCP header flags. Payload is the pattern from stream position `at`, n bytes, behind sequence number isn + 1. */
static void peer_send(const struct peer *p, unsigned char flags, uint64_t at, size_t n)
{
	static struct segment s;
	bool syn = flags & 0x02;
	size_t total = 20 + 24 + n;
	uint32_t sum;

	memset(&s, 0, 44);
	s.ip[0] = 0x45;
	put16(s.ip + 2, (uint16_t)total);
	s.ip[8] = 64;
	s.ip[9] = IPPROTO_TCP;
	put32(s.ip + 12, PEER_ADDR);
	put32(s.ip + 16, HOST_ADDR);
	put16(s.ip + 10, sum_fold(sum_words(0, s.ip, 20)));
	put16(s.tcp, p->port);
	put16(s.tcp + 2, p->host_port);
	put32(s.tcp + 4, syn ? p->isn : p->isn + 1 + (uint32_t)at);
	put32(s.tcp + 8, p->ack);
	s.tcp[12] = 0x60;
	s.tcp[13] = flags;
	put16(s.tcp + 14, 65535);
	/* MSS on SYN, padding otherwise. */
	put32(s.tcp + 20, syn ? 0x02040000u | 40000 : 0x01010101u);
	rig_fill((char *)s.data, n, at, p->salt);
	sum = sum_words(0, s.ip + 12, 8) + IPPROTO_TCP + (uint32_t)(24 + n);
	sum = sum_words(sum, s.tcp, 24);
	put16(s.tcp + 16, sum_fold(sum_words(sum, s.data, n)));
	assert_int_equal(write(tun, &s, total), total);
}

/* Reads one TCP segment for this peer off the device; its flags. */
static unsigned peer_receive(const struct peer *p, uint32_t *seq)
{
	unsigned char b[2048];

	for (;;) {
		struct pollfd f = { .fd = tun, .events = POLLIN };
		assert_int_equal(poll(&f, 1, 2000), 1);
		ssize_t n = read(tun, b, sizeof(b));
		if (n < 40 || b[0] >> 4 != 4 || b[9] != IPPROTO_TCP || ((unsigned)b[22] << 8 | b[23]) != p->port)
			continue;
		*seq = get32(b + 24);
		return b[33];
	}
}

/* Connects to the listener; the accepted socket goes to pair->near. */
static void peer_connect(struct peer *p, struct rig_pair *pair, uint32_t isn, uint64_t salt)
{
	static uint16_t port = 20000;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(HOST_ADDR) };
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size = 1 << 20;
	uint32_t seq = 0;

	assert_int_equal(setsockopt(l, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
	assert_int_equal(bind(l, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&a, &n), 0);
	*p = (struct peer){ .port = ++port, .host_port = ntohs(a.sin_port), .isn = isn, .salt = salt };
	peer_send(p, 0x02, 0, 0);
	while (peer_receive(p, &seq) != 0x12)
		;
	p->ack = seq + 1;
	peer_send(p, 0x10, 0, 0);
	*pair = (struct rig_pair){ .far = -1, .near = -1, .fs = FLOW_SOCK_INIT, .salt = salt };
	rig_note((void **)rig_pairs, pair);
	pair->near = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(pair->near >= 0);
	close(l);
}

/* One step: the peer sends [from, from + n) of its stream. */
struct step {
	uint64_t from, n;
};

static const struct retransmit {
	const char *name;
	uint32_t isn;
	uint64_t head;	    /* bytes user space reads itself */
	bool insert_late;   /* ... before the socket goes into the maps */
	bool stalled;	    /* the client reads nothing until all is sent: bytes are passed too */
	uint64_t body;
	struct step steps[8];
} cases[] = {
	{ "nothing overlaps", 1000, 0, false, false, 6000, { { 0, 1000 }, { 1000, 2000 }, { 3000, 3000 } } },
	{ "over what was redirected", 1000, 0, false, false, 3000, { { 0, 1000 }, { 500, 1500 }, { 1500, 1500 } } },
	{ "over all that was redirected", 1000, 0, false, false, 3000, { { 0, 1000 }, { 0, 2000 }, { 0, 3000 } } },
	{ "by one byte", 1000, 0, false, false, 3000, { { 0, 1000 }, { 999, 1001 }, { 1999, 1001 } } },
	{ "by more than one cut removes", 1000, 0, false, false, 20000, { { 0, 6000 }, { 0, 14000 }, { 2000, 18000 } } },
	{ "by a whole large buffer", 1000, 0, false, false, 60000, { { 0, 50000 }, { 10, 59990 } } },
	{ "exactly one cut", 1000, 0, false, false, 9000, { { 0, 4095 }, { 0, 5000 }, { 905, 8095 } } },
	{ "over what user space read", 1000, 300, false, false, 2700, { { 0, 1000 }, { 100, 1900 }, { 200, 2800 } } },
	{ "over a part read before the socket came in", 1000, 300, true, false, 2700, { { 0, 1000 }, { 0, 2000 }, { 900, 2100 } } },
	{ "a whole buffer again", 1000, 0, false, false, 3000, { { 0, 1000 }, { 0, 1000 }, { 1000, 2000 } } },
	{ "across the wrap of sequence numbers", 0xfffffc00u, 0, false, false, 4000, { { 0, 900 }, { 400, 1600 }, { 1000, 3000 } } },
	{ "seen bytes on both sides of the wrap", 0xfffff000u, 0, false, false, 12000, { { 0, 6000 }, { 100, 9000 }, { 4000, 8000 } } },
	{ "over what was passed", 1000, 0, false, true, 200000,
	  { { 0, 50000 }, { 20000, 60000 }, { 60000, 50000 }, { 70000, 60000 }, { 120000, 60000 }, { 150000, 50000 } } },
};

/* Runs one case. What the client got is compared when `exact`; otherwise whether it differs is returned. */
static bool retransmit_run(const struct retransmit *c, bool exact)
{
	static struct rig_pair src, dst;
	static struct rig_flow r;
	struct peer p;
	uint64_t total = c->head + c->body, deadline = now_ns() + 3 * NS_PER_S, got = 0;
	static char buf[1 << 18], want[1 << 18];
	bool differs = false;

	peer_connect(&p, &src, c->isn, c->isn + c->body);
	rig_connect(&dst, c->stalled ? 4096 : 0, 0);
	rig_insert(&dst, FLOW_TARGET);
	if (!c->insert_late)
		rig_insert(&src, FLOW_SOURCE);
	for (size_t i = 0; i < ARRAY_SIZE(c->steps) && c->steps[i].n; i++) {
		peer_send(&p, 0x18, c->steps[i].from, c->steps[i].n);
		if (i > 0)
			continue;
		/* The first segment brings the head. */
		while (got < c->head) {
			struct pollfd f = { .fd = src.near, .events = POLLIN };
			(void)poll(&f, 1, 1000);
			ssize_t n = recv(src.near, buf, (size_t)(c->head - got), 0);
			assert_true(n > 0);
			got += (uint64_t)n;
		}
		if (c->insert_late)
			rig_insert(&src, FLOW_SOURCE);
		rig_arm(&r, &src, &dst, c->body);
	}
	got = 0;
	while (now_ns() < deadline && (got < c->body || r.told == FLOW_WAIT)) {
		ssize_t n;
		rig_turn(1);
		n = recv(dst.far, buf, sizeof(buf), MSG_DONTWAIT);
		if (n <= 0)
			continue;
		rig_fill(want, (size_t)n, c->head + got, p.salt);
		got += (uint64_t)n;
		if (memcmp(buf, want, (size_t)n) != 0) {
			differs = true;
			break;
		}
	}
	if (got != c->body || r.told != FLOW_DONE)
		differs = true;
	if (exact && differs)
		fail_msg("%s: %llu of %llu bytes, flow said %d", c->name, (unsigned long long)got, (unsigned long long)c->body, r.told);
	/* Nothing is left behind the body. */
	if (exact)
		assert_int_equal(recv(src.near, buf, 1, 0), -1);
	(void)total;
	rig_hangup(&src);
	rig_hangup(&dst);
	return differs;
}

static void every_byte_comes_out_once(void **state)
{
	(void)state;
	RIG_NEEDED();
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t trims = rig_counters()->flow_trims;
		assert_false(retransmit_run(&cases[i], true));
		if (i > 0 && strcmp(cases[i].name, "a whole buffer again") != 0 && rig_counters()->flow_trims == trims)
			fail_msg("%s: nothing was cut", cases[i].name);
	}
}

/* What user space reads itself, with no body armed, goes through the program too. */
static void unarmed_reader_sees_every_byte_once(void **state)
{
	static char buf[8192], want[8192];
	static struct rig_pair src;
	struct peer p;
	size_t got = 0;
	uint64_t deadline = now_ns() + 3 * NS_PER_S;

	(void)state;
	RIG_NEEDED();
	peer_connect(&p, &src, 0xfffffe00u, 77);
	rig_insert(&src, FLOW_SOURCE);
	peer_send(&p, 0x18, 0, 1000);
	peer_send(&p, 0x18, 300, 1700);
	peer_send(&p, 0x18, 0, 6000);
	while (got < 6000 && now_ns() < deadline) {
		struct pollfd f = { .fd = src.near, .events = POLLIN };
		(void)poll(&f, 1, 100);
		ssize_t n = recv(src.near, buf + got, sizeof(buf) - got, 0);
		if (n > 0)
			got += (size_t)n;
	}
	assert_int_equal(got, 6000);
	rig_fill(want, got, 0, p.salt);
	assert_memory_equal(buf, want, got);
	rig_hangup(&src);
}

static void tun_open(void)
{
	struct ifreq ifr = { .ifr_name = "t0", .ifr_flags = IFF_TUN | IFF_NO_PI };
	struct sockaddr_in *a = (struct sockaddr_in *)(void *)&ifr.ifr_addr;
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	assert_true(tun >= 0);
	assert_int_equal(ioctl(tun, TUNSETIFF, &ifr), 0);
	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(HOST_ADDR) };
	assert_int_equal(ioctl(s, SIOCSIFADDR, &ifr), 0);
	a->sin_addr.s_addr = htonl(0xffffff00u);
	assert_int_equal(ioctl(s, SIOCSIFNETMASK, &ifr), 0);
	ifr.ifr_mtu = TUN_MTU;
	assert_int_equal(ioctl(s, SIOCSIFMTU, &ifr), 0);
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	assert_int_equal(ioctl(s, SIOCSIFFLAGS, &ifr), 0);
	memcpy(ifr.ifr_name, "lo", 3);
	assert_int_equal(ioctl(s, SIOCSIFFLAGS, &ifr), 0);
	close(s);
}

static int setup_with(bool trim)
{
	struct kern_options o = { .workers = 1, .lock_fd = -1, .max_flows = 64, .test_no_trim = !trim, .test_no_selftest = !trim };
	return rig_open(&o);
}

/* The cases are worth something only if they fail where the trim is missing. */
static void without_the_trim_bytes_come_out_wrong(void **state)
{
	size_t wrong = 0;

	(void)state;
	RIG_NEEDED();
	rig_close();
	assert_int_equal(setup_with(false), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		wrong += strcmp(cases[i].name, "a whole buffer again") != 0 && i > 0 && retransmit_run(&cases[i], false);
	assert_int_equal(wrong, ARRAY_SIZE(cases) - 2);
}

static int setup(void **state)
{
	(void)state;
	log_set_level("error");
	if (unshare(CLONE_NEWNET) < 0 || access("/dev/net/tun", R_OK | W_OK) < 0) {
		print_message("SKIP: no network namespace or TUN device for us: %s\n", strerror(errno));
		return 0;
	}
	tun_open();
	return setup_with(true);
}

static int teardown(void **state)
{
	(void)state;
	if (rig_kern)
		rig_close();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(every_byte_comes_out_once),
		RIG_TEST(unarmed_reader_sees_every_byte_once),
		RIG_TEST(without_the_trim_bytes_come_out_wrong),
	};
	return cmocka_run_group_tests_name("kern_retransmit", tests, setup, teardown);
}
