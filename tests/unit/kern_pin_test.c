/* SPDX-License-Identifier: Apache-2.0 */
/* Pins: they appear whole, go on in the next process, are replaced when they do not fit, and are locked. */
#include "kern_rig.h"
#include <dirent.h>
#include <sys/stat.h>

static char dir[64];
static bool usable;

static struct kern *open_at(unsigned workers, unsigned backends, int lock)
{
	struct kern_options o = {
		.pin_dir = dir, .workers = workers, .max_backends = backends, .max_flows = 8, .lock_fd = lock, .limit = KERN_LIMIT_NO_SOCKMAP,
	};
	struct kern *k = NULL;

	assert_int_equal(kern_open(&k, &o), 0);
	return k;
}

static bool exists(const char *name)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return access(path, F_OK) == 0;
}

static size_t entries(void)
{
	size_t n = 0;
	DIR *d = opendir(dir);
	struct dirent *e;

	while (d && (e = readdir(d)))
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

#define NEEDED()           \
	do {               \
		if (!usable) \
			skip(); \
	} while (0)

static void values_outlive_the_process_that_wrote_them(void **state)
{
	struct kern *k;
	unsigned n;

	(void)state;
	NEEDED();
	k = open_at(2, 16, -1);
	assert_true(kern_features(k)->pinned);
	assert_false(kern_features(k)->adopted);
	assert_true(exists("health") && exists("counters") && exists("meta"));
	kern_health(k, &n)[3].weight = 7;
	assert_int_equal(n, 16);
	kern_counters(k, 1)->requests = 42;
	kern_close(k, false);
	assert_true(exists("health"));

	k = open_at(2, 16, -1);
	assert_true(kern_features(k)->adopted);
	assert_int_equal(kern_health(k, NULL)[3].weight, 7);
	assert_int_equal(kern_counters(k, 1)->requests, 42);
	kern_close(k, true);
	assert_false(exists("health"));
	assert_int_equal(access(dir, F_OK), -1);
}

static uint64_t requests_of(struct kern *k)
{
	struct sluice_counters sum;

	kern_counters_sum(k, &sum);
	return sum.requests;
}

/* Fewer, and more than there are entries; both processes count, and both see all. */
static void another_number_of_workers_goes_on_counting(void **state)
{
	static const unsigned workers[] = { 2, 200, 1, 64 };
	struct kern *k, *next;
	uint64_t n = 1;

	(void)state;
	NEEDED();
	k = open_at(2, 16, -1);
	kern_health(k, NULL)[0].admin = SLUICE_ADMIN_DRAIN;
	kern_counters(k, 1)->requests++;
	for (size_t i = 0; i < ARRAY_SIZE(workers); i++) {
		next = open_at(workers[i], 16, kern_lock_fd(k));
		assert_true(kern_features(next)->pinned);
		assert_true(kern_features(next)->adopted);
		assert_int_equal(kern_health(next, NULL)[0].admin, SLUICE_ADMIN_DRAIN);
		for (unsigned w = 0; w <= workers[i]; w++, n++)
			kern_counters(next, w)->requests++;
		kern_counters(k, 0)->requests++;
		n++;
		assert_int_equal(requests_of(k), n);
		assert_int_equal(requests_of(next), n);
		kern_close(k, false);
		k = next;
	}
	kern_close(k, true);
}

static void second_instance_is_kept_out(void **state)
{
	struct kern *k, *other;

	(void)state;
	NEEDED();
	k = open_at(1, 16, -1);
	other = open_at(1, 16, -1);
	/* It works, unpinned, and takes nothing away. */
	assert_true(kern_features(other)->bpf_maps);
	assert_false(kern_features(other)->pinned);
	assert_non_null(strstr(kern_features(other)->reason_pinned, "in use"));
	kern_close(other, true);
	assert_true(exists("health"));
	kern_close(k, true);
}

static void successor_shares_the_lock(void **state)
{
	struct kern *old, *next, *third;

	(void)state;
	NEEDED();
	old = open_at(1, 16, -1);
	kern_health(old, NULL)[1].weight = 9;
	next = open_at(1, 16, kern_lock_fd(old));
	assert_true(kern_features(next)->pinned);
	/* The same memory while both run. */
	kern_health(old, NULL)[1].weight = 10;
	assert_int_equal(kern_health(next, NULL)[1].weight, 10);
	kern_close(old, false);
	third = open_at(1, 16, -1);
	assert_false(kern_features(third)->pinned);
	kern_close(third, false);
	assert_true(exists("health"));
	kern_close(next, true);
	assert_false(exists("health"));
}

static void half_made_pins_are_not_left(void **state)
{
	struct kern *k;
	size_t n;

	(void)state;
	NEEDED();
	k = open_at(1, 16, -1);
	n = entries();
	kern_close(k, false);
	k = open_at(1, 32, -1);
	assert_true(kern_features(k)->pinned);
	assert_int_equal(entries(), n);
	kern_close(k, true);
}

static void without_a_bpffs_it_says_so_and_works(void **state)
{
	struct kern_options o = { .pin_dir = "/tmp/sluice-no-bpffs", .workers = 1, .max_flows = 8, .lock_fd = -1, .limit = KERN_LIMIT_NO_SOCKMAP };
	struct kern *k = NULL;

	(void)state;
	assert_int_equal(kern_open(&k, &o), 0);
	assert_false(kern_features(k)->pinned);
	assert_non_null(strstr(kern_features(k)->reason_pinned, "bpffs"));
	assert_non_null(kern_health(k, NULL));
	kern_counters(k, 0)->requests++;
	kern_close(k, true);
	assert_int_equal(access("/tmp/sluice-no-bpffs", F_OK), -1);
}

static int setup(void **state)
{
	struct kern *k;

	(void)state;
	log_set_level("error");
	snprintf(dir, sizeof(dir), "/sys/fs/bpf/sluice-test-%d", getpid());
	k = open_at(1, 16, -1);
	usable = kern_features(k)->pinned;
	if (!usable)
		print_message("SKIP: no pins here: %s%s\n", kern_features(k)->reason_maps, kern_features(k)->reason_pinned);
	kern_close(k, true);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_outlive_the_process_that_wrote_them),
		cmocka_unit_test(another_number_of_workers_goes_on_counting),
		cmocka_unit_test(second_instance_is_kept_out),
		cmocka_unit_test(successor_shares_the_lock),
		cmocka_unit_test(half_made_pins_are_not_left),
		cmocka_unit_test(without_a_bpffs_it_says_so_and_works),
	};
	return cmocka_run_group_tests_name("kern_pin", tests, setup, NULL);
}
