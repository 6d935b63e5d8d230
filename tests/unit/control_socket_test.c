/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket: its file, its verbs, and how it changes hands. */
#include "control_fixture.h"
#include "base/fault.h"

static void says(const char *line, const char *first, const char *has)
{
	char *z = client_say(line);

	assert_begins(z, first);
	assert_has(z, has);
	free(z);
}

static void verbs_answer(void **state _unused_)
{
	static const struct {
		const char *line, *first, *has;
	} rows[] = {
		{ "status\n", "ok\n", "requests     0" },
		{ "status\r\n", "ok\n", "engine       splice: no CAP_BPF" },
		{ "status --json\n", "ok\n{", "\"workers\":2" },
		{ "backends\n", "ok\nBACKEND", "one/127.0.0.1:9" },
		{ "--json backends\n", "ok\n[{\"upstream\":\"one\"", "\"weight\":3" },
		{ "stats\n", "ok\nCOUNTER", "flow_spills" },
		{ "stats --json\n", "ok\n{\"counters\":{", "\"flow_spills\":0" },
		{ "help\n", "ok\nVERB", "weight NAME N" },
		{ "drain one/127.0.0.1:9\n", "ok\n", "one/127.0.0.1:9 drains" },
		{ "drain 127.0.0.1:9 --json\n", "ok\n{", "\"admin\":\"drain\"" },
		{ "disable 127.0.0.1:9\n", "ok\n", "is disabled" },
		{ "enable 127.0.0.1:9\n", "ok\n", "is enabled" },
		{ "weight one/127.0.0.1:9 5\n", "ok\n", "has weight 5" },
		{ "weight one/127.0.0.1:9 default\n", "ok\n", "configured weight" },
		{ "weight one/127.0.0.1:9 0\n", "error: weight 0:", "drain" },
		{ "weight one/127.0.0.1:9 257\n", "error: weight 257:", "256" },
		{ "weight one/127.0.0.1:9 5x\n", "error: weight 5x:", "" },
		{ "weight one/127.0.0.1:9 -1\n", "error: weight -1:", "" },
		{ "weight one/127.0.0.1:9\n", "error: usage: weight NAME N\n", "" },
		{ "drain\n", "error: usage: drain NAME\n", "" },
		{ "status now\n", "error: usage: status\n", "" },
		{ "drain 127.0.0.2:9\n", "error: several upstreams have 127.0.0.2:9", "two/127.0.0.2:9" },
		{ "drain one/127.0.0.1:8\n", "error: there is no backend one/127.0.0.1:8\n",
		  "the nearest is one/127.0.0.1:9\n" },
		{ "drain elsewhere\n", "error: there is no backend elsewhere\n", "  two/127.0.0.2:9\n" },
		{ "drian x\n", "error: unknown verb drian, the nearest is drain\n", "" },
		{ "xyzzy\n", "error: unknown verb xyzzy, help lists them\n", "" },
		{ "\n", "error: no verb", "" },
		{ "a b c d e f g h i\n", "error: more than 8 words\n", "" },
		{ "sta\001tus\n", "error: the line holds a control character\n", "" },
		{ "reload\n", "error: reload is not available\n", "" },
		{ "upgrade\n", "error: upgrade is not available\n", "" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		says(rows[i].line, rows[i].first, rows[i].has);
}

static void operators_words_reach_the_backend(void **state _unused_)
{
	struct backend *b;

	assert_int_equal(lb_find_backend(fix.lb, STR("one/127.0.0.1:9"), &b), 0);
	says("drain one/127.0.0.1:9\n", "ok\n", "");
	assert_int_equal(backend_admin(b), SLUICE_ADMIN_DRAIN);
	says("disable one/127.0.0.1:9\n", "ok\n", "");
	assert_int_equal(backend_admin(b), SLUICE_ADMIN_DISABLED);
	says("enable one/127.0.0.1:9\n", "ok\n", "");
	assert_int_equal(backend_admin(b), SLUICE_ADMIN_ENABLED);
	says("weight one/127.0.0.1:9 9\n", "ok\n", "");
	assert_int_equal(backend_weight(b, 3), 9);
	says("backends\n", "ok\n", "9 (of 3)");
	says("weight one/127.0.0.1:9 default\n", "ok\n", "");
	assert_int_equal(backend_weight(b, 3), 3);
	backend_unref(b);
}

static void long_and_binary_lines_are_refused(void **state _unused_)
{
	char big[3000], *z;
	int fd = client_socket(fix.sock);

	memset(big, 'a', sizeof(big));
	client_send(fd, big, sizeof(big));
	z = client_rest(fd);
	assert_begins(z, "error: the line is longer than");
	free(z);
	fd = client_socket(fix.sock);
	client_send(fd, "stat\0us\n", 8);
	z = client_rest(fd);
	assert_begins(z, "error: the line holds a control character");
	free(z);
}

static int hook_result;
static int hook_calls;

static int hook(void *ctx, struct buf *answer)
{
	hook_calls++;
	assert_ptr_equal(ctx, &hook_calls);
	return buf_printf(answer, "file.yaml:3:1: text") < 0 ? -ENOMEM : hook_result;
}

static void hooks_are_called_and_their_text_is_told(void **state _unused_)
{
	struct control_hooks h = { .reload = hook, .ctx = &hook_calls };

	control_set_hooks(fix.control, &h);
	hook_calls = 0;
	hook_result = 0;
	says("reload\n", "ok\nfile.yaml:3:1: text\n", "");
	hook_result = -EINVAL;
	says("reload\n", "error: not reloaded, all is as it was: Invalid argument\nfile.yaml:3:1: text\n", "");
	says("reload --json\n", "error: not reloaded", "{\"ok\":false,\"text\":\"file.yaml:3:1: text\"}");
	says("upgrade\n", "error: upgrade is not available\n", "");
	assert_int_equal(hook_calls, 3);
}

static void the_socket_is_private_and_goes_with_its_owner(void **state _unused_)
{
	struct stat st;

	assert_int_equal(lstat(fix.sock, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(st.st_mode & 0777, 0600);
	control_stop(&fix.control);
	assert_int_equal(lstat(fix.sock, &st), -1);
}

static void a_stale_socket_is_replaced_and_a_live_one_is_not(void **state _unused_)
{
	struct conf *c = fixture_conf("127.0.0.1:0", fix.sock);
	struct control *other;
	char err[256] = "";
	int fd;

	assert_int_equal(control_open(&other, c, err, sizeof(err)), -EADDRINUSE);
	assert_null(other);
	assert_has(err, fix.sock);
	assert_has(err, "another process answers on it");
	says("help\n", "ok\n", "");
	/* A dead process leaves its file. */
	fd = dup(control_socket_fd(fix.control));
	control_hand_over(fix.control);
	close(fd);
	assert_int_equal(access(fix.sock, F_OK), 0);
	assert_int_equal(control_open(&other, c, err, sizeof(err)), 0);
	control_stop(&other);
	conf_unref(c);
}

static void a_busy_address_is_told_with_what_to_do(void **state _unused_)
{
	struct conf *c = fixture_conf(control_http_text(fix.control), fix.other_sock);
	struct control *other;
	char err[256] = "";

	assert_int_equal(control_open(&other, c, err, sizeof(err)), -EADDRINUSE);
	assert_has(err, "admin.http");
	assert_has(err, "choose another port");
	assert_int_equal(access(fix.other_sock, F_OK), -1);
	conf_unref(c);
}

static void a_process_that_takes_over_goes_on_with_the_sockets(void **state _unused_)
{
	int http = dup(control_http_fd(fix.control)), sock = dup(control_socket_fd(fix.control));
	int waiting = client_socket(fix.sock); /* not yet accepted: must not be lost */
	char err[256] = "", address[SOCK_TEXT_MAX], *z;
	struct control *next;

	strcpy(address, control_http_text(fix.control));
	control_hand_over(fix.control);
	assert_int_equal(control_open_inherited(&next, fix.conf, http, sock, err, sizeof(err)), 0);
	assert_int_equal(control_http_fd(next), http);
	assert_int_equal(control_socket_fd(next), sock);
	assert_string_equal(control_http_text(next), address);
	control_stop(&fix.control);
	assert_int_equal(access(fix.sock, F_OK), 0);
	fix.control = next;
	assert_int_equal(control_start(next, fix.loop, NULL), 0);
	client_send(waiting, "help\n", 5);
	z = client_rest(waiting);
	assert_begins(z, "ok\nVERB");
	free(z);
}

static void inherited_sockets_that_do_not_fit_are_not_used(void **state _unused_)
{
	struct conf *c = fixture_conf("127.0.0.1:0", fix.other_sock);
	int sock = dup(control_socket_fd(fix.control));
	char err[256] = "";
	struct control *next;
	struct stat st;

	assert_int_equal(control_open_inherited(&next, c, -1, sock, err, sizeof(err)), 0);
	assert_int_equal(lstat(fix.other_sock, &st), 0);
	assert_true(control_http_fd(next) >= 0);
	control_stop(&next);
	assert_int_equal(lstat(fix.other_sock, &st), -1);
	conf_unref(c);
}

static void a_reload_moves_both_doors(void **state _unused_)
{
	struct conf *c = fixture_conf("127.0.0.2:0", fix.other_sock), *bad;
	char err[256] = "", address[SOCK_TEXT_MAX];

	strcpy(address, control_http_text(fix.control));
	/* One address that can not be had: nothing moves. */
	bad = fixture_conf("192.0.2.1:1", fix.other_sock);
	assert_int_equal(control_reload(fix.control, bad, err, sizeof(err)), -EADDRNOTAVAIL);
	assert_string_equal(control_http_text(fix.control), address);
	says("help\n", "ok\n", "");
	assert_int_equal(control_reload(fix.control, c, err, sizeof(err)), 0);
	assert_begins(control_http_text(fix.control), "127.0.0.2:");
	assert_int_equal(access(fix.sock, F_OK), -1);
	strcpy(fix.sock, fix.other_sock);
	says("help\n", "ok\n", "");
	/* Again the same: nothing to do. */
	strcpy(address, control_http_text(fix.control));
	assert_int_equal(control_reload(fix.control, c, err, sizeof(err)), 0);
	assert_string_equal(control_http_text(fix.control), address);
	conf_unref(bad);
	conf_unref(c);
}

static void reloads_are_counted(void **state _unused_)
{
	control_note_reload(fix.control, true);
	control_note_reload(fix.control, false);
	says("status --json\n", "ok\n", "\"reload\":{\"last_ok\":false,\"last\":\"20");
	says("status\n", "ok\n", "the last reload was refused");
	control_note_reload(fix.control, true);
	says("status --json\n", "ok\n", "\"done\":2,\"failed\":1");
}

static void accepting_goes_on_after_descriptors_ran_out(void **state _unused_)
{
	assert_int_equal(fault_init("accept:1"), 0);
	says("help\n", "ok\n", "");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(verbs_answer),
		T(operators_words_reach_the_backend),
		T(long_and_binary_lines_are_refused),
		T(hooks_are_called_and_their_text_is_told),
		T(the_socket_is_private_and_goes_with_its_owner),
		T(a_stale_socket_is_replaced_and_a_live_one_is_not),
		T(a_busy_address_is_told_with_what_to_do),
		T(a_process_that_takes_over_goes_on_with_the_sockets),
		T(inherited_sockets_that_do_not_fit_are_not_used),
		T(a_reload_moves_both_doors),
		T(reloads_are_counted),
		T(accepting_goes_on_after_descriptors_ran_out),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
