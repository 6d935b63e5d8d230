/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PROXY protocol, versions 1 and 2 (the haproxy project's
 * proxy-protocol.txt): a header in front of a connection's first byte that
 * tells for whom a load balancer in front of us has opened it.
 */
#pragma once
#include "http/http.h"

#define PROXY_HEADER_MAX 536u /* longest accepted, TLVs included */

struct proxy_header {
	size_t len;   /* bytes of the header */
	int version;  /* 4 or 6: addr holds an IPv4 (4 bytes) or IPv6 address; 0: none was told (LOCAL, UNKNOWN, unix) */
	unsigned char addr[16];
	uint16_t port; /* of the client */
};

/*
 * Parses the header at p[0..n). 0: *out is filled; HTTP_MORE; HTTP_BAD: these
 * bytes can not begin one, or it is longer than PROXY_HEADER_MAX.
 */
int proxy_header_parse(const char *p, size_t n, struct proxy_header *out);
