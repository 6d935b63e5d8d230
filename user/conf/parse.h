/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The three steps from a tree to a snapshot: defaults, the sections by their
 * tables, then what only makes sense with everything known.
 */
#pragma once
#include "conf/field.h"

/* Stands in a u32 until check_all fills in the default that another key gives. */
#define CONF_INHERIT UINT32_MAX

void defaults_conf(struct conf *c);
extern const struct conf_listener default_listener;
extern const struct conf_upstream default_upstream;
extern const struct conf_server default_server;
/* The health_check section when it is there. */
extern const struct conf_health_check default_health_check;

extern const char *const tls_versions[];
/* parse_upstream.c: the map of upstreams into the struct conf at dst. */
void set_upstreams(struct parse *p, const struct node *v, void *dst, const struct field *f);

/* Reads the whole tree (NULL: empty file) into p->conf. */
void parse_root(struct parse *p, const struct node *root);
/*
 * Resolves routes and inherited defaults, and reports contradictions. After
 * errors in parse_root only what they can not have led to.
 */
void check_all(struct parse *p);
