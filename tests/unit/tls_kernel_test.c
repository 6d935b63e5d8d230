/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS in the kernel against OpenSSL in user space as the peer. Where the kernel
 * has no TLS these tests are skipped with the reason; with SLUICE_KTLS=require
 * that is a failure.
 */
#include <openssl/ssl.h>
#include <sys/utsname.h>
#include "io/tls_internal.h"
#include "tls_fixture.h"

static char absent[128];

static int setup(void **state _unused_)
{
	const char *mode = getenv("SLUICE_KTLS");

	fixture_begin();
	make_saved(NULL, &(struct leaf_spec){ .cn = "x", .alt = "DNS:a.example" }, "ec");
	if (tls_kernel_probe(absent, sizeof(absent)) == 0)
		absent[0] = '\0';
	else if (mode && strcmp(mode, "require") == 0) {
		print_error("kTLS is required here: %s\n", absent);
		return -1;
	} else
		print_message("kTLS tests are skipped: %s\n", absent);
	return 0;
}

static int teardown(void **state _unused_)
{
	fixture_end();
	return 0;
}

#define need_kernel()           \
	do {                    \
		if (absent[0])  \
			skip(); \
	} while (0)

static const struct suite_case {
	const char *version, *ciphers, *suites;
} suites[] = {
	{ "1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", NULL }, { "1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", NULL },
	{ "1.2", "ECDHE-ECDSA-CHACHA20-POLY1305", NULL }, { "1.3", NULL, "TLS_AES_128_GCM_SHA256" },
	{ "1.3", NULL, "TLS_AES_256_GCM_SHA384" },        { "1.3", NULL, "TLS_CHACHA20_POLY1305_SHA256" },
};

/* Which end is in the kernel; the other is OpenSSL alone. */
enum side { CLIENT, SERVER, BOTH };

static const struct suite_case tls13 = { "1.3", NULL, "TLS_AES_128_GCM_SHA256" };

static struct tls_ctx *client_for(const struct suite_case *k, enum tls_ktls mode)
{
	return client_ctx(&(struct tls_client_options){ .max_version = k->version,
							.min_version = k->version,
							.ciphers = k->ciphers,
							.ciphersuites = k->suites,
							.ktls = mode });
}

/* Contexts for both ends; OpenSSL is told to use kTLS by itself, as openssl.cnf can, and must not. */
static void contexts_for(const struct suite_case *k, enum side side, struct tls_ctx **c, struct tls_ctx **s)
{
	*s = server_with("ec",
			 (struct tls_server_options){ .ktls = side == CLIENT ? TLS_KTLS_OFF : TLS_KTLS_REQUIRE });
	*c = client_for(k, side == SERVER ? TLS_KTLS_OFF : TLS_KTLS_REQUIRE);
	SSL_CTX_set_options((*s)->ssl, SSL_OP_ENABLE_KTLS);
	SSL_CTX_set_options((*c)->ssl, SSL_OP_ENABLE_KTLS);
}

static struct ends connected(const struct suite_case *k, enum side side, struct tls_session_cache *cache)
{
	struct tls_ctx *c, *s;
	struct ends e;

	contexts_for(k, side, &c, &s);
	e = ends_open(c, s, "a.example", cache);
	if (e.cr || e.sr)
		fail_msg("TLS %s: client %s, server %s", k->version, tls_reason(e.c), tls_reason(e.s));
	assert_int_equal(tls_kernel(e.c), side == SERVER ? 0 : TLS_KERNEL_BOTH);
	assert_int_equal(tls_kernel(e.s), side == CLIENT ? 0 : TLS_KERNEL_BOTH);
	tls_ctx_unref(c);
	tls_ctx_unref(s);
	return e;
}

static long tls_stat(const char *name)
{
	char line[128], key[64];
	FILE *f = fopen("/proc/net/tls_stat", "r");
	long v, found = -1;

	if (!f)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", key, &v) == 2 && strcmp(key, name) == 0)
			found = v;
	fclose(f);
	return found;
}

/* The byte at place i of a stream: no period that a record or page size divides. */
static unsigned char byte_at(uint64_t i)
{
	return (unsigned char)(hash_u64(i / 8 + 5) >> (i % 8 * 8));
}

#define TOTAL (1024u * 1024 + 77)

/* A stream from one end's pipe through TLS to the other end's pipe, spliced where an end is in the kernel. */
struct mover {
	struct tls *from, *to;
	int from_fd, to_fd, in[2], out[2];
	size_t made, sent, got;
};

static void feed_pipe(struct mover *m)
{
	unsigned char b[4096];
	size_t n = MIN_OF(sizeof(b), TOTAL - m->made);
	ssize_t r;

	for (size_t i = 0; i < n; i++)
		b[i] = byte_at(m->made + i);
	r = n ? write(m->in[1], b, n) : 0;
	m->made += r > 0 ? (size_t)r : 0;
}

static void send_some(struct mover *m)
{
	unsigned char b[8000];
	ssize_t r;
	size_t n = MIN_OF(sizeof(b), TOTAL - m->sent);

	if (tls_kernel(m->from)) {
		feed_pipe(m);
		r = tls_splice_out(m->from, m->in[0], 70000, false);
	} else {
		for (size_t i = 0; i < n; i++)
			b[i] = byte_at(m->sent + i);
		r = tls_write(m->from, b, n);
	}
	if (r < 0 && r != -EAGAIN)
		fail_msg("sending: %zd, %s", r, tls_reason(m->from));
	m->sent += r > 0 ? (size_t)r : 0;
}

static void receive_some(struct mover *m)
{
	unsigned char b[65536];
	ssize_t r;

	if (tls_kernel(m->to)) {
		r = tls_splice_in(m->to, m->out[1], sizeof(b));
		if (r > 0)
			assert_int_equal(read(m->out[0], b, sizeof(b)), r);
	} else {
		r = tls_read(m->to, b, sizeof(b));
	}
	if (r == -EAGAIN)
		return;
	if (r <= 0)
		fail_msg("receiving: %zd, %s", r, tls_reason(m->to));
	for (ssize_t i = 0; i < r; i++)
		if (b[i] != byte_at(m->got + (size_t)i))
			fail_msg("byte %zu is wrong", m->got + (size_t)i);
	m->got += (size_t)r;
}

static void move_all(struct mover *m)
{
	assert_int_equal(pipe2(m->in, O_NONBLOCK), 0);
	assert_int_equal(pipe2(m->out, O_NONBLOCK), 0);
	while (m->got < TOTAL) {
		struct pollfd p[2] = { { m->to_fd, POLLIN, 0 }, { m->from_fd, 0, 0 } };
		if (m->sent < TOTAL)
			send_some(m);
		receive_some(m);
		p[1].events = m->sent < TOTAL ? POLLOUT : 0;
		if (m->got < TOTAL && !tls_pending(m->to) && poll(p, 2, 10000) < 1)
			fail_msg("stalled: %zu sent, %zu received of %u", m->sent, m->got, TOTAL);
	}
	for (int i = 0; i < 2; i++) {
		close(m->in[i]);
		close(m->out[i]);
	}
}

static void a_body_is_spliced_both_ways_with_each_cipher(void **state _unused_)
{
	need_kernel();
	for (size_t i = 0; i < ARRAY_SIZE(suites); i++)
		for (enum side side = CLIENT; side <= BOTH; side++) {
			long tx = tls_stat("TlsTxSw"), rx = tls_stat("TlsRxSw");
			struct ends e = connected(&suites[i], side, NULL);
			struct mover up = { .from = e.c, .to = e.s, .from_fd = e.fd[0], .to_fd = e.fd[1] };
			struct mover down = { .from = e.s, .to = e.c, .from_fd = e.fd[1], .to_fd = e.fd[0] };

			/* The kernel's own counters say who encrypts. */
			assert_int_equal(tls_stat("TlsTxSw") - tx, side == BOTH ? 2 : 1);
			assert_int_equal(tls_stat("TlsRxSw") - rx, side == BOTH ? 2 : 1);
			move_all(&up);
			move_all(&down);
			ends_close(&e);
		}
}

/*
 * Who has sent the last handshake message may send data at once, so the other end finds both in its socket: it must
 * take the one and leave the other. In TLS 1.3 the client speaks last, in TLS 1.2 the server.
 */
static void data_that_came_with_the_handshakes_end_is_left_to_the_kernel(void **state _unused_)
{
	need_kernel();
	for (size_t i = 0; i < 2 * ARRAY_SIZE(suites); i++) {
		const struct suite_case *k = &suites[i / 2];
		bool client_first = strcmp(k->version, "1.3") == 0;
		enum side alone = client_first ? SERVER : CLIENT; /* in the kernel, if not both are */
		char data[40000], got[sizeof(data) + 1];
		struct tls *first, *last;
		struct tls_ctx *c, *s;
		struct ends e;
		size_t n = 0;
		ssize_t r;

		socket_pair(e.fd);
		contexts_for(k, i % 2 ? BOTH : alone, &c, &s);
		assert_int_equal(tls_new_client(&e.c, c, e.fd[0], "a.example", NULL), 0);
		assert_int_equal(tls_new_server(&e.s, s, e.fd[1]), 0);
		first = client_first ? e.c : e.s;
		last = client_first ? e.s : e.c;
		while ((r = tls_handshake(first)) > 0)
			assert_true(tls_handshake(last) > 0);
		assert_int_equal(r, 0);
		for (size_t b = 0; b < sizeof(data); b++)
			data[b] = (char)byte_at(b);
		assert_int_equal(tls_write(first, data, sizeof(data)), sizeof(data));
		assert_int_equal(tls_shutdown(first), 0);
		assert_int_equal(tls_handshake(last), 0);
		assert_int_equal(tls_kernel(last), TLS_KERNEL_BOTH);
		while ((r = read_wait(last, e.fd[client_first], got + n, sizeof(got) - n)) > 0)
			n += (size_t)r;
		if (r < 0)
			fail_msg("%s: %s", tls_cipher(last), tls_reason(last));
		assert_int_equal(n, sizeof(data));
		assert_memory_equal(got, data, n);
		tls_ctx_unref(c);
		tls_ctx_unref(s);
		ends_close(&e);
	}
}

static void a_spliced_stream_ends_cleanly_or_is_truncated(void **state _unused_)
{
	need_kernel();
	for (size_t i = 0; i < ARRAY_SIZE(suites); i++)
		for (int clean = 0; clean < 2; clean++) {
			struct ends e = connected(&suites[i], CLIENT, NULL);
			ssize_t r;
			int p[2];

			assert_int_equal(pipe2(p, O_NONBLOCK), 0);
			assert_int_equal(tls_write(e.s, "body", 4), 4);
			if (clean)
				assert_int_equal(tls_shutdown(e.s), 0);
			shutdown(e.fd[1], SHUT_WR);
			for (int step = 0; step < 2; step++) {
				while ((r = tls_splice_in(e.c, p[1], 100)) == -EAGAIN)
					wait_for(e.fd[0], POLLIN);
				assert_int_equal(r, step == 0 ? 4 : clean ? 0 : -ENODATA);
			}
			/* Our own close_notify reaches a peer in user space. */
			if (clean) {
				char b;
				assert_int_equal(tls_shutdown(e.c), 0);
				assert_int_equal(read_wait(e.s, e.fd[1], &b, 1), 0);
			}
			close(p[0]);
			close(p[1]);
			ends_close(&e);
		}
}

/* OpenSSL gets its tickets although the kernel reads the socket. */
static void a_ticket_that_meets_a_splice_is_kept(void **state _unused_)
{
	struct tls_session_cache *cache;
	struct tls_ctx *c, *s;

	need_kernel();
	for (size_t i = 3; i < ARRAY_SIZE(suites); i++) {
		assert_int_equal(tls_session_cache_new(&cache), 0);
		c = client_for(&suites[i], TLS_KTLS_REQUIRE);
		s = server_with("ec", (struct tls_server_options){ .ktls = TLS_KTLS_OFF });
		for (int visit = 0; visit < 3; visit++) {
			struct ends e = ends_open(c, s, "a.example", cache);
			int p[2];
			ssize_t r;

			assert_int_equal(e.cr, 0);
			assert_int_equal(tls_resumed(e.c), visit > 0);
			assert_int_equal(tls_write(e.s, "body", 4), 4);
			assert_int_equal(pipe2(p, O_NONBLOCK), 0);
			while ((r = tls_splice_in(e.c, p[1], 100)) == -EAGAIN)
				wait_for(e.fd[0], POLLIN);
			assert_int_equal(r, 4);
			close(p[0]);
			close(p[1]);
			ends_close(&e);
		}
		tls_ctx_unref(c);
		tls_ctx_unref(s);
		tls_session_cache_unref(cache);
	}
}

static bool kernel_rekeys(void)
{
	struct utsname u;
	int major = 0, minor = 0;

	uname(&u);
	sscanf(u.release, "%d.%d", &major, &minor);
	return major > 6 || (major == 6 && minor >= 14);
}

static void new_keys_are_followed_or_end_the_connection_with_a_reason(void **state _unused_)
{
	static const int requests[] = { SSL_KEY_UPDATE_NOT_REQUESTED, SSL_KEY_UPDATE_REQUESTED };

	need_kernel();
	for (int i = 0; i < 2; i++) {
		struct ends e = connected(&tls13, CLIENT, NULL);
		char b[8];
		ssize_t r;

		assert_int_equal(SSL_key_update(e.s->ssl, requests[i]), 1);
		assert_int_equal(tls_write(e.s, "new", 3), 3);
		r = read_wait(e.c, e.fd[0], b, sizeof(b));
		if (kernel_rekeys()) {
			assert_int_equal(r, 3);
			assert_int_equal(tls_write(e.c, "back", 4), 4);
			assert_int_equal(read_wait(e.s, e.fd[1], b, sizeof(b)), 4);
		} else {
			assert_int_equal(r, -EPROTO);
			assert_int_equal(tls_failure(e.c), TLS_FAIL_REKEY);
			assert_int_equal(tls_write(e.c, "back", 4), -EPROTO);
		}
		ends_close(&e);
	}
}

/* ---- a wire we can cut and bend: the peer sits on a socket pair, its bytes are carried by hand ---- */

struct wire {
	struct ends e; /* e.c: kernel client on fd[0]; e.s: peer */
	int far;       /* the other end of fd[0] */
	int near;      /* the other end of the peer's socket */
};

static size_t carry(int from, int to, size_t most)
{
	char b[20000];
	ssize_t r = recv(from, b, MIN_OF(sizeof(b), most), MSG_DONTWAIT);

	if (r <= 0)
		return 0;
	assert_int_equal(send(to, b, (size_t)r, MSG_NOSIGNAL), r);
	return (size_t)r;
}

static struct wire wire_open(void)
{
	struct tls_ctx *s = server_with("ec", (struct tls_server_options){ .ktls = TLS_KTLS_OFF });
	struct tls_ctx *c = client_for(&tls13, TLS_KTLS_REQUIRE);
	struct wire w = { 0 };
	int tcp[2], pair[2];

	socket_pair(tcp);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	w = (struct wire){ .e = { .fd = { tcp[0], pair[0] }, .cr = 1, .sr = 1 }, .far = tcp[1], .near = pair[1] };
	assert_int_equal(tls_new_client(&w.e.c, c, tcp[0], "a.example", NULL), 0);
	assert_int_equal(tls_new_server(&w.e.s, s, pair[0]), 0);
	while (w.e.cr > 0 || w.e.sr > 0) {
		struct pollfd p[3] = { { tcp[0], POLLIN, 0 }, { w.far, POLLIN, 0 }, { w.near, POLLIN, 0 } };
		if (w.e.cr > 0)
			w.e.cr = tls_handshake(w.e.c);
		p[0].fd = w.e.cr > 0 ? tcp[0] : -1;
		if (w.e.sr > 0)
			w.e.sr = tls_handshake(w.e.s);
		if (!(carry(w.far, w.near, 20000) + carry(w.near, w.far, 20000)) && (w.e.cr > 0 || w.e.sr > 0) &&
		    poll(p, 3, 10000) < 1)
			fail_msg("the handshake stalls");
	}
	assert_int_equal(w.e.cr, 0);
	assert_int_equal(w.e.sr, 0);
	tls_ctx_unref(c);
	tls_ctx_unref(s);
	carry(w.near, w.far, 20000); /* the ticket, if it was not carried yet */
	return w;
}

static void wire_close(struct wire *w)
{
	close(w->far);
	close(w->near);
	ends_close(&w->e);
}

static ssize_t spliced(struct wire *w, int pipe_write)
{
	ssize_t r;

	while ((r = tls_splice_in(w->e.c, pipe_write, 20000)) == -EAGAIN)
		wait_for(w->e.fd[0], POLLIN);
	return r;
}

static void a_record_that_stops_midway_is_waited_for_and_its_end_is_truncation(void **state _unused_)
{
	need_kernel();
	for (int ends = 0; ends < 2; ends++) {
		struct wire w = wire_open();
		char body[10000] = "x";
		ssize_t r;
		int p[2];

		assert_int_equal(pipe2(p, O_NONBLOCK), 0);
		assert_int_equal(tls_write(w.e.s, body, sizeof(body)), sizeof(body));
		assert_int_equal(carry(w.near, w.far, 3000), 3000);
		wait_for(w.e.fd[0], POLLIN | POLLOUT);
		assert_int_equal(tls_splice_in(w.e.c, p[1], sizeof(body)), -EAGAIN);
		assert_int_equal(tls_want(w.e.c), TLS_WANT_READ);
		if (ends) {
			shutdown(w.far, SHUT_WR);
			wait_for(w.e.fd[0], POLLRDHUP);
			r = spliced(&w, p[1]);
			assert_int_equal(r, -ENODATA);
			assert_int_equal(tls_failure(w.e.c), TLS_FAIL_TRUNCATED);
		} else {
			assert_true(carry(w.near, w.far, 20000) > 0);
			for (size_t got = 0; got < sizeof(body); got += (size_t)r) {
				r = spliced(&w, p[1]);
				assert_true(r > 0);
			}
		}
		close(p[0]);
		close(p[1]);
		wire_close(&w);
	}
}

static void a_bent_record_is_an_error_not_data(void **state _unused_)
{
	need_kernel();
	for (int by_splice = 0; by_splice < 2; by_splice++) {
		struct wire w = wire_open();
		char b[200];
		ssize_t n, r;
		int p[2];

		assert_int_equal(pipe2(p, O_NONBLOCK), 0);
		assert_int_equal(tls_write(w.e.s, "some data", 9), 9);
		n = recv(w.near, b, sizeof(b), 0);
		assert_true(n > 9);
		b[n - 1] ^= 1;
		assert_int_equal(send(w.far, b, (size_t)n, 0), n);
		r = by_splice ? spliced(&w, p[1]) : read_wait(w.e.c, w.e.fd[0], b, sizeof(b));
		assert_int_equal(r, -EPROTO);
		assert_non_null(strstr(tls_reason(w.e.c), "integrity"));
		close(p[0]);
		close(p[1]);
		wire_close(&w);
	}
}

/* Whatever comes under valid keys but is not data: sent by a kernel that lets us choose the type. */
static void send_typed(int fd, unsigned char type, const void *p, size_t n)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(1)];
	} c = {
		.h = { .cmsg_len = CMSG_LEN(1), .cmsg_level = 282, .cmsg_type = 1 }
	}; /* SOL_TLS, TLS_SET_RECORD_TYPE */
	struct iovec iov = { (void *)(uintptr_t)p, n };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c.space) };

	*CMSG_DATA(&c.h) = type;
	assert_int_equal(sendmsg(fd, &m, 0), n);
}

static const struct {
	unsigned char type;
	const char *bytes;
	size_t n;
	ssize_t want; /* of the next read; 4: the data behind it */
	enum tls_failure failure;
} records[] = {
	{ 21, "\x02\x28", 2, -EPROTO, TLS_FAIL_ALERT },                    /* handshake_failure */
	{ 21, "\x02\x2d", 2, -EPROTO, TLS_FAIL_ALERT },                    /* certificate_expired */
	{ 21, "\x01\x5a", 2, 4, TLS_FAIL_NONE },                           /* user_canceled */
	{ 21, "\x01\x00", 2, 0, TLS_FAIL_NONE },                           /* close_notify */
	{ 22, "\x01\x00\x00\x00", 4, -EPROTO, TLS_FAIL_PROTOCOL },         /* ClientHello */
	{ 22, "\x18\x00\x00\x01\x00\x18", 6, -EPROTO, TLS_FAIL_PROTOCOL }, /* KeyUpdate not at the end of its record */
	{ 22, "\x04\x00\x00\x01\x00", 5, 4, TLS_FAIL_NONE },               /* a ticket nobody keeps */
	{ 22, "\x04\x00", 2, 4, TLS_FAIL_NONE },                           /* a message that goes on later */
};

static void records_that_are_not_data_are_judged(void **state _unused_)
{
	need_kernel();
	for (size_t i = 0; i < ARRAY_SIZE(records); i++)
		for (int by_splice = 0; by_splice < 2; by_splice++) {
			struct ends e = connected(&tls13, BOTH, NULL);
			char b[16];
			ssize_t r;
			int p[2];

			assert_int_equal(pipe2(p, O_NONBLOCK), 0);
			send_typed(e.fd[1], records[i].type, records[i].bytes, records[i].n);
			assert_int_equal(tls_write(e.s, "data", 4), 4);
			do
				r = by_splice ? tls_splice_in(e.c, p[1], 16) : tls_read(e.c, b, sizeof(b));
			while (r == -EAGAIN && (wait_for(e.fd[0], POLLIN), true));
			if (r != records[i].want || tls_failure(e.c) != records[i].failure)
				fail_msg("case %zu: %zd, %s", i, r, tls_reason(e.c));
			close(p[0]);
			close(p[1]);
			ends_close(&e);
		}
}

static void openssl_is_let_go_when_the_kernel_needs_it_no_more(void **state _unused_)
{
	struct ends e;

	need_kernel();
	e = connected(&tls13, BOTH, NULL);
	assert_null(e.c->ssl);
	assert_null(e.s->ssl);
	assert_string_equal(tls_cipher(e.c), "TLS_AES_128_GCM_SHA256");
	assert_int_equal(tls_pending(e.c), 0);
	ends_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_body_is_spliced_both_ways_with_each_cipher),
		cmocka_unit_test(data_that_came_with_the_handshakes_end_is_left_to_the_kernel),
		cmocka_unit_test(a_spliced_stream_ends_cleanly_or_is_truncated),
		cmocka_unit_test(a_ticket_that_meets_a_splice_is_kept),
		cmocka_unit_test(new_keys_are_followed_or_end_the_connection_with_a_reason),
		cmocka_unit_test(a_record_that_stops_midway_is_waited_for_and_its_end_is_truncation),
		cmocka_unit_test(a_bent_record_is_an_error_not_data),
		cmocka_unit_test(records_that_are_not_data_are_judged),
		cmocka_unit_test(openssl_is_let_go_when_the_kernel_needs_it_no_more),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
