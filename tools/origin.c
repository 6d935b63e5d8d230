/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The demonstration origin: arguments, listeners, worker threads. What it serves
 * and how: tools/origin/origin.h.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "origin/origin.h"

struct origin g = { .name = "origin", .threads = 1 };

_Noreturn void die(const char *what, const char *detail)
{
	fprintf(stderr, "origin: %s: %s\n", what, detail);
	if (ERR_peek_error())
		ERR_print_errors_fp(stderr);
	exit(1);
}

static void *worker_main(void *p)
{
	struct worker *w = p;
	struct epoll_event ev[256];
	struct list *it, *tmp;

	for (;;) {
		uint64_t now = now_ns(), first = UINT64_MAX;
		int n;

		list_for_each_safe(it, tmp, &w->sleeping) first =
			MIN_OF(first, list_entry(it, struct conn, sleep_link)->wake);
		n = epoll_wait(w->ep, ev, ARRAY_SIZE(ev),
			       first == UINT64_MAX ? -1
			       : first <= now      ? 0
						   : (int)((first - now) / NS_PER_MS + 1));
		for (int i = 0; i < n; i++) {
			struct conn *c = ev[i].data.ptr;

			if (c->listening)
				conn_accept(w, c);
			else if ((ev[i].events & (EPOLLERR | EPOLLHUP)) ||
				 ((ev[i].events & EPOLLRDHUP) && (c->mask & EPOLLRDHUP)))
				conn_free(c);
			else
				conn_run(c);
		}
		now = now_ns();
		list_for_each_safe(it, tmp, &w->sleeping)
		{
			struct conn *c = list_entry(it, struct conn, sleep_link);

			if (c->wake <= now)
				conn_run(c);
		}
	}
	return NULL;
}

/* Binds l for one worker; the first settles the port. */
static void listen_on(struct worker *w, struct listener *l, bool first)
{
	struct sockaddr_storage ss = { 0 };
	struct sockaddr_in *a4 = (void *)&ss;
	struct sockaddr_in6 *a6 = (void *)&ss;
	struct sockaddr_un *au = (void *)&ss;
	socklen_t len = sizeof(*a4);
	struct epoll_event e = { .events = EPOLLIN };
	struct conn *c = calloc(1, sizeof(*c));
	char host[64];
	int one = 1;

	if (!c)
		die("listen", strerror(ENOMEM));
	if (!strcmp(l->what, "unix")) {
		if (!first) {
			free(c);
			return;
		}
		au->sun_family = AF_UNIX;
		snprintf(au->sun_path, sizeof(au->sun_path), "%.*s", (int)sizeof(au->sun_path) - 1, l->addr);
		unlink(l->addr);
		len = sizeof(*au);
	} else {
		char *colon = strrchr(l->addr, ':');
		bool six = l->addr[0] == '[';

		if (!colon || (size_t)(colon - l->addr) >= sizeof(host))
			die(l->addr, "want ADDRESS:PORT");
		snprintf(host, sizeof(host), "%.*s", (int)(colon - l->addr) - 2 * six, l->addr + six);
		if (l->port == 0)
			l->port = atoi(colon + 1);
		if (six) {
			a6->sin6_family = AF_INET6;
			a6->sin6_port = htons((uint16_t)l->port);
			len = sizeof(*a6);
		} else {
			a4->sin_family = AF_INET;
			a4->sin_port = htons((uint16_t)l->port);
		}
		if (inet_pton(six ? AF_INET6 : AF_INET, host, six ? (void *)&a6->sin6_addr : (void *)&a4->sin_addr) !=
		    1)
			die(l->addr, "not an address");
	}
	c->fd = socket(ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	/* Only where threads share the port: otherwise a taken port must be an error. */
	if (g.threads > 1 && ss.ss_family != AF_UNIX)
		setsockopt(c->fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (c->fd < 0 || bind(c->fd, (void *)&ss, len) < 0 || listen(c->fd, 4096) < 0)
		die(l->addr, strerror(errno));
	if (ss.ss_family != AF_UNIX) {
		len = sizeof(ss);
		getsockname(c->fd, (void *)&ss, &len);
		l->port = ntohs(ss.ss_family == AF_INET6 ? a6->sin6_port : a4->sin_port);
	}
	c->listening = true;
	c->tls = l->tls;
	e.data.ptr = c;
	if (epoll_ctl(w->ep, EPOLL_CTL_ADD, c->fd, &e) < 0)
		die("epoll", strerror(errno));
}

/* SHAKE128("sluice"), TABLE_BYTES of it, in a memfd and mapped. */
static void table_make(void)
{
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	unsigned char *p;

	g.table_fd = memfd_create("origin-table", MFD_CLOEXEC);
	if (g.table_fd < 0 || ftruncate(g.table_fd, TABLE_BYTES) < 0)
		die("memfd", strerror(errno));
	p = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, g.table_fd, 0);
	if (p == MAP_FAILED)
		die("mmap", strerror(errno));
	if (!md || !EVP_DigestInit_ex(md, EVP_shake128(), NULL) || !EVP_DigestUpdate(md, "sluice", 6) ||
	    !EVP_DigestFinalXOF(md, p, TABLE_BYTES))
		die("shake128", "failed");
	EVP_MD_CTX_free(md);
	g.table = p;
}

static int choose_http11(SSL *ssl _unused_, const unsigned char **out, unsigned char *n, const unsigned char *in,
			 unsigned int in_n, void *arg _unused_)
{
	static const unsigned char ours[] = "\x08http/1.1";

	return SSL_select_next_proto((unsigned char **)(uintptr_t)out, n, ours, 9, in, in_n) == OPENSSL_NPN_NEGOTIATED
		       ? SSL_TLSEXT_ERR_OK
		       : SSL_TLSEXT_ERR_NOACK;
}

struct tls_options {
	const char *cert, *key, *max, *ciphers, *client_ca;
};

static void tls_make(const struct tls_options *o)
{
	static const struct {
		const char *name;
		int version;
	} versions[] = { { "1.2", TLS1_2_VERSION }, { "1.3", TLS1_3_VERSION } };

	g.tls = SSL_CTX_new(TLS_server_method());
	SSL_CTX_set_min_proto_version(g.tls, TLS1_2_VERSION);
	SSL_CTX_set_mode(g.tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
					SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_alpn_select_cb(g.tls, choose_http11, NULL);
	SSL_CTX_set_session_id_context(g.tls, (const unsigned char *)"origin", 6);
	if (g.ktls)
		SSL_CTX_set_options(g.tls, SSL_OP_ENABLE_KTLS);
	for (size_t i = 0; o->max && i < ARRAY_SIZE(versions); i++)
		if (!strcmp(o->max, versions[i].name))
			SSL_CTX_set_max_proto_version(g.tls, versions[i].version);
	if (o->ciphers && !SSL_CTX_set_cipher_list(g.tls, o->ciphers) && !SSL_CTX_set_ciphersuites(g.tls, o->ciphers))
		die("--ciphers", o->ciphers);
	if (SSL_CTX_use_certificate_chain_file(g.tls, o->cert) != 1)
		die("--cert", o->cert);
	if (SSL_CTX_use_PrivateKey_file(g.tls, o->key, SSL_FILETYPE_PEM) != 1)
		die("--key", o->key);
	if (o->client_ca) {
		if (SSL_CTX_load_verify_locations(g.tls, o->client_ca, NULL) != 1)
			die("--client-ca", o->client_ca);
		SSL_CTX_set_verify(g.tls, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	}
}

/* {"name":"one","http":8001,...}: the first port of each kind, and all of them in order. */
static void announce(const char *file)
{
	const struct listener *l, *end = g.listeners + g.n_listeners;
	FILE *f = file ? fopen(file, "we") : stdout;
	static const char *const kinds[] = { "http", "https" };

	if (!f)
		die(file, strerror(errno));
	fprintf(f, "{\"name\":\"%s\"", g.name);
	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
		for (l = g.listeners; l < end && strcmp(l->what, kinds[k]);)
			l++;
		if (l < end)
			fprintf(f, ",\"%s\":%d", kinds[k], l->port);
	}
	fprintf(f, ",\"all\":[");
	for (l = g.listeners; l < end; l++)
		fprintf(f, "%s{\"kind\":\"%s\",\"address\":\"%s\",\"port\":%d}", l == g.listeners ? "" : ",", l->what,
			l->addr, l->port);
	fprintf(f, "]}\n");
	if (f == stdout)
		fflush(f);
	else
		fclose(f);
}

static void usage(FILE *f)
{
	fprintf(f, "usage: origin [--name NAME] [--threads N] LISTENER... [--cert F --key F] [--tls-max 1.2|1.3]\n"
		   "              [--ciphers LIST] [--client-ca F] [--ktls] [--port-file F] [--die-with-parent]\n"
		   "       origin --make-certs DIR\n"
		   "LISTENER: --http ADDR:PORT | --https ADDR:PORT | --unix PATH   (port 0: the kernel chooses)\n"
		   "One line of JSON on standard output (or in the port file) says when it listens, and where.\n"
		   "/ /bytes/N /chunked/N?chunk=&ext=1&trailer=1 /close/N?notify=0&rst=1 /short/N?send=&rst=1&chunk=1\n"
		   "/long/N?extra= /slow?bytes=&rate=&ms= /delay/MS?bytes= /echo /sha256 /status/N /headers\n"
		   "/early/N?keep=1 /hints?n= /upgrade /reset /drop /stall /stats\n");
}

enum {
	OPT_NAME = 256,
	OPT_HTTP,
	OPT_HTTPS,
	OPT_UNIX,
	OPT_CERT,
	OPT_KEY,
	OPT_MAX,
	OPT_CIPHERS,
	OPT_CLIENT_CA,
	OPT_KTLS,
	OPT_THREADS,
	OPT_PORT_FILE,
	OPT_CERTS,
	OPT_DIE,
	OPT_HELP
};

static const struct option options[] = {
	{ "name", 1, NULL, OPT_NAME },           { "http", 1, NULL, OPT_HTTP },
	{ "https", 1, NULL, OPT_HTTPS },         { "unix", 1, NULL, OPT_UNIX },
	{ "cert", 1, NULL, OPT_CERT },           { "key", 1, NULL, OPT_KEY },
	{ "tls-max", 1, NULL, OPT_MAX },         { "ciphers", 1, NULL, OPT_CIPHERS },
	{ "client-ca", 1, NULL, OPT_CLIENT_CA }, { "ktls", 0, NULL, OPT_KTLS },
	{ "threads", 1, NULL, OPT_THREADS },     { "port-file", 1, NULL, OPT_PORT_FILE },
	{ "make-certs", 1, NULL, OPT_CERTS },    { "die-with-parent", 0, NULL, OPT_DIE },
	{ "help", 0, NULL, OPT_HELP },           { NULL, 0, NULL, 0 },
};

static void add_listener(const char *what, const char *addr)
{
	struct listener *l = &g.listeners[g.n_listeners];

	if (g.n_listeners == LISTENERS_MAX || strlen(addr) >= sizeof(l->addr))
		die(addr, "too many listeners, or too long");
	g.n_listeners++;
	snprintf(l->what, sizeof(l->what), "%s", what);
	snprintf(l->addr, sizeof(l->addr), "%s", addr);
	l->tls = !strcmp(what, "https");
}

static void serve(const char *port_file)
{
	struct worker *workers = calloc((size_t)g.threads, sizeof(*workers));
	sigset_t stop;
	int sig;

	if (!workers)
		die("threads", strerror(ENOMEM));
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGINT);
	pthread_sigmask(SIG_BLOCK, &stop, NULL);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < g.threads; i++) {
		workers[i].ep = epoll_create1(EPOLL_CLOEXEC);
		list_init(&workers[i].sleeping);
		for (int k = 0; k < g.n_listeners; k++)
			listen_on(&workers[i], &g.listeners[k], i == 0);
	}
	for (int i = 0; i < g.threads; i++)
		if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]))
			die("threads", "pthread_create");
	announce(port_file);
	sigwait(&stop, &sig);
	for (int k = 0; k < g.n_listeners; k++)
		if (!strcmp(g.listeners[k].what, "unix"))
			unlink(g.listeners[k].addr);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct tls_options tls = { 0 };
	const char *port_file = NULL;
	int o;

	while ((o = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (o) {
		case OPT_NAME:
			snprintf(g.name, sizeof(g.name), "%s", optarg);
			break;
		case OPT_HTTP:
			add_listener("http", optarg);
			break;
		case OPT_HTTPS:
			add_listener("https", optarg);
			break;
		case OPT_UNIX:
			add_listener("unix", optarg);
			break;
		case OPT_CERT:
			tls.cert = optarg;
			break;
		case OPT_KEY:
			tls.key = optarg;
			break;
		case OPT_MAX:
			tls.max = optarg;
			break;
		case OPT_CIPHERS:
			tls.ciphers = optarg;
			break;
		case OPT_CLIENT_CA:
			tls.client_ca = optarg;
			break;
		case OPT_KTLS:
			g.ktls = true;
			break;
		case OPT_THREADS:
			g.threads = MAX_OF(atoi(optarg), 1);
			break;
		case OPT_PORT_FILE:
			port_file = optarg;
			break;
		case OPT_DIE:
			prctl(PR_SET_PDEATHSIG, SIGTERM);
			break;
		case OPT_CERTS:
			printf("%s certificates in %s\n", certs_make(optarg) ? "made" : "kept", optarg);
			return 0;
		case 'h':
		case OPT_HELP:
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind < argc || g.n_listeners == 0) {
		usage(stderr);
		return 2;
	}
	table_make();
	for (int k = 0; k < g.n_listeners; k++) {
		if (!g.listeners[k].tls || g.tls)
			continue;
		if (!tls.cert || !tls.key)
			die("--https", "needs --cert and --key");
		tls_make(&tls);
	}
	serve(port_file);
}
