/* SPDX-License-Identifier: Apache-2.0 */
/* Which kernels may move bytes, and what is said where they may not. */
#include "kern_rig.h"
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "kern/internal.h"

static void floor_knows_the_fixed_series(void **state)
{
	static const struct {
		unsigned v[3];
		bool ok;
	} t[] = {
		{ { 5, 15, 200 }, false }, { { 6, 1, 146 }, false }, { { 6, 1, 147 }, true },	{ { 6, 1, 192 }, true },
		{ { 6, 2, 16 }, false },   { { 6, 8, 12 }, false },  { { 6, 12, 34 }, false },	{ { 6, 12, 35 }, true },
		{ { 6, 13, 99 }, false },  { { 6, 15, 9 }, false },  { { 6, 16, 0 }, true },	{ { 6, 18, 44 }, true },
		{ { 7, 0, 0 }, true },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(t); i++)
		if (caps_version_ok(t[i].v[0], t[i].v[1], t[i].v[2]) != t[i].ok)
			fail_msg("%u.%u.%u", t[i].v[0], t[i].v[1], t[i].v[2]);
}

static void version_is_found_where_distributions_put_it(void **state)
{
	static const struct {
		const char *release, *version, *signature;
		unsigned v[3];
	} t[] = {
		{ "6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-1 (2026-09-01)", "", { 6, 1, 192 } },
		{ "6.12.117+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-10-01)", NULL, { 6, 12, 117 } },
		{ "6.8.0-31-generic", "#31-Ubuntu SMP PREEMPT_DYNAMIC", "Ubuntu 6.8.0-31.31-generic 6.8.1", { 6, 8, 1 } },
		{ "6.18.44-fc", "#1 SMP PREEMPT_DYNAMIC @0", "", { 6, 18, 44 } },
		{ "6.16-rc1", "#1 SMP", NULL, { 6, 16, 0 } },
	};
	unsigned v[3];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		assert_true(caps_version_parse(t[i].release, t[i].version, t[i].signature, v));
		assert_memory_equal(v, t[i].v, sizeof(v));
	}
	assert_false(caps_version_parse("weird", "#1", NULL, v));
}

/* In a child that gave its capabilities away. */
static void without_privileges_everything_works_but_slower(void **state)
{
	int status = 0;
	pid_t pid;

	(void)state;
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
		struct __user_cap_data_struct d[2] = { 0 };
		struct kern_options o = { .pin_dir = "/sys/fs/bpf/sluice-test-none", .workers = 2, .max_flows = 8, .lock_fd = -1 };
		struct kern *k = NULL;
		unsigned n = 0;
		int r;

		(void)syscall(SYS_capset, &h, d);
		r = kern_open(&k, &o);
		if (r != 0)
			_exit(10);
		const struct kern_features *f = kern_features(k);
		if (f->sockmap || f->reason_sockmap[0] == '\0')
			_exit(11);
		kern_health(k, &n)[n - 1].weight = 1;
		kern_counters(k, 2)->requests = 5;
		struct sluice_counters sum;
		kern_counters_sum(k, &sum);
		if (sum.requests != 5)
			_exit(12);
		struct flow_group *g = NULL;
		if (flow_group_new(&g, k, 0) != -EOPNOTSUPP)
			_exit(13);
		kern_close(k, true);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	(void)rmdir("/sys/fs/bpf/sluice-test-none"); /* root may make it even without capabilities */
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void names_of_counters_match_their_places(void **state)
{
	struct sluice_counters c = { .requests = 3, .flow_trims = 4 };
	size_t found = 0;

	(void)state;
	assert_int_equal(kern_counter_names_n * sizeof(uint64_t), sizeof(c));
	for (size_t i = 0; i < kern_counter_names_n; i++) {
		assert_non_null(kern_counter_names[i].help);
		if (strcmp(kern_counter_names[i].name, "requests") == 0)
			found += kern_counter_get(&c, i) == 3;
		if (strcmp(kern_counter_names[i].name, "flow_trims") == 0)
			found += kern_counter_get(&c, i) == 4;
	}
	assert_int_equal(found, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(floor_knows_the_fixed_series),
		cmocka_unit_test(version_is_found_where_distributions_put_it),
		cmocka_unit_test(without_privileges_everything_works_but_slower),
		cmocka_unit_test(names_of_counters_match_their_places),
	};
	log_set_level("error");
	return cmocka_run_group_tests_name("kern_caps", tests, NULL, NULL);
}
