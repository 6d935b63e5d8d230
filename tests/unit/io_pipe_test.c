/* SPDX-License-Identifier: Apache-2.0 */
/* Pipes are lent, widened and taken back within a budget, and never smaller than they are worth. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <unistd.h>

#include "io/pipe.h"

static unsigned descriptors(void)
{
	unsigned n = 0;
	DIR *d = opendir("/proc/self/fd");

	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

static void an_empty_pipe_is_lent_again(void **state)
{
	struct pipe_pool pool;
	struct pipe a, b;
	unsigned before = descriptors();
	int fd;

	(void)state;
	pipe_pool_init(&pool, 1);
	assert_true(pipe_take(&pool, &a));
	assert_true(a.size >= PIPE_LEAST && pool.lent == 1);
	fd = a.fd[0];
	pipe_give(&pool, &a);
	assert_false(pipe_open(&a));
	pipe_give(&pool, &a); /* once is enough */
	assert_int_equal(pool.lent, 0);
	assert_true(pipe_take(&pool, &b));
	assert_int_equal(b.fd[0], fd);
	pipe_give(&pool, &b);
	pipe_pool_deinit(&pool);
	assert_int_equal(pool.used, 0);
	assert_int_equal(descriptors(), before);
}

static void a_pipe_with_bytes_in_it_is_not_lent_again(void **state)
{
	struct pipe_pool pool;
	struct pipe p;
	unsigned before = descriptors();

	(void)state;
	pipe_pool_init(&pool, 1);
	assert_true(pipe_take(&pool, &p));
	assert_int_equal(write(p.fd[1], "x", 1), 1);
	p.filled = 1;
	pipe_give(&pool, &p);
	assert_int_equal(pool.idle_n, 0);
	assert_int_equal(pool.used, 0);
	pipe_pool_deinit(&pool);
	assert_int_equal(descriptors(), before);
}

static void the_budget_bounds_size_not_number(void **state)
{
	struct pipe_pool pool;
	enum { FIRST = PIPE_WIDE / PIPE_FIRST, ALL = FIRST + 2 };
	struct pipe p[ALL];

	(void)state;
	pipe_pool_init(&pool, 1);
	pool.budget = PIPE_WIDE;
	for (unsigned i = 0; i < ALL; i++)
		assert_true(pipe_take(&pool, &p[i]));
	assert_int_equal(p[0].size, PIPE_FIRST);
	assert_int_equal(p[FIRST - 1].size, PIPE_FIRST);
	assert_int_equal(p[ALL - 1].size, PIPE_LEAST);
	pipe_widen(&pool, &p[0]);
	assert_int_equal(p[0].size, PIPE_FIRST);
	for (unsigned i = 1; i < ALL; i++) {
		p[i].filled = 1; /* closed, not pooled: what it took is free again */
		assert_true(pipe_give(&pool, &p[i]));
	}
	pipe_widen(&pool, &p[0]);
	assert_int_equal(p[0].size, PIPE_WIDE);
	assert_int_equal(pool.used, PIPE_WIDE);
	pipe_give(&pool, &p[0]);
	pipe_pool_deinit(&pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_pipe_is_lent_again),
		cmocka_unit_test(a_pipe_with_bytes_in_it_is_not_lent_again),
		cmocka_unit_test(the_budget_bounds_size_not_number),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
