/* SPDX-License-Identifier: Apache-2.0 */
/* Which upstream a request goes to: file order, hosts, wildcards, whole path segments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "conf/conf.h"

static const char head[] = "version: 1\n"
			   "upstreams:\n"
			   "  a: {servers: [{address: \"127.0.0.1:1\"}]}\n"
			   "  b: {servers: [{address: \"127.0.0.1:2\"}]}\n"
			   "  c: {servers: [{address: \"127.0.0.1:3\"}]}\n"
			   "listeners:\n"
			   "  - address: 127.0.0.1:6188\n"
			   "    routes:\n";

struct request {
	const char *host, *path, *upstream; /* NULL: no route takes it */
};

static void check_requests(const char *routes, const struct request *requests, size_t count)
{
	struct buf file = BUF_INIT, errors = BUF_INIT;
	struct conf *c;

	assert_int_equal(buf_printf(&file, "%s%s", head, routes), 0);
	if (conf_load_buffer(&c, "t", buf_data(&file), file.len, &errors) != 0)
		fail_msg(STR_FMT, STR_ARG(buf_str(&errors)));
	for (size_t i = 0; i < count; i++) {
		const struct conf_route *r = conf_route_match(&c->listeners[0], str_from(requests[i].host), str_from(requests[i].path));
		const char *got = r ? c->upstreams[r->upstream].name : "none";

		if (strcmp(got, requests[i].upstream ? requests[i].upstream : "none") != 0)
			fail_msg("%s%s went to %s", requests[i].host, requests[i].path, got);
	}
	conf_unref(c);
	buf_deinit(&file);
	buf_deinit(&errors);
}

static void the_first_route_that_fits_wins(void **state)
{
	static const struct request requests[] = {
		{ "example.org", "/api", "a" },	    { "example.org", "/api/x", "a" }, { "example.org", "/apix", "b" },
		{ "example.org", "/", "b" },	    { "example.com", "/api", "c" },   { "", "/", "c" },
	};

	(void)state;
	check_requests("      - {host: example.org, path_prefix: /api, upstream: a}\n"
		       "      - {host: example.org, upstream: b}\n"
		       "      - {upstream: c}\n",
		       requests, ARRAY_SIZE(requests));
}

static void hosts_are_compared_without_case_and_final_dot(void **state)
{
	static const struct request requests[] = {
		{ "EXAMPLE.org", "/", "a" }, { "example.org.", "/", "a" }, { "example.orgx", "/", NULL },
		{ "xexample.org", "/", NULL }, { "[::1]", "/", "b" }, { "::1", "/", NULL }, { ".", "/", NULL }, { "", "/", NULL },
	};

	(void)state;
	check_requests("      - {host: Example.ORG, upstream: a}\n"
		       "      - {host: \"[::1]\", upstream: b}\n",
		       requests, ARRAY_SIZE(requests));
}

static void wildcards_take_subdomains_only(void **state)
{
	static const struct request requests[] = {
		{ "a.example.org", "/", "a" },	{ "a.b.example.org", "/", "a" }, { "A.EXAMPLE.ORG", "/", "a" },
		{ "example.org", "/", "b" },	{ ".example.org", "/", "b" },	 { "aexample.org", "/", "b" },
		{ "a.example.org.evil", "/", "b" },
	};

	(void)state;
	check_requests("      - {host: \"*.example.org\", upstream: a}\n"
		       "      - {host: \"*\", upstream: b}\n",
		       requests, ARRAY_SIZE(requests));
}

static void file_order_beats_exactness(void **state)
{
	static const struct request requests[] = { { "a.example.org", "/", "a" }, { "b.example.org", "/", "a" } };

	(void)state;
	check_requests("      - {host: \"*.example.org\", upstream: a}\n"
		       "      - {host: b.example.org, upstream: b}\n",
		       requests, ARRAY_SIZE(requests));
}

static void prefixes_take_whole_segments(void **state)
{
	static const struct request requests[] = {
		{ "h", "/api", "a" },	 { "h", "/api/", "a" }, { "h", "/api/v1", "a" }, { "h", "/apis", "c" }, { "h", "/API", "c" },
		{ "h", "/dir/", "b" },	 { "h", "/dir/x", "b" }, { "h", "/dir", "c" },	 { "h", "/", "c" },	{ "h", "*", NULL },
		{ "h", "", NULL },
	};

	(void)state;
	check_requests("      - {path_prefix: /api, upstream: a}\n"
		       "      - {path_prefix: /dir/, upstream: b}\n"
		       "      - {path_prefix: /, upstream: c}\n",
		       requests, ARRAY_SIZE(requests));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_route_that_fits_wins),
		cmocka_unit_test(hosts_are_compared_without_case_and_final_dot),
		cmocka_unit_test(wildcards_take_subdomains_only),
		cmocka_unit_test(file_order_beats_exactness),
		cmocka_unit_test(prefixes_take_whole_segments),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
