/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the other files of this room share below the parser: memory that goes
 * at once, the list of errors, and a YAML document as a tree of nodes that
 * know where in the file they stand. Nothing of libyaml is visible here.
 */
#pragma once
#include "conf/conf.h"

/* Memory that is freed together. Everything from it is zeroed. */
struct arena;
struct arena *arena_new(void);
void arena_free(struct arena *a);
void *arena_alloc(struct arena *a, size_t n);
char *arena_str(struct arena *a, const char *p, size_t n);

/*
 * Collects errors as lines. After REPORT_MAX only the count goes on. Running
 * out of memory is remembered in oom, so that callers need not look at every
 * allocation's result twice: no snapshot leaves this room while it is set.
 */
#define REPORT_MAX 100
struct report {
	struct buf *out;
	const char *path;
	uint32_t errors;
	bool oom;
};

void report_at(struct report *r, struct conf_pos pos, const char *fmt, ...) _printf_(3, 4);

/* Text from the file as it may stand in a message: quoted, cut, nothing unprintable. */
#define SHOWN_MAX 72
struct shown {
	char s[SHOWN_MAX];
};
struct shown shown(const char *p, size_t n);

enum node_kind { NODE_SCALAR, NODE_MAP, NODE_LIST };

/* A node of the tree. In a map each child is a value and knows its key. */
struct node {
	enum node_kind kind;
	bool plain;	       /* scalar without quotes */
	struct conf_pos pos;
	const char *text;      /* scalar, NUL-terminated; len may span NULs */
	size_t len;
	struct node *key;      /* in a map */
	struct node *parent;
	struct node *first, *last, *next; /* children, siblings */
	uint32_t count, index; /* children; own place among siblings */
};

/*
 * Builds the tree of the only document in p[0..n). Every node lives in a.
 * 0: *root is set, NULL for an empty document. 1: reported. -ENOMEM.
 */
int tree_build(struct node **root, struct arena *a, const void *p, size_t n, struct report *r);

/* True for nothing at all, null and ~. */
bool node_is_null(const struct node *n);
const struct node *node_get(const struct node *map, const char *key);

/* Where a node stands, as `listeners[0].limits.fields`; "" for the root. */
#define NODE_PATH_MAX 160
struct node_path {
	char s[NODE_PATH_MAX];
};
struct node_path node_path(const struct node *n);
