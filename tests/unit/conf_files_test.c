/* SPDX-License-Identifier: Apache-2.0 */
/* What -t finds outside the file: missing and unreadable files, directories, accounts, addresses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "conf/conf.h"

static char dir[64];

static int make_dir(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/conf_files_test.XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	(void)state;
	return rmdir(dir);
}

/* A file below dir; returns its path in one of a few static buffers. */
static const char *make_file(const char *name, const char *content)
{
	static char paths[4][128];
	static unsigned next;
	char *path = paths[next++ % 4];
	FILE *f;

	snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(content, f);
	fclose(f);
	return path;
}

/* The lines of conf_check_files for a file made of fmt, with dir written as DIR. */
static void expect(const char *errors, const char *fmt, ...) _printf_(2, 3);
static void expect(const char *errors, const char *fmt, ...)
{
	struct buf file = BUF_INIT, got = BUF_INIT, plain = BUF_INIT;
	struct conf *c;
	va_list ap;
	int r;

	buf_printf(&file, "version: 1\n");
	va_start(ap, fmt);
	buf_vprintf(&file, fmt, ap);
	va_end(ap);
	if (conf_load_buffer(&c, "f", buf_data(&file), file.len, &got) != 0)
		fail_msg(STR_FMT, STR_ARG(buf_str(&got)));
	r = conf_check_files(c, &got);
	for (size_t i = 0; i < got.len; i++) {
		if (strncmp(buf_data(&got) + i, dir, MIN_OF(strlen(dir), got.len - i)) == 0 && got.len - i > strlen(dir)) {
			buf_append(&plain, "DIR", 3);
			i += strlen(dir) - 1;
		} else {
			buf_append(&plain, buf_data(&got) + i, 1);
		}
	}
	if (!str_eqz(buf_str(&plain), errors) || r != (errors[0] != '\0'))
		fail_msg("%d and\n" STR_FMT "\nexpected:\n%s", r, STR_ARG(buf_str(&plain)), errors);
	conf_unref(c);
	buf_deinit(&file);
	buf_deinit(&got);
	buf_deinit(&plain);
}

static void certificates_must_be_readable_pem(void **state)
{
	const char *pem = make_file("good.pem", "-----BEGIN CERTIFICATE-----\n");
	const char *text = make_file("text.pem", "hello\n"), *empty = make_file("empty.pem", "");

	(void)state;
	expect("", "ca_file: %s\n", pem);
	expect("f:2:10: ca_file: \"DIR/text.pem\" is not PEM, give a file with a -----BEGIN line\n", "ca_file: %s\n", text);
	expect("f:2:10: ca_file: \"DIR/empty.pem\" is empty, give a file with content\n", "ca_file: %s\n", empty);
	expect("f:2:10: ca_file: \"DIR\" can not be read (Is a directory), give a file this user can read\n", "ca_file: %s\n", dir);
	expect("f:2:42: listeners[0].tls.certificates[0].cert: \"DIR/none\" can not be read (No such file or directory), "
	       "give a file this user can read\n",
	       "listeners: [{tls: {certificates: [{cert: %s/none, key: %s}]}, address: 127.0.0.1:0}]\n", dir, pem);
	unlink(pem);
	unlink(text);
	unlink(empty);
}

static void what_is_to_be_written_needs_its_directory(void **state)
{
	const char *log = make_file("log", "");

	(void)state;
	expect("", "error_log: %s\npid_file: %s/pid\nupgrade_sock: %s/sock\nadmin: {socket: %s/admin}\n", log, dir, dir, dir);
	expect("", "error_log: /dev/null\naccess_log: {path: /dev/full}\n");
	expect("f:2:11: pid_file: \"DIR/none/pid\" can not be made in DIR/none (No such file or directory), create the directory "
	       "or allow this user to write there\n"
	       "f:3:12: error_log: \"DIR\" is a directory, give a file's path\n",
	       "pid_file: %s/none/pid\nerror_log: %s\n", dir, dir);
	expect("f:2:20: access_log.path: \"DIR/log/a\" can not be made in DIR/log (Not a directory), create the directory or "
	       "allow this user to write there\n",
	       "access_log: {path: %s/a}\n", log);
	expect("f:2:23: listeners[0].address: \"DIR/none/s\" can not be made in DIR/none (No such file or directory), create the "
	       "directory or allow this user to write there\n",
	       "listeners: [{address: \"unix:%s/none/s\"}]\n", dir);
	unlink(log);
}

static void accounts_must_exist(void **state)
{
	(void)state;
	expect("", "user: root\ngroup: root\n");
	expect("", "user: 65534\ngroup: 65534\n");
	expect("f:2:7: user: \"no-such-user\" is no user on this system, create it or name another\n"
	       "f:3:8: group: \"no-such-group\" is no group on this system, create it or name another\n",
	       "user: no-such-user\ngroup: no-such-group\n");
	expect("f:2:7: user: \"3999999999\" is no user on this system, create it or name another\n", "user: 3999999999\n");
}

/* 192.0.2.0/24 is for documentation (RFC 5737): no host has it. */
static void addresses_to_listen_on_must_be_local(void **state)
{
	(void)state;
	expect("", "listeners: [{address: 127.0.0.1:1}, {address: \"*:1\"}]\nadmin: {http: \"127.0.0.1:2\"}\n");
	expect("f:2:23: listeners[0].address: \"192.0.2.1:1\" is no address of this host, write one that is, or 0.0.0.0 for all\n",
	       "listeners: [{address: 192.0.2.1:1}]\n");
	expect("f:2:15: admin.http: \"192.0.2.1:2\" is no address of this host, write one that is, or 0.0.0.0 for all\n",
	       "admin: {http: \"192.0.2.1:2\"}\n");
}

static void the_pin_directory_must_be_able_to_be_one(void **state)
{
	const char *file = make_file("file", "");

	(void)state;
	expect("f:2:16: bpf.pin_dir: \"DIR/file/pins\" can not be a directory (Not a directory), give one below /sys/fs/bpf\n",
	       "bpf: {pin_dir: %s/pins}\n", file);
	expect("", "bpf: {pin_dir: /sys/fs/bpf/a/b}\n");
	unlink(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(certificates_must_be_readable_pem),
		cmocka_unit_test(what_is_to_be_written_needs_its_directory),
		cmocka_unit_test(accounts_must_exist),
		cmocka_unit_test(addresses_to_listen_on_must_be_local),
		cmocka_unit_test(the_pin_directory_must_be_able_to_be_one),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
