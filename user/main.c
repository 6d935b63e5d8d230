/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's outside: arguments, the order of starting, signals, the end.
 *
 * Starting is in two halves. What needs privileges (logs, BPF, sockets) comes
 * first; then they are dropped, threads start, and the service is ready. Any
 * failure before that is told and leaves nothing behind.
 *
 * The main thread then runs a loop of its own for signals and the control
 * room; it never touches a request.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "conf/conf.h"
#include "control/control.h"
#include "control/counts.h"
#include "control/notify.h"
#include "control/takeover.h"
#include "control/upgrade.h"
#include "control/upgrade_spawn.h"
#include "daemon.h"
#include "io/loop.h"
#include "io/tls.h"
#include "kern/bpf.h"
#include "lb/lb.h"
#include "privileges.h"
#include "proxy/access_log.h"
#include "proxy/proxy.h"

#define DEATH_LOOKS 100u
#define DEATH_LOOK_US 20000u

#define FLOWS_MIN 64u
#define FLOWS_MAX 16384u

struct app {
	const char *conf_path;
	const struct conf *conf;
	struct kern *kern;
	struct proxy *proxy;
	struct control *control;
	struct lb *lb;
	struct loop *loop;
	struct upgrade *upgrade;
	struct takeover *takeover; /* while we come up as the next process */
	struct handed handed;	   /* sockets that others opened for us */
	struct watch signals, drained;
	struct timer drain_limit, watchdog;
	char exe[PATH_MAX]; /* the binary on disk, for an upgrade that we start ourselves */
	const char *next_argv[6];
	struct upgrade_child next;
	char *pid_path; /* as it was at the start; a reload does not move it */
	int ready;	/* a parent waits there to hear that we serve; -1: none */
	int pid_fd, pid_next; /* ours; the one before us's, until we serve */
	struct counts *counts;
	int cancel_fd;	/* readable when we are told to end, while there is no loop yet */
	bool take_over; /* -u */
	bool owner;	/* pins and the files of sockets are this process's to remove */
	bool draining;
};

static const char usage[] =
	"sluice - HTTP/1.1 reverse proxy and load balancer; the kernel moves the bodies\n"
	"\n"
	"usage: sluice -c FILE [-d] [-u] [-t]\n"
	"  -c, --conf FILE   configuration (YAML)\n"
	"  -d, --daemon      run in the background; returns when the service is up\n"
	"  -u, --upgrade     take over from a running process that is sent SIGQUIT, before or within 10 s\n"
	"  -t, --test        check the configuration and say what is wrong; exit 0 or 1\n"
	"  -V, --version     versions and what this kernel can do\n"
	"  -h, --help        this text\n"
	"\n"
	"examples:\n"
	"  sluice -t -c /etc/sluice/sluice.yaml        is the file right?\n"
	"  sluice -d -c /etc/sluice/sluice.yaml        start\n"
	"  kill -HUP $(cat PID_FILE)                   read the file again\n"
	"  kill -TERM $(cat PID_FILE)                  finish what is running, then stop\n"
	"  kill -QUIT $(cat PID_FILE) && sluice -d -u -c /etc/sluice/sluice.yaml   new binary or settings, no request lost\n"
	"\n"
	"signals: TERM stop gracefully, INT stop now, HUP reload, USR1 reopen logs, QUIT hand over\n"
	"a first configuration to look at: conf/quickstart.yaml (installed: share/doc/sluice); every key: sluice.yaml(5)\n";

/* ---- -t and -V ---- */

/* Loads and checks; errors go to standard error. NULL: not usable. */
static struct conf *load(const char *path, bool check_files, bool *complete)
{
	struct buf text = BUF_INIT;
	struct conf *c = NULL;
	int r = conf_load(&c, path, &text);

	*complete = false;
	if (r == 0 && check_files && conf_check_files(c, &text) != 0) {
		conf_unref(c);
		c = NULL;
	}
	if (c)
		*complete = conf_check_serve(c, &text) == 0;
	if (r < 0)
		fprintf(stderr, "sluice: %s: %s\n", path, strerror(-r));
	if (text.len)
		fprintf(stderr, STR_FMT "%s", STR_ARG(buf_str(&text)), buf_data(&text)[text.len - 1] == '\n' ? "" : "\n");
	buf_deinit(&text);
	return c;
}

static int test_conf(const char *path)
{
	bool complete;
	struct conf *c = load(path, true, &complete);

	if (!c)
		return 1;
	printf("%s: %s\n", path,
	       complete ? "the configuration is right" : "right as far as it goes, but there is nothing to serve yet");
	conf_unref(c);
	return complete ? 0 : 1;
}

static int print_version(void)
{
	struct kern_options o = { .workers = 1, .max_flows = 16, .max_backends = 16, .lock_fd = -1 };
	struct kern *k = NULL;
	struct utsname u;
	char tls[160] = "";

	log_level_max = LOG_LEVEL_ERROR;
	uname(&u);
	printf("sluice %s\n", SLUICE_VERSION);
	printf("libbpf %s, %s\n", kern_libbpf_version(), tls_library_version());
	printf("kernel %s\n", u.release);
	if (kern_open(&k, &o) < 0)
		return 1;
	const struct kern_features *f = kern_features(k);
	printf("  sockmap engine: %s%s%s\n", f->sockmap ? "yes" : "no", f->sockmap ? "" : ", ", f->reason_sockmap);
	printf("  BPF maps:       %s%s%s\n", f->bpf_maps ? "yes" : "no", f->bpf_maps ? "" : ", ", f->reason_maps);
	printf("  kernel TLS:     %s%s\n", tls_kernel_probe(tls, sizeof(tls)) == 0 ? "yes" : "no, ", tls);
	kern_close(k, true);
	return 0;
}

/* ---- running ---- */

static void finish_drain(struct app *a, const char *how)
{
	log_info("stopped", "how=\"%s\" pid=%d sessions=%u", how, (int)getpid(), proxy_sessions(a->proxy));
	loop_stop(a->loop);
}

static void drained_event(struct watch *w, _unused_ uint32_t events)
{
	finish_drain(container_of(w, struct app, drained), "the last session ended");
}

static void drain_limit(struct timer *t)
{
	finish_drain(container_of(t, struct app, drain_limit), "graceful_shutdown_timeout_seconds is over");
}

static void drain(struct app *a, bool close_idle, const char *why)
{
	uint64_t limit = (uint64_t)a->conf->grace_period_ms + a->conf->graceful_shutdown_timeout_ms;

	a->draining = true;
	log_info("draining", "reason=\"%s\" pid=%d sessions=%u timeout_ms=%lu", why, (int)getpid(), proxy_sessions(a->proxy),
		 (unsigned long)limit);
	timer_set(a->loop, &a->drain_limit, loop_now_fresh(a->loop) + limit * NS_PER_MS);
	proxy_drain(a->proxy, close_idle);
}

/* What another process uses now stays when this one ends. */
static void disown(struct app *a)
{
	a->owner = false;
	if (a->proxy)
		proxy_disown_paths(a->proxy);
	if (a->control)
		control_hand_over(a->control);
	upgrade_disown(a->upgrade);
}

/* The same when the other one has gone on with our pid file. */
static void give_to_next(struct app *a)
{
	disown(a);
	counts_handed_over(a->counts);
	if (a->pid_fd >= 0)
		close(a->pid_fd);
	a->pid_fd = -1;
}

static void stop_gracefully(struct app *a)
{
	if (a->draining) {
		/* Asked again, or after a hand-over: idle connections are waited for no longer. */
		proxy_drain(a->proxy, true);
		return;
	}
	if (upgrade_committed(a->upgrade))
		give_to_next(a);
	notify_stopping();
	upgrade_stop(&a->upgrade);
	drain(a, true, "told to stop");
}

/* ---- handing over; each is a hook of control/upgrade.h ---- */

static int upgrade_collect(void *ctx, struct handed *set)
{
	struct app *a = ctx;
	int r = proxy_collect(a->proxy, set);

	if (r == 0 && control_http_fd(a->control) >= 0)
		r = handed_add(set, control_http_fd(a->control), HANDED_ADMIN_HTTP, 0, "");
	if (r == 0 && control_socket_fd(a->control) >= 0)
		r = handed_add(set, control_socket_fd(a->control), HANDED_ADMIN_SOCKET, HANDED_OWNS_PATH, "");
	if (r == 0 && kern_lock_fd(a->kern) >= 0)
		r = handed_add(set, kern_lock_fd(a->kern), HANDED_PIN_LOCK, 0, a->conf->pin_dir);
	if (r == 0 && a->pid_fd >= 0)
		r = handed_add(set, a->pid_fd, HANDED_PID_FILE, 0, a->pid_path);
	return r == 0 ? counts_offer(a->counts, set) : r;
}

static void upgrade_ready(void *ctx)
{
	struct app *a = ctx;

	counts_ready(a->counts);
}

static void upgrade_handed_over(void *ctx, pid_t pid)
{
	struct app *a = ctx;

	log_info("handed_over", "pid=%d to=%d", (int)getpid(), (int)pid);
	give_to_next(a);
	lb_freeze(a->lb);
	drain(a, false, "handed over");
}

static void upgrade_went_wrong(void *ctx)
{
	struct app *a = ctx;

	notify_main_pid((int)getpid());
	counts_failed(a->counts);
	kern_repin(a->kern);
	if (a->pid_fd >= 0 && pidfile_adopt(a->pid_fd) < 0)
		log_error("pid_file", "reason=\"it can not be written\" path=%s", a->pid_path);
}

/* The operator's verb: the binary on disk takes over, all in one. */
static int upgrade_verb(void *ctx, struct buf *answer)
{
	struct app *a = ctx;

	if (a->draining) {
		buf_printf(answer, "this process is stopping; it does not hand over");
		return -EBUSY;
	}
	return upgrade_spawn(a->upgrade, &a->next, !a->conf->error_log, answer);
}

static bool same_text(const char *a, const char *b)
{
	return strcmp(a ? a : "", b ? b : "") == 0;
}

/* What a reload leaves as it is, said rather than passed over; and the log, which it does change. */
static void reload_error_log(const struct conf *old, const struct conf *new)
{
	const struct {
		const char *key, *before, *after;
	} fixed[] = {
		{ "pid_file", old->pid_file, new->pid_file },
		{ "upgrade_sock", old->upgrade_sock, new->upgrade_sock },
		{ "user", old->user, new->user },
		{ "group", old->group, new->group },
		{ "bpf.pin_dir", old->pin_dir, new->pin_dir },
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(fixed); i++)
		if (!same_text(fixed[i].before, fixed[i].after))
			log_warn("reload", "key=%s reason=\"changes with a restart or an upgrade\"", fixed[i].key);
	if (new->error_log && !same_text(old->error_log, new->error_log))
		r = log_open(new->error_log);
	if (r < 0)
		log_error("reopen_failed", "path=%s reason=\"%s\"", new->error_log, strerror(-r));
}

static struct str without_last_newline(struct str s)
{
	return (struct str){ s.p, s.n && s.p[s.n - 1] == '\n' ? s.n - 1 : s.n };
}

/* Reads the file again. On any error the service goes on as it was. 0 or -errno, the answer says what happened. */
static int reload(void *ctx, struct buf *answer)
{
	struct app *a = ctx;
	struct buf text = BUF_INIT;
	struct proxy_change *change = NULL;
	struct conf *c = NULL;
	char err[512] = "", quoted[1024];
	int r;

	if (a->draining || upgrade_busy(a->upgrade)) {
		buf_printf(answer, "this process is %s; it does not reload", a->draining ? "stopping" : "handing over");
		log_warn("reload_failed", "file=%s reason=\"" STR_FMT "\"", a->conf_path, STR_ARG(buf_str(answer)));
		return -EBUSY;
	}
	notify_reloading();
	r = conf_load(&c, a->conf_path, &text);
	if (r == 0)
		r = conf_check_serve(c, &text);
	if (r == 0)
		r = proxy_reload_prepare(&change, a->proxy, c, err, sizeof(err));
	if (r == 0 && (r = control_reload(a->control, c, err, sizeof(err))) < 0)
		proxy_reload_abort(&change);
	if (r == 0) {
		proxy_reload_commit(&change);
		reload_error_log(a->conf, c);
		kern_set_bounds(a->kern, c->splice.window, c->splice.memory);
		conf_unref(a->conf);
		a->conf = conf_ref(c);
		log_set_level(c->log_level);
		log_info("reloaded", "file=%s listeners=%u upstreams=%u", a->conf_path, c->listener_count,
			 c->upstream_count);
		buf_printf(answer, "reloaded %s: %u listeners, %u upstreams", a->conf_path, c->listener_count,
			   c->upstream_count);
	} else {
		if (err[0])
			buf_printf(&text, "%s", err);
		if (!text.len)
			buf_printf(&text, "%s", strerror(r < 0 ? -r : EINVAL));
		log_error("reload_failed", "file=%s action=\"the old configuration stays\" reason=%s", a->conf_path,
			  log_quote(quoted, sizeof(quoted), without_last_newline(buf_str(&text))));
		buf_printf(answer, "not reloaded, the old configuration stays:\n" STR_FMT, STR_ARG(buf_str(&text)));
		r = r < 0 ? r : -EINVAL;
	}
	control_note_reload(a->control, r == 0);
	snprintf(err, sizeof(err), STR_FMT, STR_ARG(buf_str(answer)));
	notify_ready(r == 0 ? "" : err);
	conf_unref(c);
	buf_deinit(&text);
	return r;
}

static void reopen_logs(struct app *a)
{
	int r = log_reopen();

	if (r < 0)
		log_error("reopen_failed", "path=%s reason=\"%s\" action=\"the open file is written to\"", a->conf->error_log,
			  strerror(-r));
	if (proxy_reopen_logs(a->proxy) == 0 && r == 0)
		log_info("logs_reopened", "pid=%d", (int)getpid());
}

static void on_signal(struct app *a, unsigned sig)
{
	struct buf answer = BUF_INIT;

	switch (sig) {
	case SIGTERM:
		stop_gracefully(a);
		break;
	case SIGINT:
		log_info("stopped", "how=\"SIGINT\" sessions=%u", proxy_sessions(a->proxy));
		loop_stop(a->loop);
		break;
	case SIGHUP:
		reload(a, &answer);
		break;
	case SIGUSR1:
		reopen_logs(a);
		break;
	case SIGQUIT:
		if (a->draining)
			log_warn("upgrade_refused", "reason=\"this process is stopping\"");
		else if (upgrade_ask(a->upgrade, &answer) == -EINVAL)
			log_warn("upgrade_refused", "reason=\"" STR_FMT "\"", STR_ARG(buf_str(&answer)));
		break;
	default:
		break;
	}
	buf_deinit(&answer);
}

static void signal_event(struct watch *w, _unused_ uint32_t events)
{
	struct app *a = container_of(w, struct app, signals);
	struct signalfd_siginfo si;

	while (read(w->fd, &si, sizeof(si)) == sizeof(si))
		on_signal(a, si.ssi_signo);
}

static void watchdog_tick(struct timer *t)
{
	struct app *a = container_of(t, struct app, watchdog);

	notify_watchdog();
	timer_set(a->loop, t, loop_now(a->loop) + notify_watchdog_interval());
}

static void raise_file_limit(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
}

static void log_start(struct app *a)
{
	const struct kern_features *f = kern_features(a->kern);
	enum conf_engine limit = a->conf->splice.engine;
	const char *engine = f->sockmap && limit <= CONF_ENGINE_SOCKMAP ? "sockmap"
			     : limit == CONF_ENGINE_COPY		? "copy"
									: "splice";
	const char *why = strcmp(engine, "sockmap") == 0 ? "the kernel passed the self-test"
			  : limit > CONF_ENGINE_SOCKMAP	 ? "splice.engine in the configuration"
							 : f->reason_sockmap;

	log_info("engine", "engine=%s reason=\"%s\"", engine, why);
	if (!f->bpf_maps)
		log_warn("health_table", "where=memory reason=\"%s\"", f->reason_maps);
	else if (!f->pinned)
		log_warn("health_table", "where=\"BPF map, not pinned\" reason=\"%s\"", f->reason_pinned);
}

/* While we are still root. What another process holds, it holds until we serve. 0 or -1. */
static int open_pid_file(struct app *a, char *why, size_t n)
{
	int fd;

	if (!a->pid_path)
		return 0;
	fd = handed_take(&a->handed, HANDED_PID_FILE, a->pid_path);
	if (fd >= 0 && pidfile_is(a->pid_path, fd)) {
		a->pid_next = fd;
		return 0;
	}
	if (fd >= 0)
		close(fd);
	a->pid_fd = pidfile_write(a->pid_path, why, n);
	/* A process that was killed while we waited for it may not have let go of everything yet. */
	for (unsigned i = 0; a->pid_fd == -EEXIST && a->takeover && a->owner && i < DEATH_LOOKS; i++) {
		usleep(DEATH_LOOK_US);
		a->pid_fd = pidfile_write(a->pid_path, why, n);
	}
	return a->pid_fd >= 0 || (!a->owner && a->pid_fd == -EEXIST) ? 0 : -1;
}

static void take_pid_file(struct app *a)
{
	char err[512];

	if (!a->pid_path || a->pid_fd >= 0)
		return;
	if (a->pid_next >= 0 && pidfile_adopt(a->pid_next) == 0) {
		a->pid_fd = a->pid_next;
		a->pid_next = -1;
		return;
	}
	a->pid_fd = pidfile_replace(a->pid_path, err, sizeof(err));
	if (a->pid_fd < 0)
		log_error("pid_file", "reason=\"%s\"", err);
}

static void tell_parent(struct app *a)
{
	if (a->ready >= 0)
		daemon_ready(a->ready, !a->conf->error_log);
	a->ready = -1;
}

/* From here on we are the process: there is no way back, so nothing in it may fail. */
static void taken_over(struct app *a)
{
	int before = (int)takeover_pid(a->takeover);

	/*
	 * Before the other one hears of it and ends: who waits for that end then finds us there. A service manager waits
	 * for the end of its children only, and looks once whether we are one: so our parent must have gone by then.
	 */
	take_pid_file(a);
	tell_parent(a);
	notify_main_pid((int)getpid());
	takeover_serving(&a->takeover);
	__atomic_fetch_add(&kern_counters(a->kern, kern_workers(a->kern))->upgrades, 1, __ATOMIC_RELAXED);
	log_info("upgraded", "pid=%d from=%d", (int)getpid(), before);
}

/*
 * How many bodies the kernel may move at a time: one for each client that the limits let in. A client takes two
 * descriptors at least. What finds no place in the table goes by the next engine.
 */
static unsigned flows_wanted(const struct conf *c)
{
	uint64_t clients = 0, most = FLOWS_MAX;
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
		most = MIN_OF(most, (uint64_t)files.rlim_cur / 2);
	for (uint32_t i = 0; i < c->listener_count; i++)
		clients += c->listeners[i].limits.connections ? c->listeners[i].limits.connections : FLOWS_MAX;
	return (unsigned)MAX_OF(MIN_OF(clients, most), (uint64_t)FLOWS_MIN);
}

/* Everything up to readiness. 0, or -1 with why. */
static int start(struct app *a, bool complete, char *why, size_t n)
{
	const struct conf *c = a->conf;
	char tls[160];
	int r;

	if (!complete) {
		snprintf(why, n, "%s has nothing to serve; sluice -t -c %s says what is missing", a->conf_path,
			 a->conf_path);
		return -1;
	}
	if (c->error_log && (r = log_open(c->error_log)) < 0) {
		snprintf(why, n, "error_log %s: %s", c->error_log, strerror(-r));
		return -1;
	}
	if (a->take_over && takeover_begin(&a->takeover, c->upgrade_sock, a->cancel_fd, &a->handed, why, n) < 0)
		return -1;
	a->owner = !a->takeover || takeover_alone(a->takeover);
	if (open_pid_file(a, why, n) < 0)
		return -1;
	tls_kernel_probe(tls, sizeof(tls));
	struct kern_options o = {
		.pin_dir = c->pin_dir,
		.workers = c->threads,
		.max_flows = flows_wanted(c),
		.limit = c->splice.engine <= CONF_ENGINE_SOCKMAP ? KERN_LIMIT_AUTO : KERN_LIMIT_NO_SOCKMAP,
		.window = c->splice.window,
		.memory = c->splice.memory,
		.lock_fd = handed_take(&a->handed, HANDED_PIN_LOCK, c->pin_dir),
	};
	r = kern_open(&a->kern, &o);
	if (o.lock_fd >= 0)
		close(o.lock_fd); /* shared by now */
	if (r < 0) {
		snprintf(why, n, "%s", strerror(-r));
		return -1;
	}
	if (proxy_new(&a->proxy, c, a->kern, &a->handed, why, n) < 0 ||
	    control_open_inherited(&a->control, c, handed_take(&a->handed, HANDED_ADMIN_HTTP, NULL),
				   handed_take(&a->handed, HANDED_ADMIN_SOCKET, NULL), why, n) < 0 ||
	    upgrade_new(&a->upgrade, c->upgrade_sock, handed_take(&a->handed, HANDED_UPGRADE, NULL), why, n) < 0)
		return -1;
	const int own[] = { kern_lock_fd(a->kern), c->error_log ? log_descriptor() : -1, *proxy_access_log_fd(a->proxy) };
	if (privileges_drop(c->user, c->group, own, ARRAY_SIZE(own), why, n) < 0)
		return -1;
	fault_exit(FAULT_EXIT_OPENED);
	a->drained = (struct watch){ .fd = proxy_drained_fd(a->proxy), .cb = drained_event };
	if ((r = loop_add(a->loop, &a->drained, EPOLLIN)) < 0) {
		snprintf(why, n, "cannot watch the workers: %s", strerror(-r));
		return -1;
	}
	if ((r = lb_start(&a->lb, c, a->kern)) < 0) {
		snprintf(why, n, "cannot start health checks: %s", strerror(-r));
		return -1;
	}
	if (proxy_start(a->proxy, a->lb, why, n) < 0)
		return -1;
	if (counts_new(&a->counts, a->loop, a->kern, a->lb, a->proxy) < 0) {
		snprintf(why, n, "out of memory");
		return -1;
	}
	struct control_hooks hooks = { .reload = reload, .upgrade = upgrade_verb, .ctx = a };
	struct upgrade_hooks upgrades = {
		.collect = upgrade_collect, .ready = upgrade_ready,
		.handed_over = upgrade_handed_over, .failed = upgrade_went_wrong, .ctx = a
	};
	control_set_hooks(a->control, &hooks);
	if ((r = upgrade_start(a->upgrade, a->loop, &upgrades)) < 0) {
		snprintf(why, n, "upgrade_sock: %s", strerror(-r));
		return -1;
	}
	if ((r = control_start(a->control, a->loop, a->proxy)) < 0) {
		snprintf(why, n, "admin: %s", strerror(-r));
		return -1;
	}
	if (a->takeover && takeover_ready(a->takeover, a->cancel_fd, why, n) < 0)
		return -1;
	counts_take(a->counts, &a->handed);
	a->owner = true;
	proxy_accept(a->proxy);
	if (a->takeover)
		taken_over(a);
	handed_deinit(&a->handed); /* what the configuration does not name any more */
	log_start(a);
	return 0;
}

static int open_loop(struct app *a)
{
	sigset_t set;
	int r = loop_new(&a->loop);

	if (r < 0)
		return r;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	a->cancel_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	a->signals = (struct watch){ .fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), .cb = signal_event };
	if (a->signals.fd < 0)
		return -errno;
	timer_init(&a->drain_limit, drain_limit);
	timer_init(&a->watchdog, watchdog_tick);
	return loop_add(a->loop, &a->signals, EPOLLIN);
}

static void finish(struct app *a, const char *why)
{
	if (upgrade_committed(a->upgrade))
		give_to_next(a);
	else if (!a->owner)
		disown(a);
	upgrade_stop(&a->upgrade);
	upgrade_child_deinit(&a->next, a->loop);
	control_stop(&a->control);
	counts_end(a->counts);
	proxy_stop(&a->proxy);
	counts_free(&a->counts);
	if (a->lb)
		lb_stop(&a->lb);
	kern_close(a->kern, a->owner);
	/* Last, so that the running process finds everything as it was. */
	takeover_failed(&a->takeover, why);
	handed_deinit(&a->handed);
	if (a->pid_path)
		pidfile_remove(a->pid_path, a->pid_fd);
	free(a->pid_path);
	if (a->pid_next >= 0)
		close(a->pid_next);
	if (a->loop) {
		timer_remove(a->loop, &a->drain_limit);
		timer_remove(a->loop, &a->watchdog);
		loop_free(a->loop);
	}
	if (a->cancel_fd >= 0)
		close(a->cancel_fd);
	if (a->signals.fd >= 0)
		close(a->signals.fd);
	conf_unref(a->conf);
}

static int run(struct app *a, bool daemon, bool complete)
{
	char why[1024] = "";
	int r;

	if (daemon && (a->ready = daemon_begin()) < 0) {
		fprintf(stderr, "sluice: cannot go to the background: %s\n", strerror(-a->ready));
		return 1;
	}
	raise_file_limit();
	if (geteuid() == 0 && a->conf->user && (r = upgrade_starter_begin(&a->next, !a->conf->error_log)) < 0)
		log_warn("upgrade_starter_gone", "reason=\"%s\"", strerror(-r));
	notify_init();
	r = open_loop(a);
	if (r < 0)
		snprintf(why, sizeof(why), "cannot watch signals: %s", strerror(-r));
	if (r < 0 || start(a, complete, why, sizeof(why)) < 0) {
		log_error("start_failed", "file=%s reason=\"%s\"", a->conf_path, why);
		if (a->ready >= 0)
			daemon_failed(a->ready, why);
		else if (a->conf->error_log)
			fprintf(stderr, "sluice: %s\n", why);
		finish(a, why);
		return 1;
	}
	log_info("ready", "version=%s pid=%d workers=%u file=%s", SLUICE_VERSION, (int)getpid(),
		 proxy_workers(a->proxy), a->conf_path);
	tell_parent(a);
	notify_ready("");
	if (notify_watchdog_interval())
		timer_set(a->loop, &a->watchdog, loop_now(a->loop));
	r = loop_run(a->loop);
	if (r < 0)
		log_error("main_loop_failed", "errno=%d reason=\"%s\"", -r, strerror(-r));
	finish(a, "");
	return r < 0;
}

static void set_next(struct app *a)
{
	const char *const argv[] = { a->exe, "-u", "-d", "-c", a->conf_path, NULL };

	_Static_assert(sizeof(argv) == sizeof(a->next_argv), "next_argv");
	memcpy(a->next_argv, argv, sizeof(argv));
	upgrade_child_init(&a->next, a->next_argv);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "conf", required_argument, NULL, 'c' }, { "daemon", no_argument, NULL, 'd' },
		{ "upgrade", no_argument, NULL, 'u' },	  { "test", no_argument, NULL, 't' },
		{ "version", no_argument, NULL, 'V' },	  { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct app app = { .ready = -1, .pid_fd = -1, .pid_next = -1, .cancel_fd = -1, .signals.fd = -1 };
	bool daemon = false, upgrade = false, test = false, complete;
	struct conf *c;
	int opt;

	while ((opt = getopt_long(argc, argv, "c:dutVh", options, NULL)) != -1) {
		switch (opt) {
		case 'c':
			app.conf_path = optarg;
			break;
		case 'd':
			daemon = true;
			break;
		case 'u':
			upgrade = true;
			break;
		case 't':
			test = true;
			break;
		case 'V':
			return print_version();
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs("try: sluice -h\n", stderr);
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "sluice: what is '%s'? The configuration is named with -c; see sluice -h\n", argv[optind]);
		return 2;
	}
	if (!app.conf_path) {
		fputs("sluice: no configuration is named: sluice -c FILE\n"
		      "a first one to look at is conf/quickstart.yaml (installed: share/doc/sluice); sluice -h tells more\n",
		      stderr);
		return 2;
	}
	if (fault_init(getenv("SLUICE_FAULT")) < 0) {
		fputs("sluice: SLUICE_FAULT names an unknown fault point\n", stderr);
		return 2;
	}
	if (test)
		return test_conf(app.conf_path);
	app.take_over = upgrade;
	if (readlink("/proc/self/exe", app.exe, sizeof(app.exe) - 1) < 0)
		app.exe[0] = 0;
	set_next(&app);
	if (handed_from_manager(&app.handed) < 0)
		return 1;
	c = load(app.conf_path, false, &complete);
	if (!c)
		return 1;
	if (!complete) {
		conf_unref(c);
		return 1;
	}
	app.conf = c;
	app.pid_path = c->pid_file ? strdup(c->pid_file) : NULL;
	log_set_level(c->log_level);
	return run(&app, daemon || c->daemon, complete);
}
