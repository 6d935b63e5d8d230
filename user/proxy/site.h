/* SPDX-License-Identifier: Apache-2.0 */
/* Making a site; see struct site in worker.h. */
#pragma once
#include "proxy/worker.h"

/*
 * What conf means at run time: contexts for TLS are built (files are read
 * here), the current table of lb is taken. tickets: of the listeners' sessions,
 * copied. 0 with one reference, or -errno with a text in err.
 */
int site_new(struct site **out, const struct conf *conf, struct lb *lb, struct tls_tickets *tickets, char *err,
	     size_t errlen);
