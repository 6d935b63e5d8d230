/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which route takes a request: the first in the file's order whose host and
 * prefix both fit. Pure, and on the path of every request: no allocation, no
 * copy, one pass over the listener's routes.
 */
#include "conf/conf.h"

static bool host_fits(const struct conf_route *r, struct str host)
{
	struct str want;

	if (!r->host)
		return true;
	want = str_from(r->host);
	if (!r->wildcard)
		return str_ieq(host, want);
	/* want is ".example.org": at least one byte of label must come before it. */
	return host.n > want.n && str_ieq((struct str){ host.p + host.n - want.n, want.n }, want);
}

static bool path_fits(const struct conf_route *r, struct str path)
{
	struct str want;

	if (!r->path_prefix)
		return true;
	want = str_from(r->path_prefix);
	if (path.n < want.n || memcmp(path.p, want.p, want.n) != 0)
		return false;
	/* Whole segments: the prefix ends with a slash, or the path ends or goes on with one. */
	return want.p[want.n - 1] == '/' || path.n == want.n || path.p[want.n] == '/';
}

const struct conf_route *conf_route_match(const struct conf_listener *l, struct str host, struct str path)
{
	if (host.n && host.p[host.n - 1] == '.') /* example.org. is the same name, fully qualified */
		host.n--;
	for (uint32_t i = 0; i < l->route_count; i++)
		if (host_fits(&l->routes[i], host) && path_fits(&l->routes[i], path))
			return &l->routes[i];
	return NULL;
}
