/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes through TLS: whole, in order, ended visibly, sessions resumed. With
 * SLUICE_KTLS=require in the environment every connection here must have both
 * directions in the kernel, except where a case switches that off.
 */
#include <openssl/ssl.h>
#include "tls_fixture.h"

static enum tls_ktls ktls = TLS_KTLS_OFF;

static int setup(void **state _unused_)
{
	const char *mode = getenv("SLUICE_KTLS");

	ktls = mode && strcmp(mode, "require") == 0 ? TLS_KTLS_REQUIRE : TLS_KTLS_AUTO;
	fixture_begin();
	make_saved(NULL, &(struct leaf_spec){ .cn = "x", .alt = "DNS:a.example,DNS:b.example" }, "ec");
	make_saved(NULL, &(struct leaf_spec){ .cn = "x", .alt = "DNS:a.example", .rsa = true }, "rsa");
	return 0;
}

static int teardown(void **state _unused_)
{
	fixture_end();
	return 0;
}

static const struct suite_case {
	const char *identity, *version, *ciphers, *suites;
} suites[] = {
	{ "ec", "1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", NULL },
	{ "ec", "1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", NULL },
	{ "ec", "1.2", "ECDHE-ECDSA-CHACHA20-POLY1305", NULL },
	{ "rsa", "1.2", "ECDHE-RSA-AES128-GCM-SHA256", NULL },
	{ "rsa", "1.2", "AES256-GCM-SHA384", NULL },
	{ "ec", "1.3", NULL, "TLS_AES_128_GCM_SHA256" },
	{ "ec", "1.3", NULL, "TLS_AES_256_GCM_SHA384" },
	{ "ec", "1.3", NULL, "TLS_CHACHA20_POLY1305_SHA256" },
};

static struct tls_ctx *client_for(const struct suite_case *k, enum tls_ktls mode)
{
	return client_ctx(&(struct tls_client_options){ .max_version = k->version,
							.min_version = k->version,
							.ciphers = k->ciphers,
							.ciphersuites = k->suites,
							.ktls = mode });
}

static struct ends connected(const struct suite_case *k, struct tls_session_cache *cache)
{
	struct tls_ctx *s = server_with(k->identity, (struct tls_server_options){ .ktls = ktls });
	struct tls_ctx *c = client_for(k, ktls);
	struct ends e = ends_open(c, s, "a.example", cache);

	if (e.cr || e.sr)
		fail_msg("TLS %s: client %s, server %s", k->version, tls_reason(e.c), tls_reason(e.s));
	assert_string_equal(tls_version(e.c), k->version);
	tls_ctx_unref(c);
	tls_ctx_unref(s);
	return e;
}

/* The byte at place i of a stream: no period that a record or buffer size divides. */
static unsigned char byte_at(uint64_t i, int way)
{
	return (unsigned char)(hash_u64(i / 8 + (uint64_t)way * 977) >> (i % 8 * 8));
}

#define TOTAL (600u * 1024)

struct flow {
	struct tls *t;
	size_t sent, got;
	unsigned blocked;
};

/* One attempt to write a piece whose size changes from call to call. */
static void write_some(struct flow *f, int way, uint64_t *rng)
{
	unsigned char piece[40000];
	size_t want = rand_next(rng) % sizeof(piece) + 1, n = MIN_OF(want, TOTAL - f->sent);
	struct iovec iov[3];
	ssize_t r;

	if (n == 0)
		return;
	for (size_t i = 0; i < n; i++)
		piece[i] = byte_at(f->sent + i, way);
	iov[0] = (struct iovec){ piece, n / 3 };
	iov[1] = (struct iovec){ piece + n / 3, 0 };
	iov[2] = (struct iovec){ piece + n / 3, n - n / 3 };
	r = rand_next(rng) % 2 ? tls_write(f->t, piece, n) : tls_writev(f->t, iov, 3);
	if (r == -EAGAIN) {
		f->blocked++;
		return;
	}
	if (r <= 0 || r > (ssize_t)n)
		fail_msg("write: %zd, %s", r, tls_reason(f->t));
	f->sent += (size_t)r;
}

static void read_some(struct flow *f, int way, uint64_t *rng)
{
	unsigned char piece[20000];
	ssize_t r = tls_read(f->t, piece, rand_next(rng) % sizeof(piece) + 1);

	if (r == -EAGAIN)
		return;
	if (r <= 0)
		fail_msg("read: %zd, %s", r, tls_reason(f->t));
	for (ssize_t i = 0; i < r; i++)
		if (piece[i] != byte_at(f->got + (size_t)i, way))
			fail_msg("byte %zu is wrong", f->got + (size_t)i);
	f->got += (size_t)r;
}

static void bytes_pass_whole_both_ways_whatever_the_socket_takes(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(suites); i++) {
		struct ends e = connected(&suites[i], NULL);
		struct flow f[2] = { { .t = e.c }, { .t = e.s } };
		uint64_t rng = i + 1;
		int small = 4096;

		for (int k = 0; k < 2; k++) {
			setsockopt(e.fd[k], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
			assert_int_equal(tls_kernel(f[k].t),
					 ktls == TLS_KTLS_REQUIRE ? TLS_KERNEL_BOTH : tls_kernel(f[k].t));
		}
		for (;;) {
			struct pollfd p[2];
			for (int k = 0; k < 2; k++) {
				write_some(&f[k], k, &rng);
				/* Reading lags behind, so that writers meet a full socket. */
				if (rand_next(&rng) % 4 == 0)
					read_some(&f[k], 1 - k, &rng);
				p[k] = (struct pollfd){ e.fd[k], POLLIN | (f[k].sent < TOTAL ? POLLOUT : 0), 0 };
			}
			if (f[0].got == TOTAL && f[1].got == TOTAL)
				break;
			if (!tls_pending(e.c) && !tls_pending(e.s) && poll(p, 2, 10000) < 1)
				fail_msg("stalled at %zu and %zu of %u", f[0].got, f[1].got, TOTAL);
		}
		assert_true(f[0].blocked && f[1].blocked);
		ends_close(&e);
	}
}

static void an_end_without_close_notify_is_told_from_a_clean_one(void **state _unused_)
{
	static const char *const versions[] = { "1.2", "1.3" };

	for (size_t v = 0; v < 2; v++)
		for (int clean = 0; clean < 2; clean++) {
			struct ends e = connected(&suites[v ? 5 : 0], NULL);
			char b[16];

			assert_string_equal(tls_version(e.c), versions[v]);
			assert_int_equal(tls_write(e.s, "body", 4), 4);
			if (clean)
				assert_int_equal(tls_shutdown(e.s), 0);
			shutdown(e.fd[1], SHUT_WR);
			assert_int_equal(read_wait(e.c, e.fd[0], b, sizeof(b)), 4);
			assert_int_equal(read_wait(e.c, e.fd[0], b, sizeof(b)), clean ? 0 : -ENODATA);
			assert_int_equal(tls_read(e.c, b, sizeof(b)), clean ? 0 : -ENODATA); /* and again */
			assert_int_equal(tls_failure(e.c), clean ? TLS_FAIL_NONE : TLS_FAIL_TRUNCATED);
			ends_close(&e);
		}
}

static void each_direction_ends_by_itself(void **state _unused_)
{
	struct ends e = connected(&suites[5], NULL);
	char b[16];

	assert_int_equal(tls_shutdown(e.c), 0);
	assert_int_equal(tls_shutdown(e.c), 0);
	assert_int_equal(tls_write(e.c, "x", 1), -EPIPE);
	assert_int_equal(read_wait(e.s, e.fd[1], b, sizeof(b)), 0);
	assert_int_equal(tls_write(e.s, "answer", 6), 6);
	assert_int_equal(read_wait(e.c, e.fd[0], b, sizeof(b)), 6);
	ends_close(&e);
}

static void a_reset_is_the_sockets_error(void **state _unused_)
{
	struct ends e = connected(&suites[5], NULL);
	struct linger rst = { 1, 0 };
	char b[16];

	setsockopt(e.fd[1], SOL_SOCKET, SO_LINGER, &rst, sizeof(rst));
	close(e.fd[1]);
	assert_int_equal(read_wait(e.c, e.fd[0], b, sizeof(b)), -ECONNRESET);
	assert_int_equal(tls_failure(e.c), TLS_FAIL_SOCKET);
	assert_int_equal(tls_write(e.c, "x", 1), -ECONNRESET); /* no SIGPIPE, the same answer */
	tls_free(e.c);
	tls_free(e.s);
	close(e.fd[0]);
}

/* ---- sessions ---- */

struct world {
	struct tls_ctx *c, *s;
	struct tls_session_cache *cache;
};

/* One connection with a byte each way; true when it was resumed. */
static bool visit(struct world *w, const char *name)
{
	struct ends e = ends_open(w->c, w->s, name, w->cache);
	bool resumed = tls_resumed(e.c);
	char b;

	assert_int_equal(e.cr, 0);
	assert_int_equal(e.sr, 0);
	assert_int_equal(tls_resumed(e.s), resumed);
	assert_int_equal(tls_write(e.c, "a", 1), 1);
	assert_int_equal(read_wait(e.s, e.fd[1], &b, 1), 1);
	assert_int_equal(tls_write(e.s, "b", 1), 1);
	/* The ticket of TLS 1.3 comes before the byte. No close_notify: that must not spoil the session. */
	assert_int_equal(read_wait(e.c, e.fd[0], &b, 1), 1);
	assert_int_equal(b, 'b');
	ends_close(&e);
	return resumed;
}

static void a_session_is_resumed_by_the_same_trust_and_name_only(void **state _unused_)
{
	static const size_t rows[] = { 0, 3, 5, 6, 7 };

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct suite_case *k = &suites[rows[i]];
		unsigned char saved[TLS_TICKETS_STATE];
		struct tls_tickets *keys, *successor;
		uint64_t period;
		struct world w;
		struct tls_ctx *first;

		assert_int_equal(tls_tickets_new(&keys, NULL, 0), 0);
		w.s = server_with(k->identity, (struct tls_server_options){ .tickets = keys, .ktls = ktls });
		w.c = client_for(k, ktls);
		assert_int_equal(tls_session_cache_new(&w.cache), 0);

		assert_false(visit(&w, "a.example"));
		assert_true(visit(&w, "a.example"));
		assert_true(visit(&w, "a.example"));
		assert_false(visit(&w, "b.example")); /* another name */
		assert_true(visit(&w, "b.example"));

		first = w.c;
		w.c = client_for(k, ktls); /* as after a reload: other trust, perhaps */
		assert_false(visit(&w, "a.example"));
		tls_ctx_unref(w.c);
		w.c = first;

		tls_ctx_unref(w.s); /* the server reloads and keeps its ticket keys */
		w.s = server_with(k->identity, (struct tls_server_options){ .tickets = keys, .ktls = ktls });
		assert_true(visit(&w, "a.example"));

		/* Another process goes on with the keys; after a change of keys, here or there, both open what the other sealed. */
		tls_tickets_save(keys, saved);
		assert_int_equal(tls_tickets_new(&successor, saved, sizeof(saved)), 0);
		assert_int_equal(tls_tickets_advance(successor), 0);
		tls_ctx_unref(w.s);
		w.s = server_with(k->identity, (struct tls_server_options){ .tickets = successor, .ktls = ktls });
		assert_true(visit(&w, "a.example")); /* sealed with the last period's keys */
		assert_int_equal(tls_tickets_advance(keys), 0);
		tls_ctx_unref(w.s);
		w.s = server_with(k->identity, (struct tls_server_options){ .tickets = keys, .ktls = ktls });
		assert_true(visit(&w, "a.example"));
		assert_int_equal(tls_tickets_advance(keys), 0);
		assert_int_equal(tls_tickets_advance(keys), 0);
		assert_false(visit(&w, "a.example")); /* older than two periods: nobody can open it any more */
		assert_true(visit(&w, "a.example"));
		tls_tickets_unref(successor);
		successor = tls_tickets_ref(keys);
		tls_tickets_unref(keys); /* the context holds its own reference */
		assert_true(visit(&w, "a.example"));

		/* The clock changes them, too: what was current three periods ago opens nothing. */
		tls_tickets_save(successor, saved);
		tls_tickets_unref(successor);
		memcpy(&period, saved, sizeof(period));
		period -= 3 + 3; /* three ahead of the clock by now */
		memcpy(saved, &period, sizeof(period));
		tls_ctx_unref(w.s);
		assert_int_equal(tls_tickets_new(&successor, saved, sizeof(saved)), 0);
		w.s = server_with(k->identity, (struct tls_server_options){ .tickets = successor, .ktls = ktls });
		tls_tickets_unref(successor);
		assert_false(visit(&w, "a.example"));
		assert_true(visit(&w, "a.example"));

		tls_ctx_unref(w.s); /* the server reloads and does not keep them */
		w.s = server_with(k->identity, (struct tls_server_options){ .ktls = ktls });
		assert_false(visit(&w, "a.example"));

		tls_session_cache_unref(w.cache);
		tls_ctx_unref(w.c);
		tls_ctx_unref(w.s);
	}
}

/* ---- what a client sees that is not ours ---- */

static int raw_handshake(SSL *raw, int raw_fd, struct tls *t, int fd)
{
	int r = -1, mine = TLS_WANT_READ;

	while (r != 1 || mine > 0) {
		struct pollfd p[2] = { { raw_fd, POLLIN, 0 }, { fd, POLLIN, 0 } };
		if (r != 1) {
			r = SSL_connect(raw);
			if (r != 1 && SSL_get_error(raw, r) != SSL_ERROR_WANT_READ)
				return -1;
		}
		if (mine > 0)
			mine = tls_handshake(t);
		p[0].fd = r != 1 ? raw_fd : -1;
		p[1].fd = mine > 0 ? fd : -1;
		if ((r != 1 || mine > 0) && poll(p, 2, 10000) < 1)
			return -1;
	}
	return mine;
}

static void a_server_staples_and_agrees_on_http11_only(void **state _unused_)
{
	static const unsigned char staple[] = { 0x30, 0x03, 0x0a, 0x01, 0x01 };
	static const struct {
		const char *offer;
		bool works;
	} offers[] = { { "\x08http/1.1", true }, { "\x02h2\x08http/1.1", true }, { "\x02h2", false }, { NULL, true } };
	struct tls_certificate cert = { fixture_path("ec.pem"), fixture_path("ec.key"), fixture_path("staple.der") };
	FILE *f = fopen(cert.ocsp, "w");
	struct tls_ctx *s;

	fwrite(staple, 1, sizeof(staple), f);
	fclose(f);
	s = server_ctx(&(struct tls_server_options){ .certificates = &cert, .n = 1, .ktls = ktls });
	for (size_t i = 0; i < ARRAY_SIZE(offers); i++) {
		SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
		SSL *raw = SSL_new(ctx);
		const unsigned char *p = NULL;
		struct tls *t;
		unsigned n = 0;
		int fds[2];

		socket_pair(fds);
		SSL_set_fd(raw, fds[0]);
		SSL_set_tlsext_status_type(raw, TLSEXT_STATUSTYPE_ocsp);
		if (offers[i].offer)
			SSL_set_alpn_protos(raw, (const unsigned char *)offers[i].offer,
					    (unsigned)strlen(offers[i].offer));
		assert_int_equal(tls_new_server(&t, s, fds[1]), 0);
		assert_int_equal(raw_handshake(raw, fds[0], t, fds[1]), offers[i].works ? 0 : -1);
		if (offers[i].works) {
			assert_int_equal(SSL_get_tlsext_status_ocsp_resp(raw, &p), sizeof(staple));
			assert_memory_equal(p, staple, sizeof(staple));
			SSL_get0_alpn_selected(raw, &p, &n);
			assert_int_equal(n, offers[i].offer ? 8 : 0);
		} else {
			assert_int_equal(tls_failure(t), TLS_FAIL_ALPN);
		}
		tls_free(t);
		SSL_free(raw);
		SSL_CTX_free(ctx);
		close(fds[0]);
		close(fds[1]);
	}
	tls_ctx_unref(s);
}

/* ---- the kernel's part, as far as a kernel without TLS can show it ---- */

static void a_kernel_that_can_not_is_a_reason_and_refused_where_required(void **state _unused_)
{
	char why[128] = "";
	bool able = tls_kernel_probe(why, sizeof(why)) == 0;
	struct tls_ctx *s = server_with("ec", (struct tls_server_options){ .ktls = TLS_KTLS_OFF });
	static const enum tls_ktls modes[] = { TLS_KTLS_AUTO, TLS_KTLS_REQUIRE, TLS_KTLS_OFF };

	for (size_t i = 0; i < 3; i++) {
		struct tls_ctx *c = client_for(&suites[5], modes[i]);
		struct ends e = ends_open(c, s, "a.example", NULL);

		assert_int_equal(e.sr, 0);
		assert_int_equal(tls_kernel(e.s), 0);
		assert_string_equal(tls_kernel_reason(e.s), "off by configuration");
		assert_int_equal(tls_splice_in(e.s, -1, 1), -EOPNOTSUPP);
		assert_int_equal(tls_splice_out(e.s, -1, 1, false), -EOPNOTSUPP);
		if (modes[i] == TLS_KTLS_OFF || !able)
			assert_int_equal(tls_kernel(e.c), 0);
		else
			assert_int_equal(tls_kernel(e.c), TLS_KERNEL_BOTH);
		assert_int_equal(tls_kernel_reason(e.c)[0] == '\0', tls_kernel(e.c) == TLS_KERNEL_BOTH);
		if (modes[i] == TLS_KTLS_REQUIRE && !able) {
			assert_int_equal(e.cr, -EPROTO);
			assert_int_equal(tls_failure(e.c), TLS_FAIL_KERNEL);
			assert_non_null(strstr(tls_reason(e.c), why));
		} else {
			assert_int_equal(e.cr, 0);
		}
		ends_close(&e);
		tls_ctx_unref(c);
	}
	tls_ctx_unref(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_pass_whole_both_ways_whatever_the_socket_takes),
		cmocka_unit_test(an_end_without_close_notify_is_told_from_a_clean_one),
		cmocka_unit_test(each_direction_ends_by_itself),
		cmocka_unit_test(a_reset_is_the_sockets_error),
		cmocka_unit_test(a_session_is_resumed_by_the_same_trust_and_name_only),
		cmocka_unit_test(a_server_staples_and_agrees_on_http11_only),
		cmocka_unit_test(a_kernel_that_can_not_is_a_reason_and_refused_where_required),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
