/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a bad file is told, word for word: each message says where, what was
 * read and what would be right. A row is a whole file and all of its lines of
 * errors.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "conf/conf.h"

#define V "version: 1\n"
#define UP "upstreams: {one: {servers: [{address: \"127.0.0.1:1\"}]}}\n"
#define TIME_RANGE "write a time from 1ms to 1d such as 250ms, 15s, 2m or 1h\n"

struct bad_file {
	const char *text, *errors;
};

static void check_bad(const struct bad_file *files, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct buf errors = BUF_INIT;
		struct conf *c;
		int r = conf_load_buffer(&c, "f", files[i].text, strlen(files[i].text), &errors);

		if (r != 1 || c || !str_eqz(buf_str(&errors), files[i].errors))
			fail_msg("%d for\n%s\nread:\n" STR_FMT "\nexpected:\n%s", r, files[i].text, STR_ARG(buf_str(&errors)),
				 files[i].errors);
		buf_deinit(&errors);
	}
}

static void yaml_mistakes_are_located(void **state)
{
	static const struct bad_file files[] = {
		{ "a:\n\t- b\n",
		  "f:2:1: not valid YAML: found character that cannot start any token, a tab can not indent: use spaces\n" },
		{ V "listeners: [\n",
		  "f:3:1: not valid YAML: did not find expected node content, check indentation, colons, brackets and quotes here\n" },
		{ V "listeners:\n  - address: [::]:6188\n",
		  "f:3:15: not valid YAML: did not find expected node content, put an IPv6 address in quotes: \"[::]:6188\"\n" },
		{ "version: &v 1\nthreads: *v\n", "f:2:10: alias *v is not supported, write the value out here\n" },
		{ "version: !!int 1\n", "f:1:10: tag \"tag:yaml.org,2002:int\" is not supported, write the value without it\n" },
		{ V "---\n" V, "f:2:1: a second document starts here, only one is allowed: remove the ---\n" },
		{ V "? [a]\n: b\n", "f:2:3: a list or map is used as a key, write key: value\n" },
		{ V "threads: \"2\n", "f:3:1: not valid YAML: found unexpected end of stream, check indentation, colons, brackets and quotes here\n" },
		{ V "# \xff\n", "f:2:3: not a text file: invalid leading UTF-8 octet, save it as UTF-8\n" },
		{ V "a: [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]\n", "f:2:20: nested too deeply, at most 16 levels\n" },
	};

	(void)state;
	check_bad(files, ARRAY_SIZE(files));
}

static void keys_must_be_known_and_once(void **state)
{
	static const struct bad_file files[] = {
		{ "", "f:1:1: \"version\" is missing, add version: 1 at the top\n" },
		{ "~\n", "f:1:1: \"version\" is missing, add version: 1 at the top\n" },
		{ "# nothing\n", "f:1:1: \"version\" is missing, add version: 1 at the top\n" },
		{ V "thread: 2\n", "f:2:1: unknown key \"thread\", did you mean \"threads\"?\n" },
		{ V "pid-file: /x\n", "f:2:1: unknown key \"pid-file\", did you mean \"pid_file\"?\n" },
		{ V "<<: {threads: 2}\n",
		  "f:2:1: unknown key \"<<\", known here: version, threads, pid_file, error_log, upgrade_sock, user, group, daemon, "
		  "grace_period_seconds, graceful_shutdown_timeout_seconds, upstream_keepalive_pool_size, max_retries, ca_file, "
		  "log_level, access_log, admin, bpf, splice, listeners, upstreams\n" },
		{ V "splice: {windwo: 1MiB}\n", "f:2:10: splice: unknown key \"windwo\", did you mean \"window\"?\n" },
		{ V "\"threads\\0\": 2\n", "f:2:1: unknown key \"threads\\x00\", did you mean \"threads\"?\n" },
		{ V "threads: 2\nthreads: 3\n", "f:3:1: duplicate key \"threads\", it is set at line 2 already: keep one\n" },
		{ V "listeners: [{adress: \"0.0.0.0:1\"}]\n",
		  "f:2:14: listeners[0]: unknown key \"adress\", did you mean \"address\"?\n"
		  "f:2:13: listeners[0]: \"address\" is missing, add address: 0.0.0.0:6188\n" },
		{ "- a\n", "f:1:1: is a list, write a map with keys of: version, threads, pid_file, error_log, upgrade_sock, user, "
			   "group, daemon, grace_period_seconds, graceful_shutdown_timeout_seconds, upstream_keepalive_pool_size, "
			   "max_retries, ca_file, log_level, access_log, admin, bpf, splice, listeners, upstreams\n" },
	};

	(void)state;
	check_bad(files, ARRAY_SIZE(files));
}

static void values_must_be_of_their_kind(void **state)
{
	static const struct bad_file files[] = {
		{ "version: 2\n", "f:1:10: version: \"2\" is not a version this program knows, write 1\n" },
		{ V "threads: two\n", "f:2:10: threads: \"two\" is not a whole number, write a whole number from 1 to 256\n" },
		{ V "threads: 0\n", "f:2:10: threads: \"0\" is out of range, write a whole number from 1 to 256\n" },
		{ V "threads: 99999999999999999999\n",
		  "f:2:10: threads: \"99999999999999999999\" is out of range, write a whole number from 1 to 256\n" },
		{ V "threads:\n", "f:2:9: threads: is empty, write a whole number from 1 to 256\n" },
		{ V "threads: [1]\n", "f:2:10: threads: is a list, write a whole number from 1 to 256\n" },
		{ V "daemon: yes\n", "f:2:9: daemon: \"yes\" is neither true nor false, write one of them\n" },
		{ V "grace_period_seconds: 5s\n",
		  "f:2:23: grace_period_seconds: \"5s\" is not a number of seconds, write a number of seconds from 0 to 2000000 without a unit\n" },
		{ V "pid_file: \"a\\nb\"\n", "f:2:11: pid_file: \"a\\x0ab\" has a control character in it, write a path\n" },
		{ V "user: [\"\\x9b31m\", \xc3\xa4]\nlog_level: \"\\x9b31m\xc3\xa4\"\n",
		  "f:2:7: user: is a list, write a user's name or number\n"
		  "f:3:12: log_level: \"\\xc2\\x9b31m\xc3\xa4\" is unknown, write one of: error, warn, info, debug\n" },
		{ V "pid_file: \"\"\n", "f:2:11: pid_file: is empty, write a path, or leave the key out\n" },
		{ V "log_level: warning\n", "f:2:12: log_level: \"warning\" is unknown, write one of: error, warn, info, debug\n" },
		{ V "log_level: inof\n",
		  "f:2:12: log_level: \"inof\" is unknown, did you mean \"info\"? Allowed: error, warn, info, debug\n" },
		{ V "splice: {window: 1K}\n",
		  "f:2:18: splice.window: \"1K\" is not a size, write a size from 4KiB to 1GiB such as 64KiB, 1MiB or 1GiB\n" },
		{ V "splice: {window: 2GiB}\n",
		  "f:2:18: splice.window: \"2GiB\" is out of range, write a size from 4KiB to 1GiB such as 64KiB, 1MiB or 1GiB\n" },
		{ V "bpf: {pin_dir: pins}\n",
		  "f:2:16: bpf.pin_dir: \"pins\" is not an absolute path, write one below /sys/fs/bpf\n" },
		{ V "access_log: {format: json}\n",
		  "f:2:13: access_log: \"path\" is missing, add path: /var/log/sluice/access.log\n" },
		{ V "admin: {http: localhost:80}\n",
		  "f:2:15: admin.http: \"localhost:80\" is a name, to listen write a number such as \"0.0.0.0:6188\", "
		  "\"[::]:6188\" or unix:/path\n" },
		{ V UP "listeners: [{address: 1.2.3.4}]\n",
		  "f:3:23: listeners[0].address: \"1.2.3.4\" has no port, write address:port such as \"127.0.0.1:8080\"\n" },
		{ V UP "listeners: [{address: \"*:1\", timeouts: {head: 15, body: 0s, idle: 2d, write: x}}]\n",
		  "f:3:47: listeners[0].timeouts.head: \"15\" has no unit, " TIME_RANGE
		  "f:3:57: listeners[0].timeouts.body: \"0s\" is out of range, " TIME_RANGE
		  "f:3:67: listeners[0].timeouts.idle: \"2d\" is out of range, " TIME_RANGE
		  "f:3:78: listeners[0].timeouts.write: \"x\" is not a time, " TIME_RANGE },
		{ V UP "listeners: [{address: \"*:1\", via: \"a b\"}]\n",
		  "f:3:35: listeners[0].via: \"a b\" can not stand in a Via field, write a name without blanks such as sluice, or "
		  "\"\" for no Via\n" },
		{ V UP "listeners: [{address: \"*:1\", tls: {certificates: [{cert: a}]}}]\n",
		  "f:3:51: listeners[0].tls.certificates[0]: \"key\" is missing, add key: /etc/sluice/site.key\n" },
		{ V UP "listeners: [{address: \"*:1\", tls: {}}]\n",
		  "f:3:35: listeners[0].tls: \"certificates\" is missing, add certificates: [{cert: site.pem, key: site.key}]\n" },
		{ V UP "listeners: [{address: \"*:1\", routes: []}]\n",
		  "f:3:38: listeners[0].routes: is empty, write a list such as [{upstream: one}]\n" },
		{ V UP "listeners: [{address: \"*:1\", routes: [{host: \"a:1\", path_prefix: b, upstream: one}]}]\n",
		  "f:3:46: listeners[0].routes[0].host: \"a:1\" is not a host, write a host such as example.org or "
		  "\"*.example.org\", without a port\n"
		  "f:3:66: listeners[0].routes[0].path_prefix: \"b\" is not a path, write one that begins with / and has no ?, # "
		  "or blank\n" },
		{ V "upstreams: {}\n",
		  "f:2:12: upstreams: is empty, write a map such as {one: {servers: [{address: \"127.0.0.1:8080\"}]}}\n" },
		{ V "upstreams: {a/b: {servers: [{address: \"a:1\"}]}}\n",
		  "f:2:13: upstreams: \"a/b\" is no name, write 1 to 63 letters, digits, . _ or -\n" },
		{ V "upstreams: {a: {}}\n",
		  "f:2:16: upstreams.a: \"servers\" is missing, add servers: [{address: \"127.0.0.1:8080\"}]\n" },
		{ V "upstreams: {a: {servers: [{address: \"::1:80\", weight: 257}]}}\n",
		  "f:2:37: upstreams.a.servers[0].address: \"::1:80\" is not clear: put an IPv6 address in brackets, "
		  "\"[::1]:8080\"\n"
		  "f:2:55: upstreams.a.servers[0].weight: \"257\" is out of range, write a whole number from 0 to 256\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\"}], host: \"a\\r\\nX: y\"}}\n",
		  "f:2:52: upstreams.a.host: \"a\\x0d\\x0aX: y\" has a control character in it, write a host such as example.org or "
		  "example.org:8080\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\"}], balance: ketama, hash: {key: header}}}\n",
		  "f:2:75: upstreams.a.hash.key: \"header\" is no key to hash, write source_ip, uri, header:NAME or cookie:NAME\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\"}], tls: {sni: \"1.2.3.4:443\"}}}\n",
		  "f:2:57: upstreams.a.tls.sni: \"1.2.3.4:443\" is no host name or address, write one such as example.org, without a port\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\"}], health_check: {type: http, expect_status: [200, 99, 300-200]}}}\n",
		  "f:2:94: upstreams.a.health_check.expect_status[1]: \"99\" is no status from 100 to 599, write a status such as 200 "
		  "or a range such as 200-399\n"
		  "f:2:98: upstreams.a.health_check.expect_status[2]: \"300-200\" is no status from 100 to 599, write a status such "
		  "as 200 or a range such as 200-399\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\"}], retries: {on: [connect_failed]}}}\n",
		  "f:2:61: upstreams.a.retries.on[0]: \"connect_failed\" is unknown, did you mean \"connect_failure\"? Allowed: "
		  "connect_failure, reused_connection\n" },
	};

	(void)state;
	check_bad(files, ARRAY_SIZE(files));
}

static void sections_must_agree(void **state)
{
	static const struct bad_file files[] = {
		{ V "splice: {window: 1MiB, memory: 64KiB}\n",
		  "f:2:9: splice: memory (65536 bytes) is less than window (1048576 bytes), make memory the larger one\n" },
		{ V UP "listeners: [{address: \"*:1\", routes: [{upstream: onne}, {upstream: zzzzzz}]}]\n",
		  "f:3:50: listeners[0].routes[0].upstream: there is no upstream \"onne\", did you mean \"one\"?\n"
		  "f:3:68: listeners[0].routes[1].upstream: there is no upstream \"zzzzzz\", add it under upstreams\n" },
		{ V UP "listeners: [{address: \"*:1\"}, {address: \"0.0.0.0:1\"}]\n",
		  "f:3:41: listeners[1].address: \"0.0.0.0:1\" is taken by the listener at line 3, write another\n" },
		{ V UP "admin: {http: \"127.0.0.1:1\"}\nlisteners: [{address: 127.0.0.1:1}]\n",
		  "f:4:23: listeners[0].address: \"127.0.0.1:1\" is taken by admin.http, write another\n" },
		{ V UP "listeners:\n- address: 127.0.0.1:1\n  routes: [{upstream: one},\n    {host: a, upstream: one}]\n",
		  "f:6:5: this route is never reached, the one at line 5 takes everything: move it above\n" },
		{ V UP "listeners:\n- address: 127.0.0.1:1\n  routes: [{host: a, upstream: one},\n    {host: A, upstream: one}]\n",
		  "f:6:5: this route is never reached, the one at line 5 takes the same requests: move it above\n" },
		{ V "listeners: [{address: 127.0.0.1:1}]\n"
		    "upstreams: {a: {servers: [{address: \"a:1\"}]}, b: {servers: [{address: \"a:1\"}]}}\n",
		  "f:2:13: listeners[0]: has no routes and there are 2 upstreams, add routes: [{upstream: a}]\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\"}, {address: \"a:1\"}]}}\n",
		  "f:2:45: upstreams.a.servers[1]: \"a:1\" is listed at line 2 already, use weight for a larger share\n" },
		{ V "upstreams: {a: {servers: [{address: \"a:1\", weight: 0}]}}\n",
		  "f:2:13: upstreams.a: every server has weight 0, give one of them at least 1\n" },
		{ V "upstreams: {a: {tls: {}, servers: [{address: \"127.0.0.1:1\"}]}}\n",
		  "f:2:36: upstreams.a.servers[0]: nothing says which name its certificate must have, add tls.sni: NAME, or verify: "
		  "false to trust any\n" },
		{ V "upstreams: {a: {tls: {cert: c}, servers: [{address: \"a:1\"}]}}\n",
		  "f:2:22: upstreams.a.tls: a client certificate needs both, add key\n" },
		{ V "upstreams: {a: {hash: {key: uri}, servers: [{address: \"a:1\"}]}}\n",
		  "f:2:23: upstreams.a.hash: has no meaning for balance: round_robin, write balance: fnv, ketama or maglev\n" },
		{ V "upstreams: {a: {health_check: {type: tcp, path: /}, servers: [{address: \"a:1\"}]}}\n",
		  "f:2:49: upstreams.a.health_check.path: has no meaning for a tcp check, write type: http or leave it out\n" },
		{ V "upstreams: {a: {health_check: {port: 1}, servers: [{address: \"unix:/a\"}]}}\n",
		  "f:2:52: upstreams.a.servers[0]: a unix socket has no port, leave health_check.port out\n" },
	};

	(void)state;
	check_bad(files, ARRAY_SIZE(files));
}

static void one_run_tells_all_mistakes_but_not_without_end(void **state)
{
	struct buf file = BUF_INIT, errors = BUF_INIT;
	struct conf *c;
	size_t lines = 0;

	(void)state;
	for (int i = 0; i < 500; i++)
		buf_printf(&file, "unknown%d: 1\n", i);
	assert_int_equal(conf_load_buffer(&c, "f", buf_data(&file), file.len, &errors), 1);
	for (size_t i = 0; i < errors.len; i++)
		lines += buf_data(&errors)[i] == '\n';
	assert_int_equal(lines, 100);
	assert_non_null(memmem(buf_data(&errors), errors.len, "f: more errors follow, correct these first\n", 43));
	buf_deinit(&file);
	buf_deinit(&errors);
}

static void files_that_can_not_be_read_are_told(void **state)
{
	static const struct {
		const char *path, *error;
	} cases[] = {
		{ "/nonexistent/x.yaml", "/nonexistent/x.yaml: can not be read: No such file or directory, give a readable YAML file\n" },
		{ "/tmp", "/tmp: can not be read: Is a directory, give a readable YAML file\n" },
		{ "/dev/zero", "/dev/zero: is larger than 1048576 bytes, write a smaller file\n" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct buf errors = BUF_INIT;
		struct conf *c;

		assert_int_equal(conf_load(&c, cases[i].path, &errors), 1);
		if (!str_eqz(buf_str(&errors), cases[i].error))
			fail_msg(STR_FMT, STR_ARG(buf_str(&errors)));
		buf_deinit(&errors);
	}
}

/* One unknown key in each section makes the parser list the section's keys; each of them must be explained. */
static void every_key_is_in_the_example_and_the_manual(void **state)
{
	static const char *const sections[] = {
		"%s",
		"access_log: {path: a, %s}",
		"admin: {%s}",
		"bpf: {%s}",
		"splice: {%s}",
		"listeners: [{address: \"*:1\", %s}]",
		"listeners: [{address: \"*:1\", timeouts: {%s}}]",
		"listeners: [{address: \"*:1\", min_rate: {%s}}]",
		"listeners: [{address: \"*:1\", limits: {%s}}]",
		"listeners: [{address: \"*:1\", forwarded: {%s}}]",
		"listeners: [{address: \"*:1\", tls: {certificates: [{cert: a, key: a, %s}]}}]",
		"listeners: [{address: \"*:1\", tls: {certificates: [{cert: a, key: a}], %s}}]",
		"listeners: [{address: \"*:1\", routes: [{upstream: a, %s}]}]",
		"upstreams: {a: {servers: [{address: \"a:1\"}], %s}}",
		"upstreams: {a: {servers: [{address: \"a:1\", %s}]}}",
		"upstreams: {a: {servers: [{address: \"a:1\"}], tls: {%s}}}",
		"upstreams: {a: {servers: [{address: \"a:1\"}], hash: {key: uri, %s}}}",
		"upstreams: {a: {servers: [{address: \"a:1\"}], health_check: {%s}}}",
		"upstreams: {a: {servers: [{address: \"a:1\"}], timeouts: {%s}}}",
		"upstreams: {a: {servers: [{address: \"a:1\"}], keepalive: {%s}}}",
		"upstreams: {a: {servers: [{address: \"a:1\"}], retries: {%s}}}",
	};
	static const char *const manuals[] = { "conf/example.yaml", "conf/sluice.yaml.5" };

	(void)state;
	for (size_t m = 0; m < ARRAY_SIZE(manuals); m++) {
		static char manual[100000];
		FILE *f = fopen(manuals[m], "r");

		assert_non_null(f);
		manual[fread(manual, 1, sizeof(manual) - 1, f)] = '\0';
		fclose(f);
		for (size_t i = 0; i < ARRAY_SIZE(sections); i++) {
			struct buf file = BUF_INIT, errors = BUF_INIT;
			char section[200], *list, *key, *save = NULL;
			struct conf *c;

			snprintf(section, sizeof(section), sections[i], "0123456789: 1");
			buf_printf(&file, V "%s\n", section);
			assert_int_equal(conf_load_buffer(&c, "f", buf_data(&file), file.len, &errors), 1);
			buf_append(&errors, "", 1);
			list = strstr(buf_data(&errors), "known here: ");
			assert_non_null(list);
			list += strlen("known here: ");
			list[strcspn(list, "\n")] = '\0';
			for (key = strtok_r(list, ", ", &save); key; key = strtok_r(NULL, ", ", &save)) {
				char entry[2][64];

				snprintf(entry[0], sizeof(entry[0]), "%s:", key);
				snprintf(entry[1], sizeof(entry[1]), ".B %s\n", key);
				if (!strstr(manual, entry[m]))
					fail_msg("%s does not explain \"%s\" of %s", manuals[m], key, sections[i]);
			}
			buf_deinit(&file);
			buf_deinit(&errors);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(yaml_mistakes_are_located),
		cmocka_unit_test(keys_must_be_known_and_once),
		cmocka_unit_test(values_must_be_of_their_kind),
		cmocka_unit_test(sections_must_agree),
		cmocka_unit_test(one_run_tells_all_mistakes_but_not_without_end),
		cmocka_unit_test(files_that_can_not_be_read_are_told),
		cmocka_unit_test(every_key_is_in_the_example_and_the_manual),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
