/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection: its bytes in and out, one function for each state, and the loop
 * that drives them. Sends come from `out` or straight from the table; never both at once.
 */
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>
#include "origin.h"

static int ssl_result(struct conn *c, int n)
{
	int e = SSL_get_error(c->ssl, n);

	ERR_clear_error();
	if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
		return 0;
	return -1;
}

/* Appends what there is to in. 1: something came, 0: nothing now, -1: end or error. */
static int conn_read(struct conn *c)
{
	size_t room;
	ssize_t n;

	if (buf_reserve(&c->in, READ_SIZE) < 0)
		return -1;
	room = READ_SIZE;
	if (c->ssl) {
		n = SSL_read(c->ssl, buf_tail(&c->in), (int)room);
		if (n <= 0)
			return ssl_result(c, (int)n);
	} else {
		n = recv(c->fd, buf_tail(&c->in), room, 0);
		if (n <= 0)
			return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
		c->dry = (size_t)n < room;
	}
	buf_commit(&c->in, (size_t)n);
	return 1;
}

/* Sends from memory. >0: bytes taken, 0: not now, -1: error. */
static ssize_t conn_send(struct conn *c, const void *p, size_t n, bool more)
{
	ssize_t k;

	if (c->ssl) {
		k = SSL_write(c->ssl, p, (int)MIN_OF(n, (size_t)INT32_MAX));
		return k > 0 ? k : ssl_result(c, (int)k);
	}
	k = send(c->fd, p, n, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
	return k >= 0 ? k : errno == EAGAIN || errno == EINTR ? 0 : -1;
}

/* Sends part of the current span of T, likewise. */
static ssize_t conn_send_span(struct conn *c, size_t max)
{
	off_t pos = (off_t)(c->off % TABLE_BYTES);
	size_t n = (size_t)MIN_OF(MIN_OF(c->span, (uint64_t)(TABLE_BYTES - pos)), (uint64_t)max);
	ssize_t k;

	if (c->ssl && g.ktls && BIO_get_ktls_send(SSL_get_wbio(c->ssl))) {
		k = SSL_sendfile(c->ssl, g.table_fd, pos, n, 0);
		return k > 0 ? k : ssl_result(c, (int)k);
	}
	if (c->ssl)
		return conn_send(c, g.table + pos, n, false);
	k = sendfile(c->fd, g.table_fd, &pos, n);
	return k >= 0 ? k : errno == EAGAIN || errno == EINTR ? 0 : -1;
}

static enum step wait_for(struct conn *c, uint32_t want)
{
	c->want = want;
	return STEP_WAIT;
}

enum step sleep_ms(struct conn *c, uint64_t ms)
{
	c->wake = now_ns() + ms * NS_PER_MS;
	list_unlink(&c->sleep_link);
	list_push_back(&c->w->sleeping, &c->sleep_link);
	c->st = ST_SLEEP;
	return wait_for(c, EPOLLRDHUP);
}

enum step cut(struct conn *c, bool rst)
{
	struct linger hard = { .l_onoff = 1 };

	if (rst)
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	if (c->ssl)
		SSL_set_quiet_shutdown(c->ssl, 1);
	return STEP_END;
}

static enum step step_tls(struct conn *c)
{
	int n = SSL_accept(c->ssl);

	if (n == 1) {
		atomic_fetch_add(&g.handshakes, 1);
		return go(c, ST_HEAD);
	}
	if (ssl_result(c, n) < 0) {
		atomic_fetch_add(&g.tls_failed, 1);
		SSL_set_quiet_shutdown(c->ssl, 1);
		return STEP_END;
	}
	return wait_for(c, SSL_want_write(c->ssl) ? EPOLLOUT : EPOLLIN);
}

static enum step answer(struct conn *c)
{
	c->off = ((query_num(c, "seed", 1) - 1) * 1000003ull) % TABLE_BYTES;
	return c->route->answer(c);
}

static enum step step_head(struct conn *c)
{
	const char *end = c->in.len ? memmem(buf_data(&c->in), c->in.len, "\r\n\r\n", 4) : NULL;
	int r;

	if (!end) {
		if (c->in.len > HEAD_MAX)
			return cut(c, false);
		/* TLS to the plain port, say: its sender waits for an answer and sends no more. */
		if (c->in.len && !isprint((unsigned char)buf_data(&c->in)[0]) && buf_data(&c->in)[0] != '\r') {
			buf_consume(&c->in, c->in.len);
			return answer_bad_request(c);
		}
		if (c->dry) {
			c->dry = false;
			buf_release_if_empty(&c->in);
			return wait_for(c, EPOLLIN);
		}
		r = conn_read(c);
		if (r == 0)
			buf_release_if_empty(&c->in);
		return r < 0 ? STEP_END : r ? STEP_ON : wait_for(c, EPOLLIN);
	}
	c->head.len = c->head.start = 0;
	if (buf_append(&c->head, buf_data(&c->in), (size_t)(end + 4 - buf_data(&c->in))) < 0)
		return STEP_END;
	buf_consume(&c->in, c->head.len);
	c->requests++;
	atomic_fetch_add(&g.requests, 1);
	if (!parse_head(c))
		return answer_bad_request(c);
	c->route = route_find(c);
	if (c->expect && c->in_st != IN_DONE && (!c->route->at_once || str_eqz(c->path, "/echo")))
		buf_append_str(&c->out, STR("HTTP/1.1 100 Continue\r\n\r\n"));
	if (c->route->at_once)
		return answer(c);
	if (c->route->hash) {
		if (!c->md && !(c->md = EVP_MD_CTX_new()))
			return STEP_END;
		EVP_DigestInit_ex(c->md, EVP_sha256(), NULL);
	}
	return go(c, ST_COLLECT);
}

/* Reads more when body_take found too little. */
static enum step more_input(struct conn *c)
{
	int r = conn_read(c);

	return r < 0 ? cut(c, false) : r ? STEP_ON : wait_for(c, EPOLLIN);
}

static enum step step_collect(struct conn *c)
{
	struct str s;
	int r = body_take(c, &s);

	if (r == 1 && c->route->hash)
		EVP_DigestUpdate(c->md, s.p, s.n);
	return r < 0 ? cut(c, false) : r == 2 ? answer(c) : r == 1 ? STEP_ON : more_input(c);
}

static enum step step_drain(struct conn *c)
{
	struct str s;
	int r = body_take(c, &s);

	return r < 0 ? STEP_END : r == 2 ? go(c, ST_HEAD) : r == 1 ? STEP_ON : more_input(c);
}

static enum step step_echo(struct conn *c)
{
	struct str s;
	int r = body_take(c, &s);

	if (r < 0)
		return cut(c, true);
	if (r == 0)
		return more_input(c);
	if (r == 2) {
		if (c->echo_chunked)
			buf_append_str(&c->out, STR("0\r\n\r\n"));
		return go(c, ST_SEND);
	}
	if (c->echo_chunked)
		buf_printf(&c->out, "%zx\r\n", s.n);
	buf_append_str(&c->out, s);
	if (c->echo_chunked)
		buf_append_str(&c->out, STR("\r\n"));
	return STEP_ON;
}

/* Everything is echoed; the peer's end, once all is sent back, is answered by ours. */
static enum step step_tunnel(struct conn *c)
{
	int r;

	if (c->in.len) {
		buf_append_str(&c->out, buf_str(&c->in));
		buf_consume(&c->in, c->in.len);
		return STEP_ON;
	}
	r = conn_read(c);
	return r < 0 ? STEP_END : r ? STEP_ON : wait_for(c, EPOLLIN);
}

static enum step step_linger(struct conn *c)
{
	int r = conn_read(c);

	buf_consume(&c->in, c->in.len);
	return r < 0 ? STEP_END : r ? STEP_ON : wait_for(c, EPOLLIN);
}

static enum step step_stall(struct conn *c)
{
	return wait_for(c, EPOLLRDHUP);
}

/* Puts the next framing bytes into out and opens the next span. False: the body is complete. */
static bool body_next(struct conn *c)
{
	switch (c->kind) {
	case BODY_NONE:
		return false;
	case BODY_PLAIN:
	case BODY_PACED:
		c->span = c->kind == BODY_PLAIN ? c->left : MIN_OF(c->left, c->slice);
		c->left -= c->span;
		if (!c->left && !c->span)
			c->kind = BODY_NONE;
		return c->span > 0;
	case BODY_CHUNKED:
		if (c->chunk_open)
			buf_append_str(&c->out, STR("\r\n"));
		c->chunk_open = c->left > 0;
		c->span = MIN_OF(c->left, c->chunk);
		c->left -= c->span;
		if (c->span) {
			buf_printf(&c->out, "%" PRIx64 "%s\r\n", c->span, c->ext ? ";name=\"a;b\"" : "");
			return true;
		}
		buf_printf(&c->out, "0\r\n%s\r\n", c->trailer ? "X-Trailer: end\r\n" : "");
		c->kind = BODY_NONE;
		return true;
	}
	return false;
}

static enum step step_sleep(struct conn *c)
{
	if (now_ns() < c->wake)
		return wait_for(c, EPOLLRDHUP);
	list_unlink(&c->sleep_link);
	if (c->kind == BODY_PACED) {
		c->wake = 0;
		body_next(c);
		return go(c, ST_SEND);
	}
	return answer(c);
}

static enum step response_done(struct conn *c)
{
	switch (c->after) {
	case AFTER_KEEP:
		return go(c, ST_HEAD);
	case AFTER_DRAIN:
		return go(c, ST_DRAIN);
	case AFTER_CUT:
		return cut(c, false);
	case AFTER_RST:
		return cut(c, true);
	case AFTER_FIN:
		break;
	}
	/* Closing with the peer's bytes unread would reset the connection and could take the response along. */
	if (c->ssl)
		SSL_shutdown(c->ssl);
	shutdown(c->fd, SHUT_WR);
	return go(c, ST_LINGER);
}

static enum step step_send(struct conn *c)
{
	size_t turn = TURN_BYTES;
	ssize_t n;

	if (!strcmp(c->method, "HEAD"))
		c->kind = BODY_NONE, c->span = 0;
	while (c->span && turn) {
		n = conn_send_span(c, turn);
		if (n < 0)
			return cut(c, false);
		if (n == 0)
			return wait_for(c, EPOLLOUT);
		c->span -= (uint64_t)n;
		c->off += (uint64_t)n;
		turn -= (size_t)n;
	}
	if (c->span)
		return wait_for(c, EPOLLOUT);
	if (c->kind == BODY_PACED && c->left)
		return sleep_ms(c, c->slice_ms);
	return body_next(c) ? STEP_ON : response_done(c);
}

static enum step (*const steps[])(struct conn *) = {
	[ST_TLS] = step_tls,     [ST_HEAD] = step_head,     [ST_COLLECT] = step_collect, [ST_SEND] = step_send,
	[ST_ECHO] = step_echo,   [ST_DRAIN] = step_drain,   [ST_TUNNEL] = step_tunnel,   [ST_SLEEP] = step_sleep,
	[ST_STALL] = step_stall, [ST_LINGER] = step_linger,
};

/* ---- connections and workers ---- */

void conn_free(struct conn *c)
{
	if (c->st != ST_HEAD && c->st != ST_LINGER && c->st != ST_TUNNEL && c->st != ST_TLS)
		atomic_fetch_add(&g.aborted, 1);
	atomic_fetch_sub(&g.open, 1);
	list_unlink(&c->sleep_link);
	if (c->ssl) {
		SSL_shutdown(c->ssl);
		SSL_free(c->ssl);
		ERR_clear_error();
	}
	close(c->fd);
	buf_deinit(&c->in);
	buf_deinit(&c->out);
	buf_deinit(&c->head);
	EVP_MD_CTX_free(c->md);
	free(c);
}

/* Fills out with the head's small body, so that it leaves in one segment. */
static void body_inline(struct conn *c)
{
	if (c->st != ST_SEND || c->kind != BODY_PLAIN || c->span || !c->left || c->left > SMALL_BODY ||
	    !strcmp(c->method, "HEAD"))
		return;
	while (c->left) {
		size_t pos = (size_t)(c->off % TABLE_BYTES);
		size_t n = (size_t)MIN_OF(c->left, (uint64_t)(TABLE_BYTES - pos));

		buf_append(&c->out, g.table + pos, n);
		c->left -= n;
		c->off += n;
	}
}

static enum step conn_flush(struct conn *c)
{
	ssize_t n;

	body_inline(c);
	n = conn_send(c, buf_data(&c->out), c->out.len,
		      c->st == ST_SEND && c->kind != BODY_PACED && (c->span || c->left));
	if (n < 0)
		return cut(c, false);
	if (n == 0)
		return wait_for(c, EPOLLOUT);
	buf_consume(&c->out, (size_t)n);
	return STEP_ON;
}

void conn_run(struct conn *c)
{
	enum step s;

	do
		s = c->out.len ? conn_flush(c) : steps[c->st](c);
	while (s == STEP_ON);
	if (s == STEP_END) {
		conn_free(c);
		return;
	}
	if (c->want != c->mask) {
		struct epoll_event e = { .events = c->want, .data.ptr = c };

		c->mask = c->want;
		epoll_ctl(c->w->ep, EPOLL_CTL_MOD, c->fd, &e);
	}
}

void conn_accept(struct worker *w, struct conn *l)
{
	struct epoll_event e = { .events = EPOLLIN };
	int one = 1, fd;
	struct conn *c;

	fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	c = calloc(1, sizeof(*c));
	if (!c || (l->tls && !(c->ssl = SSL_new(g.tls)))) {
		free(c);
		close(fd);
		return;
	}
	c->fd = fd;
	c->w = w;
	c->st = ST_HEAD;
	c->mask = EPOLLIN;
	list_init(&c->sleep_link);
	if (c->ssl) {
		SSL_set_fd(c->ssl, fd);
		c->st = ST_TLS;
	}
	atomic_fetch_add(&g.open, 1);
	atomic_fetch_add(&g.accepted, 1);
	e.data.ptr = c;
	epoll_ctl(w->ep, EPOLL_CTL_ADD, fd, &e);
	conn_run(c);
}
