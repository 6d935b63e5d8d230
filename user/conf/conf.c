/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a snapshot: read, built in its own arena, shared, freed. The
 * struct conf itself lives in that arena, so freeing is one call. The tree is
 * gone before a snapshot is handed out.
 */
#include "conf/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf/parse.h"

static int build(struct conf *c, struct arena *keep, struct arena *scratch, const void *p, size_t n, struct report *r)
{
	struct parse parse = { .conf = c, .keep = keep, .scratch = scratch, .report = r };
	struct node *root;
	int e;

	parse.pending_tail = &parse.pending;
	parse.outside_tail = &c->outside;
	e = tree_build(&root, scratch, p, n, r);
	if (e < 0)
		return e;
	/* Duplicate keys are reported without stopping the tree: the rest of the file deserves its look too. */
	if (e == 0) {
		parse_root(&parse, root);
		if (!r->oom)
			check_all(&parse);
	}
	if (r->oom)
		return -ENOMEM;
	return r->errors > 0;
}

int conf_load_buffer(struct conf **out, const char *path, const void *p, size_t n, struct buf *errors)
{
	struct report report = { .out = errors, .path = path };
	struct arena *keep = arena_new(), *scratch = arena_new();
	struct conf *c = NULL;
	int r = -ENOMEM;

	*out = NULL;
	if (keep && scratch)
		c = arena_alloc(keep, sizeof(*c));
	if (c) {
		c->memory = keep;
		atomic_init(&c->refs, 1);
		c->path = arena_str(keep, path, strlen(path));
		defaults_conf(c);
		if (c->path && n > CONF_FILE_MAX) {
			report_at(&report, (struct conf_pos){ 0 }, "is larger than %u bytes, write a smaller file",
				  CONF_FILE_MAX);
			r = report.oom ? -ENOMEM : 1;
		} else if (c->path) {
			r = build(c, keep, scratch, p, n, &report);
		}
	}
	arena_free(scratch);
	if (r == 0)
		*out = c;
	else
		arena_free(keep);
	return r;
}

/* The whole file, at most one byte more than allowed. 0 or -errno. */
static int read_file(const char *path, struct buf *b)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	struct stat st;
	int r = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		r = -errno;
	else if (S_ISDIR(st.st_mode))
		r = -EISDIR;
	while (r == 0 && b->len <= CONF_FILE_MAX) {
		ssize_t n;

		r = buf_reserve(b, 65536);
		if (r < 0)
			break;
		n = read(fd, buf_tail(b), 65536);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			r = -errno;
		if (n <= 0)
			break;
		buf_commit(b, (size_t)n);
	}
	close(fd);
	return r;
}

int conf_load(struct conf **out, const char *path, struct buf *errors)
{
	struct buf b = BUF_INIT;
	int r = read_file(path, &b);

	*out = NULL;
	if (r == 0)
		r = conf_load_buffer(out, path, buf_str(&b).p, b.len, errors);
	else if (r != -ENOMEM)
		r = buf_printf(errors, "%s: can not be read: %s, give a readable YAML file\n", path, strerror(-r)) < 0
			    ? -ENOMEM
			    : 1;
	buf_deinit(&b);
	return r;
}

/* The count is the only part of a snapshot that changes, so casting const away is confined to these two. */
const struct conf *conf_ref(const struct conf *c)
{
	atomic_fetch_add_explicit(&((struct conf *)c)->refs, 1, memory_order_relaxed);
	return c;
}

void conf_unref(const struct conf *c)
{
	if (!c)
		return;
	if (atomic_fetch_sub_explicit(&((struct conf *)c)->refs, 1, memory_order_acq_rel) == 1)
		arena_free(c->memory);
}

const struct conf_upstream *conf_upstream_find(const struct conf *c, struct str name)
{
	for (uint32_t i = 0; i < c->upstream_count; i++)
		if (str_eqz(name, c->upstreams[i].name))
			return &c->upstreams[i];
	return NULL;
}
