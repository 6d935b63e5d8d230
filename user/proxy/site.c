/* SPDX-License-Identifier: Apache-2.0 */
#include "proxy/site.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const char *tls_version_name(enum conf_tls_version v)
{
	return v == CONF_TLS_1_3 ? "1.3" : "1.2";
}

struct site *site_ref(struct site *s)
{
	atomic_fetch_add(&s->refs, 1);
	return s;
}

void site_unref(struct site *s)
{
	if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
		return;
	for (uint32_t i = 0; s->upstream_tls && i < s->conf->upstream_count; i++)
		tls_ctx_unref(s->upstream_tls[i]);
	for (uint32_t i = 0; s->listener_tls && i < s->conf->listener_count; i++)
		tls_ctx_unref(s->listener_tls[i]);
	for (uint32_t i = 0; s->via && i < s->conf->listener_count; i++)
		free((void *)(uintptr_t)s->via[i].p);
	free(s->upstream_tls);
	free(s->listener_tls);
	free(s->via);
	lb_table_unref(s->table);
	conf_unref(s->conf);
	free(s);
}

static int upstream_tls(struct site *s, uint32_t i, char *err, size_t errlen)
{
	const struct conf_upstream_tls *t = &s->conf->upstreams[i].tls;
	struct tls_client_options o = upstream_tls_options(t);

	return t->enabled ? tls_ctx_new_client(&s->upstream_tls[i], &o, err, errlen) : 0;
}

static int listener_tls(struct site *s, uint32_t i, struct tls_tickets *tickets, char *err, size_t errlen)
{
	const struct conf_listener_tls *t = &s->conf->listeners[i].tls;
	struct tls_certificate *certs;
	struct tls_server_options o = {
		.n = t->certificate_count,
		.min_version = tls_version_name(t->min_version),
		.tickets = tickets,
		.scope = s->conf->listeners[i].address.text,
	};
	int r;

	if (!t->enabled)
		return 0;
	certs = calloc(t->certificate_count, sizeof(*certs));
	if (!certs)
		return -ENOMEM;
	for (uint32_t k = 0; k < t->certificate_count; k++)
		certs[k] = (struct tls_certificate){ .cert = t->certificates[k].cert,
						     .key = t->certificates[k].key,
						     .ocsp = t->certificates[k].ocsp };
	o.certificates = certs;
	r = tls_ctx_new_server(&s->listener_tls[i], &o, err, errlen);
	free(certs);
	return r;
}

static int via_text(struct site *s, uint32_t i)
{
	const char *name = s->conf->listeners[i].via;
	char *text;

	if (!name)
		return 0;
	if (asprintf(&text, "1.1 %s", name) < 0)
		return -ENOMEM;
	s->via[i] = str_from(text);
	return 0;
}

int site_new(struct site **out, const struct conf *conf, struct lb *lb, struct tls_tickets *tickets, char *err,
	     size_t errlen)
{
	struct site *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->refs = 1;
	s->conf = conf_ref(conf);
	s->table = lb_table_get(lb);
	s->upstream_tls = calloc(conf->upstream_count + 1, sizeof(*s->upstream_tls));
	s->listener_tls = calloc(conf->listener_count + 1, sizeof(*s->listener_tls));
	s->via = calloc(conf->listener_count + 1, sizeof(*s->via));
	if (!s->upstream_tls || !s->listener_tls || !s->via)
		r = -ENOMEM;
	for (uint32_t i = 0; i < conf->upstream_count && r == 0; i++)
		r = upstream_tls(s, i, err, errlen);
	for (uint32_t i = 0; i < conf->listener_count && r == 0; i++) {
		r = listener_tls(s, i, tickets, err, errlen);
		if (r == 0)
			r = via_text(s, i);
	}
	if (r < 0) {
		if (r == -ENOMEM)
			snprintf(err, errlen, "out of memory");
		site_unref(s);
		return r;
	}
	*out = s;
	return 0;
}
