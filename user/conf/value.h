/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Single values: text to number, size, duration, address. Pure; no memory,
 * no messages. Each function answers 0, or -EINVAL when the text is not of
 * its kind, or -ERANGE when it is but does not fit 64 bits.
 */
#pragma once
#include "conf/conf.h"

/* Plain decimal digits. */
int value_u64(struct str s, uint64_t *out);
/* Digits and, if any, KiB MiB GiB TiB (powers of 1024) or KB MB GB TB (of 1000) or B. */
int value_size(struct str s, uint64_t *out);
/* Digits and one of ms s m h d, always with a unit; in milliseconds. */
int value_duration(struct str s, uint64_t *out);
int value_bool(struct str s, bool *out);

/* What is wrong with an address, each with its own words in value_address_text. */
enum address_fault {
	ADDRESS_OK,
	ADDRESS_EMPTY,
	ADDRESS_NO_PORT,
	ADDRESS_BAD_PORT,
	ADDRESS_PORT_ZERO,
	ADDRESS_BAD_V4,
	ADDRESS_BAD_V6,
	ADDRESS_BARE_V6,
	ADDRESS_URL,
	ADDRESS_NOT_NUMERIC,
	ADDRESS_BAD_NAME,
	ADDRESS_UNIX_EMPTY,
	ADDRESS_UNIX_LONG,
	_ADDRESS_MAX,
};

/* An address to listen on: IPv4:port, [IPv6]:port, *:port (IPv4), unix:path. Port 0 is allowed. Leaves text alone. */
enum address_fault value_bind(struct str s, struct conf_addr *out);

/* An address to connect to: IPv4:port, [IPv6]:port, name:port, unix:path. */
struct value_server {
	enum conf_server_kind kind;
	struct conf_addr addr;
	struct str host; /* view into s; empty for unix */
	uint16_t port;
};
enum address_fault value_server(struct str s, struct value_server *out);
const char *value_address_text(enum address_fault f);

/* Letters, digits, '-', '_' in labels of 1..63 joined by dots, 1..253 in all, and not an IPv4 address. */
bool value_is_name(struct str s);
/* What may stand in Host: a name, an IPv4 address, an IPv6 address in brackets; with port also followed by :1..65535. */
bool value_is_host(struct str s, bool port);
/* Host without its port. */
struct str value_host_alone(struct str s);
/* RFC 9110 section 5.6.2. */
bool value_is_token(struct str s);

/* Edit distance with transpositions of neighbours counted as one; texts beyond 63 bytes are far from everything. */
unsigned value_distance(struct str a, struct str b);
/* The candidate that text is most likely a slip of, or NULL when none is near. */
const char *value_nearest(struct str text, const char *best_so_far, const char *candidate);
