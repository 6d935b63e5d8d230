/* SPDX-License-Identifier: Apache-2.0 */
/* The alphabet's table, and the words of the protocol: methods, field names, status phrases, hosts. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include "http/token.h"

/* Sixteen a row, from NUL on: the sums of the CH_ bits. */
const uint8_t http_char[256] = {
	0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	2, 15, 6, 3, 15, 15, 15, 15, 14, 14, 15, 15, 6, 15, 15, 6,
	63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 6, 14, 6, 14, 6, 6,
	6, 31, 31, 31, 31, 31, 31, 15, 15, 15, 15, 15, 15, 15, 15, 15,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 6, 6, 6, 7, 15,
	7, 31, 31, 31, 31, 31, 31, 15, 15, 15, 15, 15, 15, 15, 15, 15,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 6, 7, 6, 15, 0,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
};

bool parse_decimal(struct str s, uint64_t *out)
{
	uint64_t v = 0;

	if (!s.n)
		return false;
	for (size_t i = 0; i < s.n; i++) {
		if (!ch_is(s.p[i], CH_DIGIT))
			return false;
		if (v > (INT64_MAX - (uint64_t)(s.p[i] - '0')) / 10)
			return false;
		v = v * 10 + (uint64_t)(s.p[i] - '0');
	}
	*out = v;
	return true;
}

enum http_method http_method_id(struct str m)
{
	static const struct {
		struct str name;
		enum http_method id;
	} table[] = {
		{ { "GET", 3 }, HTTP_M_GET },	      { { "POST", 4 }, HTTP_M_POST },
		{ { "HEAD", 4 }, HTTP_M_HEAD },	      { { "PUT", 3 }, HTTP_M_PUT },
		{ { "DELETE", 6 }, HTTP_M_DELETE },   { { "OPTIONS", 7 }, HTTP_M_OPTIONS },
		{ { "PATCH", 5 }, HTTP_M_PATCH },     { { "TRACE", 5 }, HTTP_M_TRACE },
		{ { "CONNECT", 7 }, HTTP_M_CONNECT },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if (str_eq(m, table[i].name))
			return table[i].id;
	return HTTP_M_OTHER;
}

bool http_method_is_idempotent(enum http_method m)
{
	switch (m) {
	case HTTP_M_GET:
	case HTTP_M_HEAD:
	case HTTP_M_PUT:
	case HTTP_M_DELETE:
	case HTTP_M_OPTIONS:
	case HTTP_M_TRACE:
		return true;
	default:
		return false;
	}
}

/*
 * Equality in any case, by setting bit 5: right because the name holds token
 * characters only, and no token character but a letter or the same byte gives
 * a letter, digit or '-' that way. n is a constant where this is inlined.
 */
static inline __attribute__((always_inline)) bool name_is(const char *p, const char *lower, size_t n)
{
	size_t i = 0;

	for (; n - i >= 8; i += 8) {
		uint64_t a, b;

		memcpy(&a, p + i, 8);
		memcpy(&b, lower + i, 8);
		if ((a | 0x2020202020202020ull) != b)
			return false;
	}
	for (; i < n; i++)
		if ((p[i] | 0x20) != lower[i])
			return false;
	return true;
}

#define NAME(lit, id)                                \
	if (name_is(name.p, lit, sizeof(lit) - 1)) \
		return id

enum http_field_id http_field_id(struct str name)
{
	switch (name.n) {
	case 2:
		NAME("te", HTTP_F_TE);
		break;
	case 3:
		NAME("via", HTTP_F_VIA);
		break;
	case 4:
		NAME("host", HTTP_F_HOST);
		NAME("date", HTTP_F_DATE);
		break;
	case 6:
		NAME("cookie", HTTP_F_COOKIE);
		NAME("server", HTTP_F_SERVER);
		NAME("expect", HTTP_F_EXPECT);
		break;
	case 7:
		NAME("referer", HTTP_F_REFERER);
		NAME("upgrade", HTTP_F_UPGRADE);
		NAME("trailer", HTTP_F_TRAILER);
		break;
	case 10:
		NAME("connection", HTTP_F_CONNECTION);
		NAME("user-agent", HTTP_F_USER_AGENT);
		NAME("set-cookie", HTTP_F_SET_COOKIE);
		NAME("keep-alive", HTTP_F_KEEP_ALIVE);
		break;
	case 12:
		NAME("content-type", HTTP_F_CONTENT_TYPE);
		NAME("max-forwards", HTTP_F_MAX_FORWARDS);
		break;
	case 13:
		NAME("authorization", HTTP_F_AUTHORIZATION);
		break;
	case 14:
		NAME("content-length", HTTP_F_CONTENT_LENGTH);
		NAME("http2-settings", HTTP_F_HTTP2_SETTINGS);
		break;
	case 15:
		NAME("x-forwarded-for", HTTP_F_X_FORWARDED_FOR);
		break;
	case 16:
		NAME("content-encoding", HTTP_F_CONTENT_ENCODING);
		NAME("x-forwarded-host", HTTP_F_X_FORWARDED_HOST);
		NAME("proxy-connection", HTTP_F_PROXY_CONNECTION);
		break;
	case 17:
		NAME("transfer-encoding", HTTP_F_TRANSFER_ENCODING);
		NAME("x-forwarded-proto", HTTP_F_X_FORWARDED_PROTO);
		break;
	case 18:
		NAME("proxy-authenticate", HTTP_F_PROXY_AUTHENTICATE);
		break;
	case 19:
		NAME("proxy-authorization", HTTP_F_PROXY_AUTHORIZATION);
		break;
	default:
		break;
	}
	return HTTP_F_OTHER;
}

enum http_field_id field_id_of_gateway(struct str name)
{
	char z[24];

	if (name.n > sizeof(z) || !memchr(name.p, '_', name.n))
		return http_field_id(name);
	for (size_t i = 0; i < name.n; i++)
		z[i] = name.p[i] == '_' ? '-' : name.p[i];
	return http_field_id((struct str){ z, name.n });
}

static bool ipv6_is_valid(struct str s)
{
	char z[INET6_ADDRSTRLEN];
	struct in6_addr a;

	if (s.n >= sizeof(z))
		return false;
	memcpy(z, s.p, s.n);
	z[s.n] = '\0';
	return strlen(z) == s.n && inet_pton(AF_INET6, z, &a) == 1;
}

static bool port_is_valid(struct str s)
{
	uint64_t port;

	/* RFC 3986 3.2.3 lets the digits after the colon be missing. */
	return s.n == 0 || (s.n <= 5 && parse_decimal(s, &port) && port <= 65535);
}

bool http_host_is_valid(struct str host)
{
	size_t i;

	if (!host.n)
		return false;
	if (host.p[0] == '[') {
		const char *close = memchr(host.p, ']', host.n);

		if (!close)
			return false;
		i = (size_t)(close - host.p);
		if (!ipv6_is_valid((struct str){ host.p + 1, i - 1 }))
			return false;
		i++;
	} else {
		for (i = 0; i < host.n && ch_is(host.p[i], CH_REGNAME); i++)
			if (host.p[i] == '%' &&
			    (host.n - i < 3 || !ch_is(host.p[i + 1], CH_HEX) || !ch_is(host.p[i + 2], CH_HEX)))
				return false;
		if (i == 0)
			return false;
	}
	if (i == host.n)
		return true;
	return host.p[i] == ':' && port_is_valid((struct str){ host.p + i + 1, host.n - i - 1 });
}

const char *http_status_text(int status)
{
	switch (status) {
	case 100: return "Continue";
	case 101: return "Switching Protocols";
	case 103: return "Early Hints";
	case 200: return "OK";
	case 201: return "Created";
	case 202: return "Accepted";
	case 204: return "No Content";
	case 206: return "Partial Content";
	case 301: return "Moved Permanently";
	case 302: return "Found";
	case 303: return "See Other";
	case 304: return "Not Modified";
	case 307: return "Temporary Redirect";
	case 308: return "Permanent Redirect";
	case 400: return "Bad Request";
	case 401: return "Unauthorized";
	case 403: return "Forbidden";
	case 404: return "Not Found";
	case 405: return "Method Not Allowed";
	case 408: return "Request Timeout";
	case 411: return "Length Required";
	case 413: return "Content Too Large";
	case 414: return "URI Too Long";
	case 415: return "Unsupported Media Type";
	case 417: return "Expectation Failed";
	case 421: return "Misdirected Request";
	case 426: return "Upgrade Required";
	case 429: return "Too Many Requests";
	case 431: return "Request Header Fields Too Large";
	case 500: return "Internal Server Error";
	case 501: return "Not Implemented";
	case 502: return "Bad Gateway";
	case 503: return "Service Unavailable";
	case 504: return "Gateway Timeout";
	case 505: return "HTTP Version Not Supported";
	default: return "Unknown";
	}
}
