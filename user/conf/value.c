/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Single values. Numbers are strict: digits only, no sign, no blanks, no
 * fractions, and every step is checked for overflow. A size without a unit is
 * bytes; a duration without a unit is refused, because 15 could be seconds or
 * milliseconds.
 */
#include "conf/value.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>

#define DISTANCE_MAX 64

struct unit {
	const char *name;
	uint64_t factor;
};

static const struct unit size_units[] = {
	{ "", 1 },	       { "B", 1 },	      { "KiB", 1ull << 10 }, { "MiB", 1ull << 20 }, { "GiB", 1ull << 30 },
	{ "TiB", 1ull << 40 }, { "KB", 1000ull },     { "kB", 1000ull },     { "MB", 1000000ull },
	{ "GB", 1000000000ull }, { "TB", 1000000000000ull },
};

static const struct unit duration_units[] = {
	{ "ms", 1 }, { "s", 1000 }, { "m", 60 * 1000 }, { "h", 3600 * 1000 }, { "d", 86400 * 1000 },
};

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_alnum(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Leading digits; *used says how many bytes they were. */
static int take_digits(struct str s, uint64_t *out, size_t *used)
{
	uint64_t v = 0;
	size_t i = 0;

	for (; i < s.n && is_digit(s.p[i]); i++)
		if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(s.p[i] - '0'), &v))
			return -ERANGE;
	if (i == 0)
		return -EINVAL;
	*out = v;
	*used = i;
	return 0;
}

static int take_unit(struct str s, const struct unit *units, size_t count, uint64_t *out)
{
	uint64_t v;
	size_t used;
	int r = take_digits(s, &v, &used);

	if (r < 0)
		return r;
	s = (struct str){ s.p + used, s.n - used };
	for (size_t i = 0; i < count; i++)
		if (str_eqz(s, units[i].name))
			return __builtin_mul_overflow(v, units[i].factor, out) ? -ERANGE : 0;
	return -EINVAL;
}

int value_u64(struct str s, uint64_t *out)
{
	size_t used;
	uint64_t v;
	int r = take_digits(s, &v, &used);

	if (r < 0)
		return r;
	if (used != s.n)
		return -EINVAL;
	*out = v;
	return 0;
}

int value_size(struct str s, uint64_t *out)
{
	return take_unit(s, size_units, ARRAY_SIZE(size_units), out);
}

int value_duration(struct str s, uint64_t *out)
{
	return take_unit(s, duration_units, ARRAY_SIZE(duration_units), out);
}

int value_bool(struct str s, bool *out)
{
	if (str_eq(s, STR("true")))
		*out = true;
	else if (str_eq(s, STR("false")))
		*out = false;
	else
		return -EINVAL;
	return 0;
}

const char *value_address_text(enum address_fault f)
{
	static const char *const text[] = {
		[ADDRESS_OK] = "fine",
		[ADDRESS_EMPTY] = "is empty, write an address such as \"127.0.0.1:8080\"",
		[ADDRESS_NO_PORT] = "has no port, write address:port such as \"127.0.0.1:8080\"",
		[ADDRESS_BAD_PORT] = "has no valid port, write one from 1 to 65535 after the last colon",
		[ADDRESS_PORT_ZERO] = "has port 0, write one from 1 to 65535",
		[ADDRESS_BAD_V4] = "is not an IPv4 address, write four numbers from 0 to 255 such as \"127.0.0.1:8080\"",
		[ADDRESS_BAD_V6] = "is not an IPv6 address, write it as \"[::1]:8080\"",
		[ADDRESS_BARE_V6] = "is not clear: put an IPv6 address in brackets, \"[::1]:8080\"",
		[ADDRESS_URL] = "is a URL, write only its \"name:port\"; a tls section says that it is HTTPS",
		[ADDRESS_NOT_NUMERIC] = "is a name, to listen write a number such as \"0.0.0.0:6188\", \"[::]:6188\" or unix:/path",
		[ADDRESS_BAD_NAME] = "is neither an address nor a host name, write \"name:port\" with letters, digits, - and .",
		[ADDRESS_UNIX_EMPTY] = "has no path, write unix:/path/to/socket",
		[ADDRESS_UNIX_LONG] = "has too long a path, a unix socket's has at most 107 bytes",
	};
	_Static_assert(ARRAY_SIZE(text) == _ADDRESS_MAX, "one text for each fault");
	return text[f];
}

static enum address_fault parse_unix(struct str path, struct conf_addr *out)
{
	if (path.n == 0)
		return ADDRESS_UNIX_EMPTY;
	if (path.n >= sizeof(out->un.sun_path))
		return ADDRESS_UNIX_LONG;
	out->un.sun_family = AF_UNIX;
	memcpy(out->un.sun_path, path.p, path.n);
	out->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path.n + 1);
	return ADDRESS_OK;
}

/* inet_pton wants a terminated string. */
static bool pton(int family, struct str s, void *out)
{
	char z[INET6_ADDRSTRLEN];

	if (s.n >= sizeof(z))
		return false;
	memcpy(z, s.p, s.n);
	z[s.n] = '\0';
	return inet_pton(family, z, out) == 1;
}

/* Only digits and dots: nobody means a name by it. */
static bool looks_v4(struct str s)
{
	for (size_t i = 0; i < s.n; i++)
		if (!is_digit(s.p[i]) && s.p[i] != '.')
			return false;
	return s.n > 0;
}

bool value_is_name(struct str s)
{
	size_t label = 0;

	if (s.n == 0 || s.n > 253 || looks_v4(s))
		return false;
	for (size_t i = 0; i < s.n; i++) {
		if (s.p[i] == '.') {
			if (label == 0)
				return false;
			label = 0;
			continue;
		}
		if (!is_alnum(s.p[i]) && s.p[i] != '-' && s.p[i] != '_')
			return false;
		if (++label > 63)
			return false;
	}
	return label > 0;
}

struct str value_host_alone(struct str s)
{
	const char *colon = s.n ? memrchr(s.p, ':', s.n) : NULL;

	if (!colon || memchr(colon, ']', (size_t)(s.p + s.n - colon)))
		return s;
	return (struct str){ s.p, (size_t)(colon - s.p) };
}

bool value_is_host(struct str s, bool port)
{
	struct str alone = value_host_alone(s);
	struct in6_addr any;
	uint64_t n;

	if (alone.n != s.n) {
		struct str digits = { alone.p + alone.n + 1, s.n - alone.n - 1 };

		if (!port || value_u64(digits, &n) < 0 || n == 0 || n > UINT16_MAX)
			return false;
	}
	if (alone.n > 2 && alone.p[0] == '[' && alone.p[alone.n - 1] == ']')
		return pton(AF_INET6, (struct str){ alone.p + 1, alone.n - 2 }, &any);
	return value_is_name(alone) || pton(AF_INET, alone, &any);
}

bool value_is_token(struct str s)
{
	for (size_t i = 0; i < s.n; i++)
		if (s.p[i] == '\0' || (!is_alnum(s.p[i]) && !strchr("!#$%&'*+-.^_`|~", s.p[i])))
			return false;
	return s.n > 0;
}

/* Splits host and port at the last colon; brackets are taken off. */
static enum address_fault split(struct str s, struct str *host, bool *bracketed, uint16_t *port)
{
	const char *colon = s.n ? memrchr(s.p, ':', s.n) : NULL;
	uint64_t v;

	if (s.n == 0)
		return ADDRESS_EMPTY;
	if (memmem(s.p, s.n, "://", 3))
		return ADDRESS_URL;
	*bracketed = s.p[0] == '[';
	if (*bracketed) {
		const char *close = memchr(s.p, ']', s.n);

		if (!close)
			return ADDRESS_BAD_V6;
		if (close + 1 == s.p + s.n)
			return ADDRESS_NO_PORT;
		if (close[1] != ':')
			return ADDRESS_BAD_V6;
		colon = close + 1;
		*host = (struct str){ s.p + 1, (size_t)(close - s.p - 1) };
	} else {
		if (!colon)
			return ADDRESS_NO_PORT;
		*host = (struct str){ s.p, (size_t)(colon - s.p) };
		if (memchr(host->p, ':', host->n))
			return ADDRESS_BARE_V6;
		if (host->n == 0)
			return ADDRESS_BAD_NAME;
	}
	if (value_u64((struct str){ colon + 1, (size_t)(s.p + s.n - colon - 1) }, &v) < 0 || v > UINT16_MAX)
		return ADDRESS_BAD_PORT;
	*port = (uint16_t)v;
	return ADDRESS_OK;
}

static enum address_fault fill_v4(struct str host, uint16_t port, struct conf_addr *out)
{
	if (!pton(AF_INET, host, &out->in.sin_addr))
		return ADDRESS_BAD_V4;
	out->in.sin_family = AF_INET;
	out->in.sin_port = htons(port);
	out->len = sizeof(out->in);
	return ADDRESS_OK;
}

static enum address_fault fill_v6(struct str host, uint16_t port, struct conf_addr *out)
{
	if (!pton(AF_INET6, host, &out->in6.sin6_addr))
		return ADDRESS_BAD_V6;
	out->in6.sin6_family = AF_INET6;
	out->in6.sin6_port = htons(port);
	out->len = sizeof(out->in6);
	return ADDRESS_OK;
}

static bool is_unix(struct str s, struct str *path)
{
	if (s.n < 5 || memcmp(s.p, "unix:", 5) != 0)
		return false;
	*path = (struct str){ s.p + 5, s.n - 5 };
	return true;
}

enum address_fault value_bind(struct str s, struct conf_addr *out)
{
	enum address_fault f;
	struct str host, path;
	bool bracketed;
	uint16_t port;

	if (is_unix(s, &path))
		return parse_unix(path, out);
	f = split(s, &host, &bracketed, &port);
	if (f != ADDRESS_OK)
		return f;
	if (bracketed)
		return fill_v6(host, port, out);
	if (str_eq(host, STR("*")))
		return fill_v4(STR("0.0.0.0"), port, out);
	if (looks_v4(host))
		return fill_v4(host, port, out);
	return value_is_name(host) ? ADDRESS_NOT_NUMERIC : ADDRESS_BAD_V4;
}

enum address_fault value_server(struct str s, struct value_server *out)
{
	enum address_fault f;
	struct str path;
	bool bracketed;

	*out = (struct value_server){ .kind = CONF_SERVER_INET, .host = STR("") };
	if (is_unix(s, &path)) {
		out->kind = CONF_SERVER_UNIX;
		return parse_unix(path, &out->addr);
	}
	f = split(s, &out->host, &bracketed, &out->port);
	if (f != ADDRESS_OK)
		return f;
	if (out->port == 0)
		return ADDRESS_PORT_ZERO;
	if (bracketed)
		return fill_v6(out->host, out->port, &out->addr);
	if (looks_v4(out->host))
		return fill_v4(out->host, out->port, &out->addr);
	if (!value_is_name(out->host))
		return ADDRESS_BAD_NAME;
	out->kind = CONF_SERVER_NAME;
	return ADDRESS_OK;
}

unsigned value_distance(struct str a, struct str b)
{
	uint8_t row[3][DISTANCE_MAX];
	uint8_t *before = row[0], *above = row[1], *here = row[2];

	if (a.n >= DISTANCE_MAX || b.n >= DISTANCE_MAX)
		return DISTANCE_MAX;
	for (size_t j = 0; j <= b.n; j++)
		above[j] = (uint8_t)j;
	for (size_t i = 1; i <= a.n; i++) {
		uint8_t *reuse = before;

		here[0] = (uint8_t)i;
		for (size_t j = 1; j <= b.n; j++) {
			unsigned best = above[j - 1] + (a.p[i - 1] != b.p[j - 1]);

			best = MIN_OF(best, above[j] + 1u);
			best = MIN_OF(best, here[j - 1] + 1u);
			if (i > 1 && j > 1 && a.p[i - 1] == b.p[j - 2] && a.p[i - 2] == b.p[j - 1])
				best = MIN_OF(best, before[j - 2] + 1u);
			here[j] = (uint8_t)best;
		}
		before = above;
		above = here;
		here = reuse;
	}
	return above[b.n];
}

const char *value_nearest(struct str text, const char *best_so_far, const char *candidate)
{
	struct str c = str_from(candidate);
	unsigned d = value_distance(text, c);
	/* A third of the letters may differ: "thread" is a slip of "threads", "cat" is not one of "key". */
	bool near = d <= (MAX_OF(text.n, c.n) + 1) / 3;

	if (!near || (best_so_far && value_distance(text, str_from(best_so_far)) <= d))
		return best_so_far;
	return candidate;
}
