/* SPDX-License-Identifier: Apache-2.0 */
#include "http/proxy_header.h"

#define V1_MAX 107u
#define V2_FIXED 16u

static const char v2_signature[12] = "\r\n\r\n\0\r\nQUIT\n";

/* A decimal number of at most `max` without leading zeros, up to `end`. False: it is none. */
static bool take_number(const char **p, const char *end, unsigned max, unsigned *out)
{
	const char *start = *p;
	unsigned v = 0;

	while (*p < end && **p >= '0' && **p <= '9' && *p - start < 5)
		v = v * 10 + (unsigned)(*(*p)++ - '0');
	*out = v;
	return *p > start && v <= max && (*start != '0' || *p - start == 1);
}

static bool take_ip4(const char **p, const char *end, unsigned char out[16])
{
	for (int i = 0; i < 4; i++) {
		unsigned v;

		if ((i > 0 && (*p >= end || *(*p)++ != '.')) || !take_number(p, end, 255, &v))
			return false;
		out[i] = (unsigned char)v;
	}
	return true;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Groups of hex digits with at most one "::" (RFC 4291 2.2, forms 1 and 2). */
static bool take_ip6(const char **p, const char *end, unsigned char out[16])
{
	unsigned char head[16], tail[16];
	size_t nh = 0, nt = 0;
	bool gap = false, more = true;

	if (end - *p >= 2 && (*p)[0] == ':' && (*p)[1] == ':') {
		gap = true;
		*p += 2;
		more = *p < end && hex_digit(**p) >= 0;
	}
	while (more) {
		unsigned v = 0;
		int digits = 0;
		unsigned char *to = gap ? &tail[nt] : &head[nh];

		while (*p < end && hex_digit(**p) >= 0 && digits < 4) {
			v = v * 16 + (unsigned)hex_digit(*(*p)++);
			digits++;
		}
		if (digits == 0 || nh + nt >= 16)
			return false;
		to[0] = (unsigned char)(v >> 8);
		to[1] = (unsigned char)v;
		*(gap ? &nt : &nh) += 2;
		more = *p < end && **p == ':';
		if (!more)
			break;
		(*p)++;
		if (*p < end && **p == ':') {
			if (gap)
				return false;
			gap = true;
			(*p)++;
			more = *p < end && hex_digit(**p) >= 0;
		}
	}
	if (gap ? nh + nt > 14 : nh != 16)
		return false;
	memset(out, 0, 16);
	memcpy(out, head, nh);
	memcpy(out + 16 - nt, tail, nt);
	return true;
}

static bool take_space(const char **p, const char *end)
{
	return *p < end && *(*p)++ == ' ';
}

static int parse_v1(const char *p, size_t n, struct proxy_header *out)
{
	const char *eol = memchr(p, '\n', MIN_OF(n, V1_MAX)), *end;
	unsigned char dst[16];
	unsigned sport, dport;
	bool six;

	if (!eol)
		return n >= V1_MAX ? HTTP_BAD : HTTP_MORE;
	if (eol == p || eol[-1] != '\r')
		return HTTP_BAD;
	out->len = (size_t)(eol - p) + 1;
	end = eol - 1;
	p += 6;
	if (end - p >= 7 && memcmp(p, "UNKNOWN", 7) == 0)
		return 0; /* whatever follows is to be ignored */
	if (end - p < 5 || memcmp(p, "TCP", 3) != 0 || (p[3] != '4' && p[3] != '6') || p[4] != ' ')
		return HTTP_BAD;
	six = p[3] == '6';
	p += 5;
	if (!(six ? take_ip6(&p, end, out->addr) : take_ip4(&p, end, out->addr)) || !take_space(&p, end) ||
	    !(six ? take_ip6(&p, end, dst) : take_ip4(&p, end, dst)) || !take_space(&p, end) ||
	    !take_number(&p, end, 65535, &sport) || !take_space(&p, end) || !take_number(&p, end, 65535, &dport) ||
	    p != end)
		return HTTP_BAD;
	out->version = six ? 6 : 4;
	out->port = (uint16_t)sport;
	return 0;
}

static int parse_v2(const unsigned char *p, size_t n, struct proxy_header *out)
{
	size_t len, need;

	if (n < V2_FIXED)
		return HTTP_MORE;
	len = (size_t)p[14] << 8 | p[15];
	out->len = V2_FIXED + len;
	if (p[12] >> 4 != 2 || (p[12] & 15) > 1 || out->len > PROXY_HEADER_MAX)
		return HTTP_BAD;
	if (n < out->len)
		return HTTP_MORE;
	if ((p[12] & 15) == 0) /* LOCAL: the balancer's own check */
		return 0;
	switch (p[13]) {
	case 0x11: /* TCP over IPv4 */
		need = 12;
		out->version = 4;
		break;
	case 0x21: /* TCP over IPv6 */
		need = 36;
		out->version = 6;
		break;
	case 0x00: /* unspecified */
	case 0x31: /* unix stream */
		return 0;
	default:
		return HTTP_BAD;
	}
	if (len < need)
		return HTTP_BAD;
	memcpy(out->addr, p + V2_FIXED, out->version == 4 ? 4 : 16);
	p += V2_FIXED + (out->version == 4 ? 8 : 32);
	out->port = (uint16_t)(p[0] << 8 | p[1]);
	return 0;
}

int proxy_header_parse(const char *p, size_t n, struct proxy_header *out)
{
	*out = (struct proxy_header){ 0 };
	if (n && memcmp(p, "PROXY ", MIN_OF(n, 6u)) == 0)
		return n < 6 ? HTTP_MORE : parse_v1(p, n, out);
	if (n && memcmp(p, v2_signature, MIN_OF(n, sizeof(v2_signature))) == 0)
		return n < sizeof(v2_signature) ? HTTP_MORE : parse_v2((const unsigned char *)p, n, out);
	return n ? HTTP_BAD : HTTP_MORE;
}
