/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handler tables: a section of the file is an array of struct field, one
 * row for each key, that says where in the snapshot its value goes, who reads
 * it and what it may be. Unknown keys, missing keys and the words of an error
 * come from the same row.
 */
#pragma once
#include "conf/tree.h"
#include "conf/value.h"

/* What conf_check_files has to look at. */
enum outside_kind {
	OUTSIDE_NONE,
	OUTSIDE_PEM,	/* readable and PEM */
	OUTSIDE_FILE,	/* readable */
	OUTSIDE_LOG,	/* can be appended to, or made */
	OUTSIDE_CREATE, /* its directory can be written: pid file, sockets */
	OUTSIDE_USER,
	OUTSIDE_GROUP,
	OUTSIDE_PINS,
};

struct conf_outside {
	struct conf_outside *next;
	enum outside_kind kind;
	const char *text;
	const char *label; /* the key, as node_path gives it */
	struct conf_pos pos;
};

/* A route's upstream by name, until all upstreams are known. */
struct pending_route {
	struct pending_route *next;
	struct conf_route *route;
	const struct node *name;
};

/* One parse. Both arenas outlive it only as far as the caller lets them. */
struct parse {
	struct conf *conf;
	struct arena *keep;    /* the snapshot's memory */
	struct arena *scratch; /* the tree's */
	struct report *report;
	struct pending_route *pending, **pending_tail;
	struct conf_outside **outside_tail;
};

struct field;
typedef void (*field_set)(struct parse *p, const struct node *v, void *dst, const struct field *f);

struct field {
	const char *key;
	field_set set;
	size_t offset;
	uint64_t min, max;	    /* numbers, sizes, times; bytes of a text (max 0: 4095) */
	const char *const *names;   /* words of an enum, NULL-terminated, in its order */
	const struct field *fields; /* of a section, ended by a row without key */
	enum outside_kind outside;
	const char *want; /* what to write, for texts */
	const char *need; /* the key is required: an example of it */
};

#define AT(type, member) .offset = offsetof(type, member)
#define TIME_MAX (24ull * 3600 * 1000)
#define COUNT_MAX 1000000000ull

/* Reports "PATH: TEXT READ, ..." at v. */
void field_fault(struct parse *p, const struct node *v, const char *fmt, ...) _printf_(3, 4);

/* Allocates from keep; NULL sets report->oom. */
void *field_alloc(struct parse *p, size_t n);

/* Reads the map v into the struct at base. False when v is no map (reported). */
bool field_map(struct parse *p, const struct node *v, void *base, const struct field *fields);
/* False, reported, unless v is a list, or holds no entries although it must. */
bool field_list(struct parse *p, const struct node *v, const char *want);
/* A scalar's text without control characters; false when reported. want: "write ..." */
bool field_text(struct parse *p, const struct node *v, const char *want, struct str *out);
/* The index of a word in names, or -1, reported. */
int field_word(struct parse *p, const struct node *v, const char *const *names);

/* Copies s in lower case into the snapshot; NULL sets report->oom. */
char *field_lower(struct parse *p, struct str s);

void set_map(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_bool(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_u16(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_u32(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_size(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_size32(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_time(struct parse *p, const struct node *v, void *dst, const struct field *f);
/* Whole seconds, kept as milliseconds. */
void set_seconds(struct parse *p, const struct node *v, void *dst, const struct field *f);
void set_enum(struct parse *p, const struct node *v, void *dst, const struct field *f);
/* A non-empty text into a const char *; noted for conf_check_files when f->outside says so. */
void set_text(struct parse *p, const struct node *v, void *dst, const struct field *f);
/* The same, kept as the word itself after a look into names. */
void set_word(struct parse *p, const struct node *v, void *dst, const struct field *f);

void field_note_outside(struct parse *p, const struct node *v, enum outside_kind kind, const char *text);
