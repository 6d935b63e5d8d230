/* SPDX-License-Identifier: Apache-2.0 */
/* Single values of the configuration: units, addresses, names, and which word a slip was meant to be. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <arpa/inet.h>
#include <cmocka.h>

#include "conf/value.h"

struct number_case {
	const char *text;
	int result;
	uint64_t value;
};

static void check_numbers(int (*read)(struct str, uint64_t *), const struct number_case *cases, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t v = 4711;
		int r = read(str_from(cases[i].text), &v);

		if (r != cases[i].result || (r == 0 && v != cases[i].value))
			fail_msg("\"%s\": %d, %llu", cases[i].text, r, (unsigned long long)v);
	}
}

static void sizes_have_binary_and_decimal_units(void **state)
{
	static const struct number_case cases[] = {
		{ "0", 0, 0 },
		{ "4096", 0, 4096 },
		{ "1B", 0, 1 },
		{ "64KiB", 0, 65536 },
		{ "1MiB", 0, 1 << 20 },
		{ "3GiB", 0, 3ull << 30 },
		{ "2TiB", 0, 2ull << 40 },
		{ "1KB", 0, 1000 },
		{ "1kB", 0, 1000 },
		{ "5MB", 0, 5000000 },
		{ "1GB", 0, 1000000000 },
		{ "1TB", 0, 1000000000000ull },
		{ "18446744073709551615", 0, UINT64_MAX },
		{ "18446744073709551616", -ERANGE, 0 },
		{ "16777216TiB", -ERANGE, 0 },
		{ "", -EINVAL, 0 },
		{ "KiB", -EINVAL, 0 },
		{ "1K", -EINVAL, 0 },
		{ "1M", -EINVAL, 0 },
		{ "1 KiB", -EINVAL, 0 },
		{ "1.5MiB", -EINVAL, 0 },
		{ "-1", -EINVAL, 0 },
		{ "+1", -EINVAL, 0 },
		{ "0x10", -EINVAL, 0 },
		{ "1kib", -EINVAL, 0 },
	};

	(void)state;
	check_numbers(value_size, cases, ARRAY_SIZE(cases));
}

static void times_are_milliseconds_and_need_a_unit(void **state)
{
	static const struct number_case cases[] = {
		{ "250ms", 0, 250 },
		{ "0s", 0, 0 },
		{ "15s", 0, 15000 },
		{ "2m", 0, 120000 },
		{ "1h", 0, 3600000 },
		{ "1d", 0, 86400000 },
		{ "15", -EINVAL, 0 },
		{ "1.5s", -EINVAL, 0 },
		{ "s", -EINVAL, 0 },
		{ "1S", -EINVAL, 0 },
		{ "1s ", -EINVAL, 0 },
		{ "1m30s", -EINVAL, 0 },
		{ "18446744073709551615s", -ERANGE, 0 },
		{ "99999999999999999999s", -ERANGE, 0 },
	};

	(void)state;
	check_numbers(value_duration, cases, ARRAY_SIZE(cases));
}

static void counts_are_plain_digits(void **state)
{
	static const struct number_case cases[] = {
		{ "0", 0, 0 },	      { "007", 0, 7 },	    { "12", 0, 12 },	   { "12 ", -EINVAL, 0 }, { " 12", -EINVAL, 0 },
		{ "1_0", -EINVAL, 0 }, { "1e3", -EINVAL, 0 }, { "-0", -EINVAL, 0 }, { "", -EINVAL, 0 },
	};

	(void)state;
	check_numbers(value_u64, cases, ARRAY_SIZE(cases));
}

static void booleans_are_true_and_false_only(void **state)
{
	bool b = false;

	(void)state;
	assert_int_equal(value_bool(STR("true"), &b), 0);
	assert_true(b);
	assert_int_equal(value_bool(STR("false"), &b), 0);
	assert_false(b);
	assert_int_equal(value_bool(STR("yes"), &b), -EINVAL);
	assert_int_equal(value_bool(STR("True"), &b), -EINVAL);
	assert_int_equal(value_bool(STR(""), &b), -EINVAL);
}

/* The parsed address back as text, so that a table can hold it. */
static const char *addr_text(const struct conf_addr *a)
{
	static char out[200];
	char ip[INET6_ADDRSTRLEN];

	if (a->len == 0)
		return "-";
	switch (a->sa.sa_family) {
	case AF_INET:
		inet_ntop(AF_INET, &a->in.sin_addr, ip, sizeof(ip));
		snprintf(out, sizeof(out), "4 %s %u", ip, ntohs(a->in.sin_port));
		break;
	case AF_INET6:
		inet_ntop(AF_INET6, &a->in6.sin6_addr, ip, sizeof(ip));
		snprintf(out, sizeof(out), "6 %s %u", ip, ntohs(a->in6.sin6_port));
		break;
	default:
		snprintf(out, sizeof(out), "u %s %zu", a->un.sun_path, (size_t)a->len);
	}
	return out;
}

#define PATH_107 "/1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456"

static void addresses_to_listen_on_are_numeric(void **state)
{
	static const struct {
		const char *text;
		enum address_fault fault;
		const char *addr;
	} cases[] = {
		{ "0.0.0.0:6188", ADDRESS_OK, "4 0.0.0.0 6188" },
		{ "127.0.0.1:0", ADDRESS_OK, "4 127.0.0.1 0" },
		{ "*:80", ADDRESS_OK, "4 0.0.0.0 80" },
		{ "[::]:6188", ADDRESS_OK, "6 :: 6188" },
		{ "[::1]:65535", ADDRESS_OK, "6 ::1 65535" },
		{ "unix:/run/s.sock", ADDRESS_OK, "u /run/s.sock 14" },
		{ "unix:" PATH_107, ADDRESS_OK, "u " PATH_107 " 110" },
		{ "unix:" PATH_107 "x", ADDRESS_UNIX_LONG, NULL },
		{ "unix:", ADDRESS_UNIX_EMPTY, NULL },
		{ "", ADDRESS_EMPTY, NULL },
		{ "6188", ADDRESS_NO_PORT, NULL },
		{ "127.0.0.1", ADDRESS_NO_PORT, NULL },
		{ "[::1]", ADDRESS_NO_PORT, NULL },
		{ "127.0.0.1:", ADDRESS_BAD_PORT, NULL },
		{ "127.0.0.1:65536", ADDRESS_BAD_PORT, NULL },
		{ "127.0.0.1:http", ADDRESS_BAD_PORT, NULL },
		{ "127.0.0.1:-1", ADDRESS_BAD_PORT, NULL },
		{ "1.2.3.256:80", ADDRESS_BAD_V4, NULL },
		{ "1.2.3:80", ADDRESS_BAD_V4, NULL },
		{ "[::g]:80", ADDRESS_BAD_V6, NULL },
		{ "[::1:80", ADDRESS_BAD_V6, NULL },
		{ "[::1]80", ADDRESS_BAD_V6, NULL },
		{ "[]:80", ADDRESS_BAD_V6, NULL },
		{ "::1:80", ADDRESS_BARE_V6, NULL },
		{ "http://0.0.0.0:80", ADDRESS_URL, NULL },
		{ "localhost:80", ADDRESS_NOT_NUMERIC, NULL },
		{ ":80", ADDRESS_BAD_NAME, NULL },
	};

	(void)state;
	_Static_assert(sizeof(PATH_107) == 108, "the longest path a unix address takes");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct conf_addr a = { .len = 0 };
		enum address_fault f = value_bind(str_from(cases[i].text), &a);

		if (f != cases[i].fault)
			fail_msg("\"%s\": %s", cases[i].text, value_address_text(f));
		if (f == ADDRESS_OK)
			assert_string_equal(addr_text(&a), cases[i].addr);
	}
}

static void addresses_of_servers_may_be_names(void **state)
{
	static const struct {
		const char *text;
		enum address_fault fault;
		enum conf_server_kind kind;
		const char *host;
		uint16_t port;
		const char *addr;
	} cases[] = {
		{ "1.1.1.1:443", ADDRESS_OK, CONF_SERVER_INET, "1.1.1.1", 443, "4 1.1.1.1 443" },
		{ "[2001:db8::1]:80", ADDRESS_OK, CONF_SERVER_INET, "2001:db8::1", 80, "6 2001:db8::1 80" },
		{ "unix:/a", ADDRESS_OK, CONF_SERVER_UNIX, "", 0, "u /a 5" },
		{ "localhost:8080", ADDRESS_OK, CONF_SERVER_NAME, "localhost", 8080, "-" },
		{ "a-b_c.example.org:1", ADDRESS_OK, CONF_SERVER_NAME, "a-b_c.example.org", 1, "-" },
		{ "localhost", ADDRESS_NO_PORT, 0, NULL, 0, NULL },
		{ "localhost:0", ADDRESS_PORT_ZERO, 0, NULL, 0, NULL },
		{ "1.1.1.1:0", ADDRESS_PORT_ZERO, 0, NULL, 0, NULL },
		{ "1.1.1.999:1", ADDRESS_BAD_V4, 0, NULL, 0, NULL },
		{ "a b:1", ADDRESS_BAD_NAME, 0, NULL, 0, NULL },
		{ "a..b:1", ADDRESS_BAD_NAME, 0, NULL, 0, NULL },
		{ "http://a:1", ADDRESS_URL, 0, NULL, 0, NULL },	   { "https://example.org", ADDRESS_URL, 0, NULL, 0, NULL },
		{ "*:80", ADDRESS_BAD_NAME, 0, NULL, 0, NULL },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct value_server s;
		enum address_fault f = value_server(str_from(cases[i].text), &s);

		if (f != cases[i].fault)
			fail_msg("\"%s\": %s", cases[i].text, value_address_text(f));
		if (f != ADDRESS_OK)
			continue;
		assert_int_equal(s.kind, cases[i].kind);
		assert_true(str_eqz(s.host, cases[i].host));
		assert_int_equal(s.port, cases[i].port);
		assert_string_equal(addr_text(&s.addr), cases[i].addr);
	}
}

static void hosts_are_names_or_literals(void **state)
{
	static const struct {
		const char *text;
		bool alone, with_port;
	} cases[] = {
		{ "example.org", true, true },	   { "example.org:80", false, true }, { "1.2.3.4", true, true },
		{ "1.2.3.4:80", false, true },	   { "[::1]", true, true },	      { "[::1]:80", false, true },
		{ "::1", false, false },	   { "a:", false, false },	      { "a:0", false, false },
		{ "a:65536", false, false },	   { "", false, false },	      { "a b", false, false },
		{ "a/b", false, false },	   { "1.2.3", false, false },	      { "a\r\nb", false, false },
		{ "[1.2.3.4]", false, false },	   { "u@h", false, false },	      { "[]", false, false },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct str s = str_from(cases[i].text);

		if (value_is_host(s, false) != cases[i].alone || value_is_host(s, true) != cases[i].with_port)
			fail_msg("\"%s\"", cases[i].text);
	}
}

static void distance_counts_edits_and_swaps(void **state)
{
	static const struct {
		const char *a, *b;
		unsigned d;
	} cases[] = {
		{ "", "", 0 },		    { "", "abc", 3 },	  { "threads", "threads", 0 }, { "thread", "threads", 1 },
		{ "threda", "thread", 1 },  { "kitten", "sitting", 3 }, { "pid-file", "pid_file", 1 }, { "abc", "xyz", 3 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_int_equal(value_distance(str_from(cases[i].a), str_from(cases[i].b)), cases[i].d);
		assert_int_equal(value_distance(str_from(cases[i].b), str_from(cases[i].a)), cases[i].d);
	}
}

static void the_nearest_word_is_found_only_when_near(void **state)
{
	static const char *const words[] = { "threads", "pid_file", "listeners", "upstreams", "user", "via" };
	static const struct {
		const char *text, *nearest;
	} cases[] = {
		{ "thread", "threads" }, { "Threads", "threads" }, { "pidfile", "pid_file" }, { "listner", "listeners" },
		{ "upstream", "upstreams" }, { "users", "user" }, { "zzz", NULL }, { "", NULL }, { "xyzuser", NULL },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *near = NULL;

		for (size_t j = 0; j < ARRAY_SIZE(words); j++)
			near = value_nearest(str_from(cases[i].text), near, words[j]);
		if (near != cases[i].nearest && (!near || !cases[i].nearest || strcmp(near, cases[i].nearest) != 0))
			fail_msg("\"%s\": %s", cases[i].text, near ? near : "none");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_have_binary_and_decimal_units),
		cmocka_unit_test(times_are_milliseconds_and_need_a_unit),
		cmocka_unit_test(counts_are_plain_digits),
		cmocka_unit_test(booleans_are_true_and_false_only),
		cmocka_unit_test(addresses_to_listen_on_are_numeric),
		cmocka_unit_test(addresses_of_servers_may_be_names),
		cmocka_unit_test(hosts_are_names_or_literals),
		cmocka_unit_test(distance_counts_edits_and_swaps),
		cmocka_unit_test(the_nearest_word_is_found_only_when_near),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
