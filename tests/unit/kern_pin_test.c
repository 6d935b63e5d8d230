/* SPDX-License-Identifier: Apache-2.0 */
/* Pins: they appear whole, go on in the next process, are replaced when they do not fit, and are locked. */
#include "kern_rig.h"
#include <bpf/bpf.h>
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

/* As another release would leave them. */
static void put_meta(const struct sluice_meta *m)
{
	char path[128];
	uint32_t zero = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/meta", dir);
	fd = bpf_obj_get(path);
	assert_true(fd >= 0);
	assert_int_equal(bpf_map_update_elem(fd, &zero, m, BPF_ANY), 0);
	close(fd);
}

static void put_map(const char *name, uint32_t value_size, uint32_t n)
{
	char path[128];
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, name, sizeof(uint32_t), value_size, n, NULL);

	assert_true(fd >= 0);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(bpf_obj_pin(fd, path), 0);
	close(fd);
}

static void another_layout_is_not_misread(void **state)
{
	static const struct sluice_meta others[] = {
		{ .magic = SLUICE_ABI_MAGIC, .abi_version = SLUICE_ABI_VERSION + 1 },
		{ .magic = SLUICE_ABI_MAGIC, .abi_version = 0 },
		{ .magic = 1, .abi_version = SLUICE_ABI_VERSION },
	};

	(void)state;
	NEEDED();
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		struct kern *k = open_at(1, 16, -1), *next;

		kern_health(k, NULL)[0].weight = 7;
		kern_counters(k, 0)->requests = 42;
		put_meta(&others[i]);
		/* At an upgrade the one that runs goes on with its own. */
		next = open_at(1, 16, kern_lock_fd(k));
		assert_true(kern_features(next)->pinned);
		assert_false(kern_features(next)->adopted);
		assert_int_equal(kern_health(next, NULL)[0].weight, 0);
		assert_int_equal(requests_of(next), 0);
		kern_health(next, NULL)[0].weight = 9;
		assert_int_equal(kern_health(k, NULL)[0].weight, 7);
		kern_close(k, false);
		k = open_at(1, 16, kern_lock_fd(next));
		assert_int_equal(kern_health(k, NULL)[0].weight, 9);
		kern_close(next, false);
		kern_close(k, true);
	}
}

static void each_map_is_looked_at_by_itself(void **state)
{
	struct kern *k;

	(void)state;
	NEEDED();
	k = open_at(1, 16, -1);
	kern_health(k, NULL)[0].weight = 7;
	kern_close(k, false);
	put_map("counters", sizeof(struct sluice_counters) + 8, 2);
	k = open_at(1, 16, -1);
	assert_true(kern_features(k)->adopted);
	assert_int_equal(kern_health(k, NULL)[0].weight, 7);
	kern_counters(k, 0)->requests = 3;
	kern_close(k, false);
	put_map("health", sizeof(struct sluice_health) - 8, 16);
	k = open_at(1, 16, -1);
	assert_int_equal(kern_health(k, NULL)[0].weight, 0);
	assert_int_equal(requests_of(k), 3);
	kern_close(k, true);
	assert_false(exists("health"));
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
		cmocka_unit_test(another_layout_is_not_misread),
		cmocka_unit_test(each_map_is_looked_at_by_itself),
		cmocka_unit_test(second_instance_is_kept_out),
		cmocka_unit_test(successor_shares_the_lock),
		cmocka_unit_test(half_made_pins_are_not_left),
		cmocka_unit_test(without_a_bpffs_it_says_so_and_works),
	};
	return cmocka_run_group_tests_name("kern_pin", tests, setup, NULL);
}
