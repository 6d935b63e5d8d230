/* SPDX-License-Identifier: Apache-2.0 */
#include "control/control_inner.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"

#define LISTEN_BACKLOG 64

static uint64_t realtime_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void bound_init(struct bound *b)
{
	*b = (struct bound){ .fd = -1 };
}

static void bound_remove_file(struct bound *b)
{
	struct stat st;

	/* Another process may have put its own there by now. */
	if (b->ino && lstat(b->text + 5, &st) == 0 && st.st_dev == b->dev && st.st_ino == b->ino)
		unlink(b->text + 5);
	b->ino = 0;
}

/* Notes what was bound, and which file it is. */
static int bound_note(struct bound *b, const char *wanted, const struct sock_addr *a)
{
	struct stat st;

	snprintf(b->wanted, sizeof(b->wanted), "%s", wanted);
	sock_text(b->text, a, true);
	b->ino = 0;
	if (sock_is_tcp(a))
		return 0;
	if (lstat(a->un.sun_path, &st) < 0)
		return -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	b->dev = st.st_dev;
	b->ino = st.st_ino;
	return 0;
}

static const char *bind_advice(int r, bool tcp)
{
	switch (r) {
	case -EADDRINUSE:
		return tcp ? "another process uses it: stop that one, or choose another port" :
			     "another process answers on it: stop that one, or choose another path";
	case -EACCES:
		return tcp ? "a port below 1024 needs CAP_NET_BIND_SERVICE" : "the directory must be writable for this user";
	case -EADDRNOTAVAIL:
		return "no interface of this machine has that address";
	case -ENOENT:
		return "make its directory first";
	case -EEXIST:
		return "a file that is no socket is in the way";
	default:
		return "choose another one";
	}
}

static int bound_fail(int r, const char *key, const char *wanted, bool tcp, char *err, size_t errlen)
{
	snprintf(err, errlen, "%s: %s: %s: %s", key, wanted, strerror(-r), bind_advice(r, tcp));
	return r;
}

/* Last component only: /run/sluice of a machine that just started. */
static void make_parent(const char *path)
{
	char dir[SOCK_TEXT_MAX];
	const char *slash = strrchr(path, '/');

	if (!slash || slash == path || (size_t)(slash - path) >= sizeof(dir))
		return;
	snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
	(void)!mkdir(dir, 0755); /* what is wrong with it, bind tells */
}

/* Binds *a into b, which holds nothing. key names the configuration's place in messages. */
static int bound_open(struct bound *b, const struct sock_addr *a, const char *key, const char *wanted, char *err,
		      size_t errlen)
{
	struct sock_addr local = *a;
	bool tcp = sock_is_tcp(a);
	mode_t mask = 0;
	int fd, r;

	if (!tcp) {
		make_parent(a->un.sun_path);
		/* The file must never be there with a wider mode. Another thread that makes a file meanwhile gets a narrower one. */
		mask = umask(0177);
	}
	fd = sock_listen(a, LISTEN_BACKLOG, false);
	if (!tcp)
		umask(mask);
	if (fd < 0)
		return bound_fail(fd, key, wanted, tcp, err, errlen);
	r = tcp ? sock_local(fd, &local) : 0;
	if (r == 0)
		r = bound_note(b, wanted, &local);
	if (r < 0) {
		close(fd);
		return bound_fail(r, key, wanted, tcp, err, errlen);
	}
	b->fd = fd;
	return 0;
}

/* True when a listening socket of the old process is bound to what we want. */
static bool inherited_fits(int fd, const struct sock_addr *want)
{
	struct sock_addr has;
	int on = 0;
	socklen_t n = sizeof(on);

	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &n) < 0 || !on || sock_local(fd, &has) < 0 ||
	    has.sa.sa_family != want->sa.sa_family)
		return false;
	switch (want->sa.sa_family) {
	case AF_INET:
		return has.in.sin_addr.s_addr == want->in.sin_addr.s_addr &&
		       (!want->in.sin_port || has.in.sin_port == want->in.sin_port);
	case AF_INET6:
		return memcmp(&has.in6.sin6_addr, &want->in6.sin6_addr, sizeof(has.in6.sin6_addr)) == 0 &&
		       (!want->in6.sin6_port || has.in6.sin6_port == want->in6.sin6_port);
	case AF_UNIX:
		return strcmp(has.un.sun_path, want->un.sun_path) == 0;
	default:
		return false;
	}
}

/* What b shall be, from the configuration. False: nothing. */
static bool http_wanted(const struct conf *conf, struct sock_addr *a)
{
	*a = (struct sock_addr){ .len = conf->admin.http.len, .ss = conf->admin.http.ss };
	return a->len != 0;
}

static int socket_wanted(const struct conf *conf, struct sock_addr *a, char *err, size_t errlen)
{
	const char *path = conf->admin.socket;
	size_t n = path ? strlen(path) : 0;

	*a = (struct sock_addr){ 0 };
	if (n == 0)
		return 0;
	if (n >= sizeof(a->un.sun_path)) {
		snprintf(err, errlen, "admin.socket: %s: longer than the %zu bytes a socket path can have", path,
			 sizeof(a->un.sun_path) - 1);
		return -ENAMETOOLONG;
	}
	a->un.sun_family = AF_UNIX;
	memcpy(a->un.sun_path, path, n + 1);
	a->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
	return 0;
}

/* Takes over fd where it fits, else closes it and binds anew. */
static int bound_adopt(struct bound *b, int fd, const struct sock_addr *a, const char *key, const char *wanted, char *err,
		       size_t errlen)
{
	struct sock_addr local;

	if (fd >= 0) {
		if (a->len && inherited_fits(fd, a) && sock_local(fd, &local) == 0 && bound_note(b, wanted, &local) == 0) {
			b->fd = fd;
			return 0;
		}
		close(fd);
	}
	return a->len ? bound_open(b, a, key, wanted, err, errlen) : 0;
}

int control_open_inherited(struct control **out, const struct conf *conf, int http_fd, int socket_fd, char *err,
			   size_t errlen)
{
	struct sock_addr http, sock;
	struct control *c = calloc(1, sizeof(*c));
	int r;

	*out = NULL;
	if (!c) {
		snprintf(err, errlen, "out of memory");
		if (http_fd >= 0)
			close(http_fd);
		if (socket_fd >= 0)
			close(socket_fd);
		return -ENOMEM;
	}
	bound_init(&c->http);
	bound_init(&c->socket);
	door_init(&c->http_door, &http_service, c);
	door_init(&c->socket_door, &socket_service, c);
	c->started_ns = realtime_ns();
	c->started_mono_ns = now_ns();
	http_wanted(conf, &http);
	r = socket_wanted(conf, &sock, err, errlen);
	if (r < 0) {
		if (http_fd >= 0)
			close(http_fd);
		if (socket_fd >= 0)
			close(socket_fd);
	} else {
		r = bound_adopt(&c->socket, socket_fd, &sock, "admin.socket", sock.len ? conf->admin.socket : "", err, errlen);
		if (r < 0 && http_fd >= 0)
			close(http_fd);
		if (r == 0)
			r = bound_adopt(&c->http, http_fd, &http, "admin.http", conf->admin.http.text, err, errlen);
	}
	if (r < 0) {
		control_stop(&c);
		return r;
	}
	*out = c;
	return 0;
}

int control_open(struct control **out, const struct conf *conf, char *err, size_t errlen)
{
	return control_open_inherited(out, conf, -1, -1, err, errlen);
}

int control_http_fd(const struct control *c)
{
	return c->http.fd;
}

int control_socket_fd(const struct control *c)
{
	return c->socket.fd;
}

const char *control_http_text(const struct control *c)
{
	return c->http.text;
}

void control_set_hooks(struct control *c, const struct control_hooks *hooks)
{
	c->hooks = *hooks;
}

/* The door owns the descriptor; b keeps its number for handing it on. */
static int bound_serve(struct bound *b, struct door *d, struct loop *l)
{
	int r = door_listen(d, l, b->fd);

	b->fd = d->listen.fd;
	return r;
}

int control_start(struct control *c, struct loop *main_loop, struct proxy *p)
{
	int r;

	c->loop = main_loop;
	c->proxy = p;
	r = bound_serve(&c->http, &c->http_door, main_loop);
	if (r == 0)
		r = bound_serve(&c->socket, &c->socket_door, main_loop);
	if (r == 0 && c->http.fd >= 0)
		log_info("admin", "listener=%s", c->http.text);
	return r;
}

int control_reload(struct control *c, const struct conf *conf, char *err, size_t errlen)
{
	struct bound http, sock;
	struct sock_addr a, s;
	const char *path = conf->admin.socket ? conf->admin.socket : "";
	bool http_new, sock_new;
	int r;

	bound_init(&http);
	bound_init(&sock);
	http_wanted(conf, &a);
	r = socket_wanted(conf, &s, err, errlen);
	if (r < 0)
		return r;
	http_new = strcmp(c->http.wanted, a.len ? conf->admin.http.text : "") != 0;
	sock_new = strcmp(c->socket.wanted, path) != 0;
	if (http_new && a.len)
		r = bound_open(&http, &a, "admin.http", conf->admin.http.text, err, errlen);
	if (r == 0 && sock_new && s.len)
		r = bound_open(&sock, &s, "admin.socket", path, err, errlen);
	if (r < 0) {
		if (http.fd >= 0)
			close(http.fd);
		bound_remove_file(&http);
		return r;
	}
	/* From here on nothing is refused: the addresses are ours, epoll has room for what it had before. */
	if (http_new) {
		bound_remove_file(&c->http);
		c->http = http;
		r = bound_serve(&c->http, &c->http_door, c->loop);
	}
	if (sock_new) {
		bound_remove_file(&c->socket);
		c->socket = sock;
		r = bound_serve(&c->socket, &c->socket_door, c->loop) < 0 ? -EIO : r;
	}
	if (r < 0)
		log_error("admin", "reason=\"can not be watched\" errno=%d", -r);
	return 0;
}

void control_note_reload(struct control *c, bool ok)
{
	c->reload_failed = !ok;
	if (ok) {
		c->reloads++;
		c->reload_ns = realtime_ns();
	} else {
		c->reloads_failed++;
	}
}

void control_hand_over(struct control *c)
{
	struct bound *both[] = { &c->http, &c->socket };
	struct door *doors[] = { &c->http_door, &c->socket_door };

	for (size_t i = 0; i < ARRAY_SIZE(both); i++) {
		if (c->loop)
			door_listen(doors[i], c->loop, -1);
		else if (both[i]->fd >= 0)
			close(both[i]->fd);
		both[i]->ino = 0;
		both[i]->fd = -1;
	}
}

void control_stop(struct control **pc)
{
	struct control *c = *pc;

	if (!c)
		return;
	*pc = NULL;
	bound_remove_file(&c->http);
	bound_remove_file(&c->socket);
	if (c->loop) {
		door_deinit(&c->http_door);
		door_deinit(&c->socket_door);
	} else {
		if (c->http.fd >= 0)
			close(c->http.fd);
		if (c->socket.fd >= 0)
			close(c->socket.fd);
	}
	free(c);
}
