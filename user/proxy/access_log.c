/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line for each request. Lines gather in the worker's buffer and are
 * written at least four times a second, whole lines at a time, to one
 * O_APPEND file for all workers. What can not be written (full disk) is dropped
 * and counted; it never holds a request up.
 */
#include "proxy/access_log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"
#include "proxy/exchange_inner.h"
#include "proxy/listener.h"
#include "proxy/worker.h"

#define LOG_FLUSH_BYTES 16384u
#define LOG_KEEP_BYTES (256u * 1024)

/* Milliseconds from one instant to another; 0 when one of them did not happen. */
static double ms(uint64_t from, uint64_t to)
{
	return from && to && to > from ? (double)(to - from) / 1e6 : 0;
}

static void put_time(struct buf *b)
{
	struct timespec ts;
	struct tm tm;
	char text[40];

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	buf_printf(b, "%s.%03ldZ", text, ts.tv_nsec / 1000000);
}

static void put_json(struct buf *b, const char *key, struct str value)
{
	buf_printf(b, ",\"%s\":\"", key);
	buf_append_json(b, value);
	buf_append(b, "\"", 1);
}

static void put_text(struct buf *b, const char *key, struct str value)
{
	char q[1024];

	buf_printf(b, " %s=%s", key, log_quote(q, sizeof(q), value));
}

void access_log_write(struct session *s, const struct exchange *x)
{
	struct worker *w = s->worker;
	const struct conf_access_log *c = &w->conf->access_log;
	bool json = c->format == CONF_LOG_JSON;
	void (*put)(struct buf *, const char *, struct str) = json ? put_json : put_text;
	const struct body *q = &x->request, *r = &x->response;
	/* The reason is that of the body whose engine is named. */
	const struct body *best = q->best > r->best || (q->best == r->best && !r->why_not) ? q : r;
	enum body_engine_id engine = best->best;
	const char *why_not = best->why_not;
	char ip[SOCK_TEXT_MAX];
	struct buf *b = &w->log;

	if (log_level_max >= LOG_LEVEL_DEBUG || session_end_is_error(x->end)) {
		char method[64], path[256], detail[256] = "\"\"";

		if (x->detail)
			log_quote(detail, sizeof(detail), str_from(x->detail));
		log_at(session_end_is_error(x->end) ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "request",
		       "upstream=%s backend=%s method=%s path=%s status=%d end=%s reason=%s request_bytes=%lu bytes=%lu"
		       " engine=%s why_not=\"%s\"",
		       x->upstream ? x->upstream->name : "-", x->backend_text[0] ? x->backend_text : "-",
		       log_quote(method, sizeof(method), x->method), log_quote(path, sizeof(path), x->target), x->status,
		       session_end_name(x->end), detail, (unsigned long)q->data,
		       (unsigned long)r->data, body_engine_name(engine),
		       why_not && engine != BODY_SOCKMAP ? why_not : "");
	}
	if (!c->path)
		return;
	if (b->len > LOG_KEEP_BYTES) {
		COUNT(w, access_log_lost);
		return;
	}
	exchange_client_ip(s, ip);
	buf_append(b, json ? "{\"time\":\"" : "time=", json ? 9 : 5);
	put_time(b);
	if (json)
		buf_append(b, "\"", 1);
	put(b, "client", str_from(ip));
	put(b, "listener", str_from(s->listener->text));
	put(b, "method", x->method);
	put(b, "path", x->target);
	put(b, "host", x->host);
	buf_printf(b,
		   json ? ",\"status\":%d,\"request_bytes\":%lu,\"bytes\":%lu"
			: " status=%d request_bytes=%lu bytes=%lu",
		   x->status, (unsigned long)q->data, (unsigned long)r->data);
	put(b, "upstream", x->upstream ? str_from(x->upstream->name) : STR("-"));
	put(b, "backend", x->backend_text[0] ? str_from(x->backend_text) : STR("-"));
	put(b, "engine", str_from(body_engine_name(engine)));
	if (why_not && engine != BODY_SOCKMAP)
		put(b, "why_not", str_from(why_not));
	buf_printf(b,
		   json ? ",\"attempts\":%u,\"reused\":%s,\"head_ms\":%.3f,\"connect_ms\":%.3f,\"response_ms\":%.3f,"
			  "\"total_ms\":%.3f"
			: " attempts=%u reused=%s head_ms=%.3f connect_ms=%.3f response_ms=%.3f total_ms=%.3f",
		   x->attempts, x->reused ? "true" : "false", ms(x->t_start, x->t_head),
		   ms(x->t_upstream, x->t_connected), ms(x->t_connected, x->t_response), ms(x->t_start, x->t_end));
	put(b, "end", str_from(session_end_name(x->end)));
	if (x->detail)
		put(b, "reason", str_from(x->detail));
	buf_append(b, json ? "}\n" : "\n", json ? 2 : 1);
	if (b->len > LOG_FLUSH_BYTES)
		access_log_flush(w);
}

/* The file's last line is not whole, since a disk was full: the next write, whoever makes it, begins with the line's end. */
static atomic_bool torn;

void access_log_flush(struct worker *w)
{
	int fd = atomic_load(proxy_access_log_fd(w->proxy));
	size_t before;
	ssize_t n = -1;

	if (w->log.len == 0)
		return;
	before = atomic_exchange(&torn, false);
	if (fd >= 0 && !fault_hit(FAULT_LOG_WRITE)) {
		struct iovec v[2] = { { (void *)(uintptr_t)"\n", before }, { buf_data(&w->log), w->log.len } };

		n = writev(fd, v, 2);
	}
	if (n != (ssize_t)(before + w->log.len)) {
		size_t done = n > (ssize_t)before ? (size_t)n - before : 0, lines = 0;

		for (size_t i = done; i < w->log.len; i++)
			lines += buf_data(&w->log)[i] == '\n';
		COUNT_ADD(w, access_log_lost, lines);
		if (done ? buf_data(&w->log)[done - 1] != '\n' : before != 0)
			atomic_store(&torn, true);
	}
	buf_consume(&w->log, w->log.len);
}

int access_log_open(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);

	return fd < 0 ? -errno : fd;
}

int access_log_none(void)
{
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (fd < 0) /* a bare chroot has none; what can not be written to will do */
		fd = open("/", O_PATH | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}
