/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: a YAML file read into one immutable, reference-counted
 * snapshot. Workers, health checks and the control room share a snapshot by
 * reference; a reload makes a new one and lets go of the old.
 *
 * Everything below a struct conf lives in the snapshot's own memory: strings
 * are NUL-terminated, arrays do not move, and all of it goes with the last
 * reference. Every default is filled in: a reader never asks "was it set",
 * except where NULL, CONF_*_NONE or `enabled` is documented.
 *
 * Units: durations are milliseconds (_ms), sizes are bytes. Relative paths
 * are relative to the working directory.
 */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <netinet/in.h>

#include "base/buf.h"
#include "base/util.h"

#define CONF_NAME_MAX 63	     /* an upstream's name: fits the health table */
#define CONF_ADDRESS_MAX 111	     /* a server's address as text: likewise */
#define CONF_FILE_MAX (1024 * 1024u) /* bytes in a configuration file */
#define CONF_THREADS_MAX 256
#define CONF_WEIGHT_MAX 256
#define CONF_STATUS_RANGES 16

struct conf_pos {
	uint32_t line, column; /* from 1; 0: not from the file */
};

/* A numeric address to bind or to connect to. len 0: none. */
struct conf_addr {
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
		struct sockaddr_storage ss;
	};
	socklen_t len;
	const char *text; /* as written, "" when none */
	struct conf_pos pos;
};

enum conf_log_format { CONF_LOG_TEXT, CONF_LOG_JSON };
/* An upper limit: AUTO and SOCKMAP may use everything, SPLICE no sockmap, COPY neither. */
enum conf_engine { CONF_ENGINE_AUTO, CONF_ENGINE_SOCKMAP, CONF_ENGINE_SPLICE, CONF_ENGINE_COPY };
enum conf_tls_version { CONF_TLS_1_2, CONF_TLS_1_3 };
enum conf_ktls { CONF_KTLS_AUTO, CONF_KTLS_REQUIRE, CONF_KTLS_OFF };
enum conf_balance {
	CONF_BALANCE_ROUND_ROBIN, /* smooth weighted; the default */
	CONF_BALANCE_RANDOM,
	CONF_BALANCE_LEAST_CONN,
	CONF_BALANCE_P2C,
	CONF_BALANCE_FNV, /* the last three hash on `hash` */
	CONF_BALANCE_KETAMA,
	CONF_BALANCE_MAGLEV,
};
enum conf_hash { CONF_HASH_SOURCE_IP, CONF_HASH_URI, CONF_HASH_HEADER, CONF_HASH_COOKIE };
enum conf_health { CONF_HEALTH_NONE, CONF_HEALTH_TCP, CONF_HEALTH_HTTP };
enum conf_server_kind {
	CONF_SERVER_INET, /* addr is the IPv4 or IPv6 address and port */
	CONF_SERVER_UNIX, /* addr is the path */
	CONF_SERVER_NAME, /* host and port, to be resolved; addr.len is 0 */
};
/* Bits of conf_retries.on. */
enum conf_retry_on { CONF_RETRY_CONNECT_FAILURE = 1, CONF_RETRY_REUSED_CONNECTION = 2 };

struct conf_access_log {
	const char *path; /* NULL: off */
	enum conf_log_format format;
};

struct conf_admin {
	struct conf_addr http; /* len 0: none */
	const char *socket;    /* NULL: none */
};

struct conf_splice {
	enum conf_engine engine;
	uint64_t min_bytes; /* shorter bodies are copied */
	uint64_t window;    /* most the kernel may hold for one flow */
	uint64_t memory;    /* most over all flows */
};

struct conf_certificate {
	const char *cert, *key; /* PEM files */
	const char *ocsp;	/* DER response to staple, or NULL */
};

struct conf_listener_tls {
	bool enabled; /* the section is there; certificate_count is then >= 1 */
	enum conf_tls_version min_version;
	struct conf_certificate *certificates;
	uint32_t certificate_count;
};

struct conf_listener_timeouts {
	uint32_t head_ms;  /* first byte of a request to the end of its head */
	uint32_t body_ms;  /* without a byte of the body */
	uint32_t idle_ms;  /* between requests */
	uint32_t write_ms; /* without a byte taken by the client */
};

/* Least progress a client must make, bytes per second; 0: not checked. */
struct conf_min_rate {
	uint64_t body, write;
};

struct conf_listener_limits {
	uint32_t head_bytes, fields;
	uint64_t body_bytes;  /* 0: none */
	uint32_t connections; /* 0: none */
};

struct conf_forwarded {
	bool for_, proto, host; /* X-Forwarded-For, -Proto, -Host */
};

struct conf_route {
	const char *host;	 /* lower case; NULL: any. With wildcard: ".example.org" */
	bool wildcard;		 /* host was "*.example.org" */
	const char *path_prefix; /* NULL: any */
	uint32_t upstream;	 /* index into conf.upstreams */
	struct conf_pos pos;
};

struct conf_listener {
	struct conf_addr address; /* port 0: the kernel chooses */
	struct conf_pos pos;
	bool proxy_protocol; /* connections begin with a PROXY header */
	struct conf_listener_timeouts timeouts;
	struct conf_min_rate min_rate;
	struct conf_listener_limits limits;
	struct conf_listener_tls tls;
	struct conf_forwarded forwarded;
	const char *via; /* pseudonym in Via; NULL: no Via */
	struct conf_route *routes;
	uint32_t route_count; /* without routes in the file: one, to the only upstream */
};

struct conf_server {
	const char *address; /* as written; unique in its upstream */
	enum conf_server_kind kind;
	struct conf_addr addr;
	const char *host;     /* NAME: what to resolve. INET: the address alone. UNIX: NULL */
	uint16_t port;	      /* host order; UNIX: 0 */
	uint32_t weight;      /* 0: gets no new requests */
	const char *tls_name; /* name for SNI and verification: tls.sni, else host without port, else this server's
				 name; NULL when none of them is a DNS name (only with verify: false) */
	struct conf_pos pos;
};

struct conf_upstream_tls {
	bool enabled; /* the section is there */
	bool verify;
	const char *sni;	    /* NULL: see conf_server.tls_name */
	const char *ca_file;	    /* own, else top-level ca_file; NULL: the system's */
	const char *crl_file;	    /* or NULL */
	const char *cert, *key;	    /* client certificate; both or neither (NULL) */
	enum conf_ktls ktls;
	enum conf_tls_version min_version;
};

struct conf_hash_key {
	enum conf_hash kind;
	const char *name; /* HEADER, COOKIE: its name; else NULL */
};

struct conf_status_range {
	uint16_t first, last;
};

struct conf_health_check {
	enum conf_health type; /* NONE: no section */
	const char *path;      /* request target */
	const char *host;      /* Host field: own, else upstream host; NULL: the server's address */
	struct conf_status_range expect[CONF_STATUS_RANGES];
	uint32_t expect_count;
	uint32_t interval_ms, timeout_ms;
	uint32_t rise, fall; /* in a row; >= 1 */
	uint16_t port;	     /* 0: the server's */
};

struct conf_upstream_timeouts {
	uint32_t connect_ms, tls_ms;
	uint32_t read_ms, write_ms; /* without a byte of progress */
	uint32_t idle_ms;	    /* how long an unused connection is kept */
};

struct conf_retries {
	uint32_t max; /* further attempts after the first */
	uint32_t on;  /* enum conf_retry_on bits */
};

struct conf_upstream {
	const char *name; /* [A-Za-z0-9._-], at most CONF_NAME_MAX */
	struct conf_pos pos;
	uint32_t index; /* in conf.upstreams */
	enum conf_balance balance;
	struct conf_hash_key hash;
	struct conf_upstream_tls tls;
	const char *host; /* Host sent upstream; NULL: the client's */
	struct conf_server *servers;
	uint32_t server_count; /* >= 1 */
	uint32_t resolve_interval_ms;
	struct conf_health_check health_check;
	struct conf_upstream_timeouts timeouts;
	uint32_t keepalive_max_idle; /* idle connections kept to each backend, divided among the workers; 0: none */
	struct conf_retries retries;
};

/* Something named in the file that only a look at the system can judge (conf_check_files). */
struct conf_outside;

struct conf {
	const char *path;      /* of the file, as given */
	uint32_t threads;      /* 1..CONF_THREADS_MAX */
	const char *pid_file;  /* these four: NULL when not set */
	const char *error_log; /* NULL: standard error */
	const char *upgrade_sock;
	const char *ca_file;
	const char *user, *group; /* NULL: stay */
	bool daemon;
	uint32_t grace_period_ms;	       /* default 0; a drain ends at the latest after the sum of these two */
	uint32_t graceful_shutdown_timeout_ms; /* default 300 s */
	uint32_t upstream_keepalive_pool_size; /* default of keepalive.max_idle */
	uint32_t max_retries;		       /* default of retries.max */
	const char *log_level;		       /* error | warn | info | debug */
	struct conf_access_log access_log;
	struct conf_admin admin;
	const char *pin_dir; /* absolute */
	struct conf_splice splice;
	struct conf_listener *listeners;
	uint32_t listener_count;
	struct conf_upstream *upstreams; /* in the order of the file */
	uint32_t upstream_count;

	/* Private to this room. */
	struct conf_outside *outside;
	void *memory;
	atomic_uint refs;
};

/*
 * Reads, parses and checks the file. Every error found is appended to errors
 * as one line, `file:line:column: what is wrong, what would be right`.
 * 0: *out is a snapshot with one reference, the caller's.
 * 1: errors were reported (an unreadable file too); *out is NULL.
 * -ENOMEM: *out is NULL; errors may hold some lines.
 */
int conf_load(struct conf **out, const char *path, struct buf *errors);
/* The same for bytes in memory; path is only used in messages and as conf.path. */
int conf_load_buffer(struct conf **out, const char *path, const void *p, size_t n, struct buf *errors);

/* Thread-safe. conf_ref returns c. conf_unref ignores NULL. */
const struct conf *conf_ref(const struct conf *c);
void conf_unref(const struct conf *c);

/*
 * A file can be right and still give nothing to serve: Pingora's server
 * settings alone load without error. 0: there are listeners and upstreams.
 * 1: appended to missing what there is not and an example of how to add it. -ENOMEM.
 */
int conf_check_serve(const struct conf *c, struct buf *missing);

/*
 * What -t can look at without taking over: certificates, keys and CA files are readable,
 * logs and pid file can be written, user and group exist, the pin directory
 * is or can be made on a BPF file system. 0, 1 with lines appended as in
 * conf_load, or -ENOMEM. Reads the system, changes nothing.
 */
int conf_check_files(const struct conf *c, struct buf *errors);

/*
 * The first route of l, in the order of the file, that takes the request;
 * NULL when none does. host is without port, compared without regard to case;
 * path is the raw path without query. A prefix takes whole segments: /api
 * takes /api and /api/x, not /apix. *.example.org takes a.example.org and
 * a.b.example.org, not example.org.
 */
const struct conf_route *conf_route_match(const struct conf_listener *l, struct str host, struct str path);

/* NULL when there is no upstream of that name. */
const struct conf_upstream *conf_upstream_find(const struct conf *c, struct str name);

/* The words of the file, for messages and status pages; never NULL. */
const char *conf_engine_name(enum conf_engine e);
const char *conf_balance_name(enum conf_balance b);
const char *conf_health_name(enum conf_health h);

static inline bool conf_status_expected(const struct conf_health_check *h, unsigned status)
{
	for (uint32_t i = 0; i < h->expect_count; i++)
		if (status >= h->expect[i].first && status <= h->expect[i].last)
			return true;
	return false;
}

/* True when the balance method needs conf_upstream.hash. */
static inline bool conf_balance_hashes(enum conf_balance b)
{
	return b >= CONF_BALANCE_FNV;
}
