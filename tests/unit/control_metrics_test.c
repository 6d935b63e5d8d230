/* SPDX-License-Identifier: Apache-2.0 */
/* What a view looks like as metrics and as JSON: exact series, well-formed whatever the names hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "control/text.h"
#include "control/view.h"

static struct view_backend backends[] = {
	{ .upstream = "one", .text = "10.0.0.1:443", .state = SLUICE_HEALTH_UP, .weight = 2, .weight_conf = 1, .active = 3,
	  .connections = 4, .requests = 5, .checks_ok = 6, .checks_failed = 7, .latency_us = 1500,
	  .last_change_ns = 1700000000000000001ull },
	{ .upstream = "one", .text = "unix:/a \"b\"\\c\nd", .state = SLUICE_HEALTH_DOWN, .admin = SLUICE_ADMIN_DRAIN,
	  .last_error = "said \"\x01\xff\"" },
	{ .upstream = "two", .text = "10.0.0.2:80", .state = SLUICE_HEALTH_UNKNOWN },
};
static struct view_upstream upstreams[] = {
	{ .name = "one", .balance = "round_robin", .check = "tcp", .tls = true, .first = 0, .n = 2 },
	{ .name = "two", .balance = "maglev", .check = "none", .first = 2, .n = 1 },
	{ .name = "none", .balance = "maglev", .check = "none", .first = 3, .n = 0 },
};
static struct view_listener listeners[] = {
	{ .text = "[::1]:6188", .open = 2, .accepted = 9 },
	{ .text = "unix:/run/x:1", .tls = true },
};
static struct view_requests requests[] = { { "one", 200, 41 }, { "one", 502, 1 }, { "gone", 304, 2 } };

static const struct view view = {
	.version = "1.2.3",
	.conf_path = "/etc/a\"b.yaml",
	.pid = 42,
	.now_ns = 1700000100000000000ull,
	.started_ns = 1700000000250000000ull,
	.uptime_ns = 99750000000ull,
	.cpu_ns = 1234567000ull,
	.rss_bytes = 8192,
	.open_fds = 17,
	.log_lost = 3,
	.reloads = 2,
	.workers = 2,
	.sessions = 11,
	.idle_upstreams = 5,
	.engine_limit = "auto",
	.window = 1048576,
	.memory = 1073741824,
	.features = { .reason_sockmap = "no CAP_BPF" },
	.counters = { .body_sockmap_response_bytes = 1000, .body_copy_request_bytes = 1, .ktls_both = 4, .ktls_none = 6,
		      .fallback_small = 8, .verdict_redirect = 10, .verdict_redirect_bytes = 10000, .flow_spills = 12,
		      .flow_trims = 13, .upgrades = 1, .requests = 44 },
	.outstanding = 65536,
	.listeners = listeners,
	.listeners_n = 2,
	.upstreams = upstreams,
	.upstreams_n = 3,
	.backends = backends,
	.backends_n = 3,
	.requests = requests,
	.requests_n = 3,
};

static char *written(int (*write)(const struct view *, struct buf *), const struct view *v)
{
	struct buf b = BUF_INIT;

	assert_int_equal(write(v, &b), 0);
	assert_int_equal(buf_append(&b, "", 1), 0);
	return b.p + b.start;
}

static void metrics_hold_the_series_others_read(void **state _unused_)
{
	static const char *const lines[] = {
		"sluice_requests_total{upstream=\"one\",code=\"200\"} 41",
		"sluice_requests_total{upstream=\"gone\",code=\"304\"} 2",
		"sluice_body_bytes_total{engine=\"sockmap\",direction=\"response\"} 1000",
		"sluice_body_bytes_total{engine=\"sockmap\",direction=\"request\"} 0",
		"sluice_body_bytes_total{engine=\"splice\",direction=\"response\"} 0",
		"sluice_body_bytes_total{engine=\"copy\",direction=\"request\"} 1",
		"sluice_backend_up{upstream=\"one\",backend=\"10.0.0.1:443\"} 1",
		"sluice_backend_up{upstream=\"one\",backend=\"unix:/a \\\"b\\\"\\\\c\\nd\"} 0",
		"sluice_backend_up{upstream=\"two\",backend=\"10.0.0.2:80\"} 1",
		"sluice_backend_requests_total{upstream=\"one\",backend=\"10.0.0.1:443\"} 5",
		"sluice_backend_weight{upstream=\"one\",backend=\"10.0.0.1:443\"} 2",
		"sluice_backend_check_latency_seconds{upstream=\"one\",backend=\"10.0.0.1:443\"} 0.001500",
		"sluice_backend_last_change_seconds{upstream=\"one\",backend=\"10.0.0.1:443\"} 1700000000.000000001",
		"sluice_flow_spills_total 12",
		"sluice_flow_trims_total 13",
		"sluice_flow_outstanding_bytes 65536",
		"sluice_ktls_connections_total{direction=\"tx\"} 0",
		"sluice_ktls_connections_total{direction=\"rx\"} 0",
		"sluice_ktls_connections_total{direction=\"both\"} 4",
		"sluice_ktls_connections_total{direction=\"none\"} 6",
		"sluice_active_connections 11",
		"sluice_upgrades_total 1",
		"sluice_fallbacks_total{reason=\"small\"} 8",
		"sluice_verdicts_total{verdict=\"redirect\"} 10",
		"sluice_verdict_bytes_total{verdict=\"redirect\"} 10000",
		"sluice_build_info{version=\"1.2.3\"} 1",
		"sluice_listener_connections{listener=\"[::1]:6188\"} 2",
		"sluice_engine{engine=\"splice\"} 1",
		"sluice_engine{engine=\"sockmap\"} 0",
		"process_resident_memory_bytes 8192",
		"process_open_fds 17",
		"process_start_time_seconds 1700000000.250000",
		"process_cpu_seconds_total 1.234567",
		"sluice_log_lines_lost_total 3",
	};
	char *z = written(view_write_metrics, &view);

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		char line[256];

		snprintf(line, sizeof(line), "\n%s\n", lines[i]);
		if (!strstr(z, line))
			fail_msg("missing: %s\n%s", lines[i], z);
	}
	free(z);
}

/* Text format 0.0.4: HELP, TYPE, then samples of that family and no other; no family and no series twice. */
static void metrics_are_well_formed(void **state _unused_)
{
	char *z = written(view_write_metrics, &view), *save = NULL, family[128] = "";
	static char seen[1000][192];
	size_t n = 0, families = 0;

	for (char *line = strtok_r(z, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char name[128], type[16];
		size_t key;

		if (sscanf(line, "# HELP %127s", name) == 1) {
			strcpy(family, name);
			snprintf(seen[n], sizeof(seen[0]), "# %s", name);
			key = strlen(seen[n]);
			families++;
			line = strtok_r(NULL, "\n", &save);
			assert_non_null(line);
			assert_int_equal(sscanf(line, "# TYPE %127s %15s", name, type), 2);
			assert_string_equal(name, family);
			assert_true(!strcmp(type, "gauge") || !strcmp(type, "counter"));
			if (strstr(name, "_total"))
				assert_string_equal(type, "counter");
		} else {
			char *end = strrchr(line, ' ');

			name[strcspn(line, "{ ")] = 0;
			memcpy(name, line, strcspn(line, "{ "));
			assert_string_equal(name, family);
			assert_true(isdigit((unsigned char)end[1]));
			assert_int_equal(strspn(end + 1, "0123456789."), strlen(end + 1));
			key = (size_t)(end - line);
			assert_true(key < sizeof(seen[0]));
			memcpy(seen[n], line, key);
			seen[n][key] = 0;
		}
		for (size_t i = 0; i < n; i++)
			if (strcmp(seen[i], seen[n]) == 0)
				fail_msg("twice: %s", seen[n]);
		assert_true(++n < ARRAY_SIZE(seen));
	}
	assert_true(families > 50);
	free(z);
}

static void every_counter_shows(void **state _unused_)
{
	static struct view v;
	char *z, want[64];
	uint64_t *c = (uint64_t *)&v.counters;

	v = view;
	for (size_t i = 0; i < sizeof(v.counters) / sizeof(*c); i++)
		c[i] = 7700000000ull + i;
	z = written(view_write_metrics, &v);
	for (size_t i = 0; i < sizeof(v.counters) / sizeof(*c); i++) {
		/* These two have a better source: by upstream and status, and the sessions there are. */
		if (&c[i] == (uint64_t *)&v.counters.requests || &c[i] == (uint64_t *)&v.counters.connections_active)
			continue;
		snprintf(want, sizeof(want), " %llu\n", 7700000000ull + i);
		assert_non_null(strstr(z, want));
		assert_null(strstr(strstr(z, want) + 1, want));
	}
	free(z);
}

/* RFC 8259, as strict as a few lines can be. Returns the rest, or fails. */
static const char *json_value(const char *z)
{
	if (*z == '"') {
		for (z++; *z != '"'; z++) {
			assert_true((unsigned char)*z >= 0x20 && (unsigned char)*z < 0x7f);
			if (*z != '\\')
				continue;
			z++;
			assert_non_null(strchr("\"\\/bfnrtu", *z));
			if (*z == 'u')
				for (int i = 0; i < 4; i++)
					assert_true(isxdigit((unsigned char)*++z));
		}
		return z + 1;
	}
	if (*z == '{' || *z == '[') {
		bool object = *z == '{';
		char end = object ? '}' : ']';

		if (*++z == end)
			return z + 1;
		for (;; z++) {
			if (object) {
				assert_true(*z == '"');
				z = json_value(z);
				assert_true(*z++ == ':');
			}
			z = json_value(z);
			if (*z == end)
				return z + 1;
			if (*z != ',')
				fail_msg("not JSON at: %.40s", z);
		}
	}
	for (size_t i = 0; i < 3; i++) {
		static const char *const words[] = { "true", "false", "null" };

		if (strncmp(z, words[i], strlen(words[i])) == 0)
			return z + strlen(words[i]);
	}
	assert_true(isdigit((unsigned char)*z));
	assert_false(z[0] == '0' && isdigit((unsigned char)z[1]));
	return z + strspn(z, "0123456789.");
}

static void status_is_json(void **state _unused_)
{
	static const char *const parts[] = {
		"\"version\":\"1.2.3\",\"pid\":42,",
		"\"started\":\"2023-11-14T22:13:20Z\"",
		"\"uptime_s\":99.750",
		"\"config\":\"/etc/a\\\"b.yaml\"",
		"\"draining\":false",
		"\"engine\":{\"in_use\":\"splice\",\"why\":\"no CAP_BPF\"",
		"{\"address\":\"[::1]:6188\",\"port\":6188,\"tls\":false,\"open\":2,\"accepted\":9}",
		"{\"address\":\"unix:/run/x:1\",\"port\":0,\"tls\":true",
		"\"body_bytes\":{\"sockmap\":{\"request\":0,\"response\":1000}",
		"{\"address\":\"10.0.0.1:443\",\"state\":\"up\",\"admin\":\"enabled\",\"weight\":2,\"weight_configured\":1",
		"\"state\":\"down\",\"admin\":\"drain\"",
		"\"last_error\":\"said \\\"\\u0001\\u00ff\\\"\"",
		"\"name\":\"none\",\"balance\":\"maglev\",\"health_check\":\"none\",\"tls\":false,\"backends\":[]",
		"{\"upstream\":\"one\",\"code\":502,\"count\":1}",
		"\"flow_spills\":12",
	};
	static struct view empty = { .version = "x", .engine_limit = "copy", .open_fds = -1 };
	char *z = written(view_write_status, &view);

	assert_string_equal(json_value(z), "\n");
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (!strstr(z, parts[i]))
			fail_msg("missing: %s\n%s", parts[i], z);
	free(z);
	z = written(view_write_status, &empty);
	assert_string_equal(json_value(z), "\n");
	assert_non_null(strstr(z, "\"in_use\":\"copy\""));
	free(z);
}

static void engine_in_use_is_the_fastest_allowed(void **state _unused_)
{
	static const struct {
		const char *limit, *engine;
		bool sockmap, why;
	} rows[] = {
		{ "auto", "sockmap", true, false },   { "auto", "splice", false, true },
		{ "sockmap", "sockmap", true, false }, { "sockmap", "splice", false, true },
		{ "splice", "splice", true, true },   { "copy", "copy", true, true },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct view v = { .engine_limit = rows[i].limit, .features = { .sockmap = rows[i].sockmap } };
		const char *why;

		assert_string_equal(view_engine(&v, &why), rows[i].engine);
		assert_int_equal(*why != 0, rows[i].why);
	}
}

static void figures_are_readable(void **state _unused_)
{
	static const struct {
		uint64_t n;
		const char *bytes, *time;
	} rows[] = {
		{ 0, "0 B", "0 us" },
		{ 1023, "1023 B", "1 us" },
		{ 1024, "1.00 KiB", "1 us" },
		{ 1500000, "1.43 MiB", "1.5 ms" },
		{ 59 * NS_PER_S, "54.9 GiB", "59s" },
		{ 61 * NS_PER_S, "56.8 GiB", "1m 1s" },
		{ 3661 * NS_PER_S, "3.33 TiB", "1h 1m" },
		{ 90000 * NS_PER_S, "81.9 TiB", "1d 1h" },
		{ UINT64_MAX, "16.0 EiB", "213503d 23h" },
	};
	char z[HUMAN_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_string_equal(human_bytes(z, rows[i].n), rows[i].bytes);
		assert_string_equal(human_duration(z, rows[i].n), rows[i].time);
	}
}

static void tables_are_aligned(void **state _unused_)
{
	static const char *const headings[] = { "NAME", ">N", "REST", NULL };
	struct buf b = BUF_INIT;
	struct text t = TEXT_INIT(&b);
	struct table table;

	table_init(&table, headings);
	table_cell(&table, "a");
	table_cell(&table, "%d", 100);
	table_cell(&table, "x");
	table_cell(&table, "longer");
	table_cell(&table, "%d", 7);
	table_cell(&table, "%s", ">y");
	table_write(&table, &t);
	assert_int_equal(t.err, 0);
	assert_int_equal(buf_append(&b, "", 1), 0);
	assert_string_equal(buf_data(&b), "NAME      N  REST\n"
					  "a       100  x\n"
					  "longer    7  >y\n");
	buf_deinit(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(metrics_hold_the_series_others_read),
		cmocka_unit_test(metrics_are_well_formed),
		cmocka_unit_test(every_counter_shows),
		cmocka_unit_test(status_is_json),
		cmocka_unit_test(engine_in_use_is_the_fastest_allowed),
		cmocka_unit_test(figures_are_readable),
		cmocka_unit_test(tables_are_aligned),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
