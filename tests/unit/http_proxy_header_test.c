/* SPDX-License-Identifier: Apache-2.0 */
/* PROXY protocol headers, versions 1 and 2: what is taken, what is refused, at every cut. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

#include "http/proxy_header.h"

#define V2 "\r\n\r\n\0\r\nQUIT\n"
#define BYTES(lit) lit, sizeof(lit) - 1

static const struct {
	const char *p;
	size_t n;
	int result;
	int version;
	const char *addr;
	uint16_t port;
} cases[] = {
	{ BYTES("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"), 0, 4, "192.168.0.1", 56324 },
	{ BYTES("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"), 0, 4, "255.255.255.255", 65535 },
	{ BYTES("PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), 0, 6, "2001:db8::1", 1 },
	{ BYTES("PROXY TCP6 1:2:3:4:5:6:7:8 :: 0 2\r\n"), 0, 6, "1:2:3:4:5:6:7:8", 0 },
	{ BYTES("PROXY TCP6 ::ffff:0102:0304 1:: 9 2\r\n"), 0, 6, "::ffff:1.2.3.4", 9 },
	{ BYTES("PROXY UNKNOWN\r\n"), 0, 0, NULL, 0 },
	{ BYTES("PROXY UNKNOWN ffff:: anything 1 2\r\n"), 0, 0, NULL, 0 },
	{ BYTES("PROXY TCP4 192.168.0.256 1.1.1.1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP4 192.168.0.01 1.1.1.1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP4 1.1.1.1 1.1.1.1 65536 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP4 1.1.1.1 1.1.1.1 1 2 \r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP4 1.1.1.1  1.1.1.1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP4 1.1.1.1 1.1.1.1 1 2\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP6 1::2::3 ::1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY TCP6 1:2:3:4:5:6:7 ::1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("PROXY UDP4 1.1.1.1 1.1.1.1 1 2\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES("GET / HTTP/1.1\r\n"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES(V2 "\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50"), 0, 4, "10.0.0.1", 0x1234 },
	{ BYTES(V2 "\x21\x11\x00\x0f\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50\x04\x00\x00"), 0, 4, "10.0.0.1",
	  0x1234 },
	{ BYTES(V2 "\x20\x00\x00\x00"), 0, 0, NULL, 0 },
	{ BYTES(V2 "\x21\x11\x00\x0b\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES(V2 "\x11\x11\x00\x0c"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES(V2 "\x21\x11\xff\xff"), HTTP_BAD, 0, NULL, 0 },
	{ BYTES(V2 "\x21\x12\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50"), HTTP_BAD, 0, NULL, 0 },
};

static void headers_are_read_as_the_specification_says(_unused_ void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct proxy_header h;
		char text[INET6_ADDRSTRLEN] = "";

		assert_int_equal(proxy_header_parse(cases[i].p, cases[i].n, &h), cases[i].result);
		if (cases[i].result != 0)
			continue;
		assert_int_equal(h.len, cases[i].n);
		assert_int_equal(h.version, cases[i].version);
		if (!cases[i].addr)
			continue;
		inet_ntop(h.version == 4 ? AF_INET : AF_INET6, h.addr, text, sizeof(text));
		assert_string_equal(text, cases[i].addr);
		assert_int_equal(h.port, cases[i].port);
	}
}

static void a_cut_header_asks_for_more(_unused_ void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct proxy_header h;

		if (cases[i].result != 0)
			continue;
		for (size_t n = 0; n < cases[i].n; n++)
			assert_int_equal(proxy_header_parse(cases[i].p, n, &h), HTTP_MORE);
	}
}

static void an_endless_line_is_refused(_unused_ void **state)
{
	char line[200];
	struct proxy_header h;

	memset(line, '1', sizeof(line));
	memcpy(line, "PROXY TCP4 ", 11);
	assert_int_equal(proxy_header_parse(line, 106, &h), HTTP_MORE);
	assert_int_equal(proxy_header_parse(line, 107, &h), HTTP_BAD);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(headers_are_read_as_the_specification_says),
		cmocka_unit_test(a_cut_header_asks_for_more),
		cmocka_unit_test(an_endless_line_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
