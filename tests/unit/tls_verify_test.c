/* SPDX-License-Identifier: Apache-2.0 */
/* Who is refused, and with which reason; which certificate a server shows. */
#include "tls_fixture.h"

static struct identity ca, other_ca, namesake;

static void write_crl(const char *path, const struct identity *issuer, const struct identity *revoked)
{
	X509_CRL *crl = X509_CRL_new();
	X509_REVOKED *r = X509_REVOKED_new();
	ASN1_TIME *now = X509_gmtime_adj(NULL, -60), *later = X509_gmtime_adj(NULL, DAY);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	X509_CRL_set_version(crl, 1);
	X509_CRL_set_issuer_name(crl, X509_get_subject_name(issuer->cert));
	X509_CRL_set1_lastUpdate(crl, now);
	X509_CRL_set1_nextUpdate(crl, later);
	X509_REVOKED_set_serialNumber(r, X509_get_serialNumber(revoked->cert));
	X509_REVOKED_set_revocationDate(r, now);
	X509_CRL_add0_revoked(crl, r);
	assert_true(X509_CRL_sign(crl, issuer->key, EVP_sha256()) > 0);
	assert_true(PEM_write_X509_CRL(f, crl));
	fclose(f);
	X509_CRL_free(crl);
	ASN1_TIME_free(now);
	ASN1_TIME_free(later);
}

static int setup(void **state _unused_)
{
	struct identity revoked;

	fixture_begin();
	ca = make_identity(NULL, &(struct leaf_spec){ .cn = "Test Root", .ca = true });
	other_ca = make_identity(NULL, &(struct leaf_spec){ .cn = "Other Root", .ca = true });
	namesake = make_identity(NULL, &(struct leaf_spec){ .cn = "Test Root", .ca = true });
	save_identity(&ca, "ca");
	save_identity(&other_ca, "other_ca");
	make_saved(&ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example,IP:127.0.0.1,IP:::1" }, "good");
	make_saved(&ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:*.wild.example" }, "wild");
	make_saved(&ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:a.wild.example" }, "exact");
	make_saved(&ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example", .from = -10 * DAY, .to = -DAY },
		   "expired");
	make_saved(&ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example", .from = DAY, .to = 10 * DAY },
		   "future");
	make_saved(NULL, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example" }, "self");
	make_saved(&other_ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example" }, "foreign");
	make_saved(&namesake, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example" }, "forged");
	revoked = make_identity(&ca, &(struct leaf_spec){ .cn = "x", .alt = "DNS:good.example" });
	save_identity(&revoked, "revoked");
	write_crl(fixture_path("crl.pem"), &ca, &revoked);
	free_identity(&revoked);
	return 0;
}

static int teardown(void **state _unused_)
{
	free_identity(&ca);
	free_identity(&other_ca);
	free_identity(&namesake);
	fixture_end();
	return 0;
}

static const struct verify_case {
	const char *server, *name;
	bool crl;
	enum tls_failure want;
	const char *text;
} verify_cases[] = {
	{ "good", "good.example", false, TLS_FAIL_NONE, "" },
	{ "good", "good.example.", false, TLS_FAIL_NONE, "" },
	{ "good", "GOOD.example", false, TLS_FAIL_NONE, "" },
	{ "good", "good.example", true, TLS_FAIL_NONE, "" },
	{ "good", "127.0.0.1", false, TLS_FAIL_NONE, "" },
	{ "good", "::1", false, TLS_FAIL_NONE, "" },
	{ "wild", "a.wild.example", false, TLS_FAIL_NONE, "" },
	{ "wild", "a.b.wild.example", false, TLS_FAIL_WRONG_NAME, "another name than a.b.wild.example" },
	{ "wild", "wild.example", false, TLS_FAIL_WRONG_NAME, "another name than wild.example" },
	{ "good", "127.0.0.2", false, TLS_FAIL_WRONG_NAME, "another address than 127.0.0.2" },
	{ "good", "bad.example", false, TLS_FAIL_WRONG_NAME, "another name than bad.example" },
	{ "expired", "good.example", false, TLS_FAIL_EXPIRED, "expired" },
	{ "future", "good.example", false, TLS_FAIL_NOT_YET_VALID, "not yet valid" },
	{ "self", "good.example", false, TLS_FAIL_SELF_SIGNED, "self-signed" },
	{ "foreign", "good.example", false, TLS_FAIL_UNTRUSTED, "not trusted" },
	{ "forged", "good.example", false, TLS_FAIL_UNTRUSTED, "signature" },
	{ "revoked", "good.example", false, TLS_FAIL_NONE, "" },
	{ "revoked", "good.example", true, TLS_FAIL_REVOKED, "revoked" },
};

static void each_bad_certificate_is_refused_with_its_own_reason(void **state _unused_)
{
	static const char *const versions[] = { "1.2", "1.3" };

	for (size_t v = 0; v < ARRAY_SIZE(versions); v++)
		for (size_t i = 0; i < ARRAY_SIZE(verify_cases); i++) {
			const struct verify_case *k = &verify_cases[i];
			struct tls_ctx *s = server_with(k->server, (struct tls_server_options){ 0 });
			struct tls_ctx *c = client_ctx(
				&(struct tls_client_options){ .ca_file = fixture_path("ca.pem"),
							      .crl_file = k->crl ? fixture_path("crl.pem") : NULL,
							      .verify = true,
							      .max_version = versions[v] });
			struct ends e = ends_open(c, s, k->name, NULL);

			if (tls_failure(e.c) != k->want || !strstr(tls_reason(e.c), k->text))
				fail_msg("case %zu, TLS %s, %s as %s: %s (%s)", i, versions[v], k->server, k->name,
					 tls_failure_name(tls_failure(e.c)), tls_reason(e.c));
			assert_int_equal(e.cr, k->want == TLS_FAIL_NONE ? 0 : -EPROTO);
			if (k->want == TLS_FAIL_NONE)
				assert_string_equal(tls_version(e.c), versions[v]);
			else if (e.sr < 0)
				assert_int_equal(tls_failure(e.s), TLS_FAIL_ALERT);
			ends_close(&e);
			tls_ctx_unref(c);
			tls_ctx_unref(s);
		}
}

static void without_verification_anything_goes(void **state _unused_)
{
	struct tls_ctx *s = server_with("self", (struct tls_server_options){ 0 });
	struct tls_ctx *c = client_ctx(&(struct tls_client_options){ .verify = false });
	struct ends e = ends_open(c, s, NULL, NULL);

	assert_int_equal(e.cr, 0);
	assert_int_equal(e.sr, 0);
	assert_null(tls_server_name(e.s));
	ends_close(&e);
	tls_ctx_unref(c);
	tls_ctx_unref(s);
}

static void verification_needs_a_name(void **state _unused_)
{
	struct tls_ctx *c = client_ctx(&(struct tls_client_options){ .verify = true });
	struct tls *t = NULL;
	int fds[2];

	socket_pair(fds);
	assert_int_equal(tls_new_client(&t, c, fds[0], NULL, NULL), -EINVAL);
	assert_int_equal(tls_new_client(&t, c, fds[0], "", NULL), -EINVAL);
	close(fds[0]);
	close(fds[1]);
	tls_ctx_unref(c);
}

static const struct {
	const char *name;
	const char *shown; /* the one trusted name the certificate must carry */
} sni_cases[] = {
	{ "a.wild.example", "exact" },  { "A.Wild.Example", "exact" }, { "b.wild.example", "wild" },
	{ "good.example", "good" },     { "127.0.0.1", "good" },       { "unknown.example", "good" },
	{ "a.b.wild.example", "good" },
};

/* Each certificate is the only one a client trusts, in turn: the handshake tells which was shown. */
static void a_server_chooses_by_exact_name_then_wildcard_then_first(void **state _unused_)
{
	char paths[3][2][128];
	static const char *const names[] = { "good", "wild", "exact" };
	struct tls_certificate certs[3];
	struct tls_ctx *s;

	for (size_t i = 0; i < 3; i++) {
		snprintf(paths[i][0], 128, "%s/%s.pem", fixture_dir, names[i]);
		snprintf(paths[i][1], 128, "%s/%s.key", fixture_dir, names[i]);
		certs[i] = (struct tls_certificate){ paths[i][0], paths[i][1], NULL };
	}
	s = server_ctx(&(struct tls_server_options){ .certificates = certs, .n = 3 });
	for (size_t i = 0; i < ARRAY_SIZE(sni_cases); i++) {
		struct tls_ctx *c =
			client_ctx(&(struct tls_client_options){ .ca_file = fixture_path("ca.pem"), .verify = true });
		struct ends e = ends_open(c, s, sni_cases[i].name, NULL);
		bool matches = strcmp(sni_cases[i].shown, "good") != 0 ||
			       strcmp(sni_cases[i].name, "good.example") == 0 ||
			       strcmp(sni_cases[i].name, "127.0.0.1") == 0;

		/* "good" shown for a foreign name is refused: that is how we know it was the first. */
		assert_int_equal(tls_failure(e.c), matches ? TLS_FAIL_NONE : TLS_FAIL_WRONG_NAME);
		if (matches && strcmp(sni_cases[i].name, "127.0.0.1") != 0)
			assert_string_equal(tls_server_name(e.s), sni_cases[i].name);
		if (strcmp(sni_cases[i].name, "127.0.0.1") == 0)
			assert_null(tls_server_name(e.s));
		ends_close(&e);
		tls_ctx_unref(c);
	}
	tls_ctx_unref(s);
}

static const struct {
	const char *what;
	struct tls_client_options c;
	struct tls_server_options s;
	enum tls_failure client, server;
} mismatches[] = {
	{ "versions", { .max_version = "1.2" }, { .min_version = "1.3" }, TLS_FAIL_VERSION, TLS_FAIL_VERSION },
	{ "versions, other way round",
	  { .min_version = "1.3" },
	  { .max_version = "1.2" },
	  TLS_FAIL_VERSION,
	  TLS_FAIL_VERSION },
	{ "ciphers",
	  { .max_version = "1.2", .ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256" },
	  { .ciphers = "ECDHE-ECDSA-AES256-GCM-SHA384" },
	  TLS_FAIL_ALERT,
	  TLS_FAIL_CIPHER },
	{ "cipher suites",
	  { .min_version = "1.3", .ciphersuites = "TLS_AES_128_GCM_SHA256" },
	  { .ciphersuites = "TLS_AES_256_GCM_SHA384" },
	  TLS_FAIL_ALERT,
	  TLS_FAIL_CIPHER },
};

static void peers_without_common_ground_say_so(void **state _unused_)
{
	for (size_t i = 0; i < ARRAY_SIZE(mismatches); i++) {
		struct tls_ctx *s = server_with("good", mismatches[i].s);
		struct tls_ctx *c = client_ctx(&mismatches[i].c);
		struct ends e = ends_open(c, s, "good.example", NULL);

		if (tls_failure(e.c) != mismatches[i].client || tls_failure(e.s) != mismatches[i].server)
			fail_msg("%s: client %s (%s), server %s (%s)", mismatches[i].what,
				 tls_failure_name(tls_failure(e.c)), tls_reason(e.c),
				 tls_failure_name(tls_failure(e.s)), tls_reason(e.s));
		ends_close(&e);
		tls_ctx_unref(c);
		tls_ctx_unref(s);
	}
}

static const struct {
	const char *send;
	enum tls_failure client, server;
} strangers[] = {
	{ "HTTP/1.1 400 Bad Request\r\n\r\n", TLS_FAIL_PLAINTEXT, TLS_FAIL_PLAINTEXT },
	{ "GET / HTTP/1.1\r\n\r\n", TLS_FAIL_PLAINTEXT, TLS_FAIL_PLAINTEXT },
	{ "SSH-2.0-x\r\n", TLS_FAIL_PLAINTEXT, TLS_FAIL_PLAINTEXT },
	{ "", TLS_FAIL_CLOSED, TLS_FAIL_CLOSED },
	{ "\x16\x03\x03\x00", TLS_FAIL_CLOSED, TLS_FAIL_CLOSED },
	{ "\x15\x03\x03\x00\x02\x02\x28", TLS_FAIL_ALERT, TLS_FAIL_ALERT },
};

static enum tls_failure meet(struct tls_ctx *ctx, bool server, const char *bytes, size_t n)
{
	struct tls *t;
	enum tls_failure f;
	int fds[2], r;

	socket_pair(fds);
	assert_int_equal(server ? tls_new_server(&t, ctx, fds[0]) : tls_new_client(&t, ctx, fds[0], "x.example", NULL),
			 0);
	assert_int_equal(send(fds[1], bytes, n, 0), (int)n);
	shutdown(fds[1], SHUT_WR);
	while ((r = tls_handshake(t)) > 0)
		wait_for(fds[0], POLLIN);
	assert_int_equal(r, -EPROTO);
	assert_int_equal(tls_handshake(t), r); /* stays so */
	f = tls_failure(t);
	tls_free(t);
	close(fds[0]);
	close(fds[1]);
	return f;
}

static void a_peer_that_does_not_speak_tls_is_told_apart(void **state _unused_)
{
	struct tls_ctx *s = server_with("good", (struct tls_server_options){ 0 });
	struct tls_ctx *c = client_ctx(&(struct tls_client_options){ .verify = false });

	for (size_t i = 0; i < ARRAY_SIZE(strangers); i++) {
		/* One of them has a NUL inside. */
		size_t n = strangers[i].send[0] == 0x16   ? 4
			   : strangers[i].send[0] == 0x15 ? 7
							  : strlen(strangers[i].send);
		assert_int_equal(meet(c, false, strangers[i].send, n), strangers[i].client);
		assert_int_equal(meet(s, true, strangers[i].send, n), strangers[i].server);
	}
	tls_ctx_unref(c);
	tls_ctx_unref(s);
}

static void a_bad_file_is_named(void **state _unused_)
{
	struct tls_ctx *ctx = NULL;
	char err[256];
	FILE *f = fopen(fixture_path("garbage"), "w");
	const char *garbage = fixture_path("garbage"), *none = fixture_path("none"), *good = fixture_path("good.pem");
	const struct {
		struct tls_client_options o;
		int want;
		const char *text;
	} cases[] = {
		{ { .verify = true, .ca_file = none }, -ENOENT, none },
		{ { .verify = true, .ca_file = garbage }, -EINVAL, garbage },
		{ { .verify = true, .ca_file = fixture_path("ca.pem"), .crl_file = good }, -EINVAL, good },
		{ { .cert = good }, -EINVAL, "both" },
		{ { .cert = none, .key = none }, -ENOENT, none },
		{ { .cert = good, .key = fixture_path("wild.key") }, -EINVAL, "wild.key" },
		{ { .min_version = "1.1" }, -EINVAL, "1.1" },
		{ { .min_version = "1.3", .max_version = "1.2" }, -EINVAL, "above" },
		{ { .ciphers = "NONSENSE" }, -EINVAL, "NONSENSE" },
	};

	fputs("-----BEGIN CERTIFICATE-----\nnot\n", f);
	fclose(f);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		err[0] = '\0';
		if (tls_ctx_new_client(&ctx, &cases[i].o, err, sizeof(err)) != cases[i].want ||
		    !strstr(err, cases[i].text))
			fail_msg("case %zu: %s", i, err);
	}
	assert_int_equal(tls_ctx_new_server(&ctx, &(struct tls_server_options){ 0 }, err, sizeof(err)), -EINVAL);
	assert_null(ctx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_bad_certificate_is_refused_with_its_own_reason),
		cmocka_unit_test(without_verification_anything_goes),
		cmocka_unit_test(verification_needs_a_name),
		cmocka_unit_test(a_server_chooses_by_exact_name_then_wildcard_then_first),
		cmocka_unit_test(peers_without_common_ground_say_so),
		cmocka_unit_test(a_peer_that_does_not_speak_tls_is_told_apart),
		cmocka_unit_test(a_bad_file_is_named),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
