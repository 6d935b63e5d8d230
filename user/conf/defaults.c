/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every default of the configuration, in one place. conf/example.yaml and
 * conf/sluice.yaml.5 tell the same numbers; conf_load_test holds them together.
 */
#include "conf/parse.h"

#include <sched.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

const struct conf_listener default_listener = {
	.address = { .text = "" },
	.timeouts = { .head_ms = 15000, .body_ms = 30000, .idle_ms = 60000, .write_ms = 60000 },
	.min_rate = { .body = 240, .write = 240 },
	.limits = { .head_bytes = 64 * KIB, .fields = 128 },
	.tls = { .min_version = CONF_TLS_1_2 },
	.forwarded = { .for_ = true, .proto = true, .host = true },
	.via = "sluice",
};

const struct conf_upstream default_upstream = {
	.balance = CONF_BALANCE_ROUND_ROBIN,
	.hash = { .kind = CONF_HASH_SOURCE_IP },
	.tls = { .verify = true, .ktls = CONF_KTLS_AUTO, .min_version = CONF_TLS_1_2 },
	.resolve_interval_ms = 30000,
	.health_check = { .type = CONF_HEALTH_NONE },
	.timeouts = { .connect_ms = 5000, .tls_ms = 5000, .read_ms = 60000, .write_ms = 60000, .idle_ms = 60000 },
	.keepalive_max_idle = CONF_INHERIT,
	.retries = { .max = CONF_INHERIT, .on = CONF_RETRY_CONNECT_FAILURE | CONF_RETRY_REUSED_CONNECTION },
};

const struct conf_server default_server = {
	.addr = { .text = "" },
	.weight = 1,
};

const struct conf_health_check default_health_check = {
	.type = CONF_HEALTH_TCP,
	.path = "/",
	.expect = { { 200, 399 } },
	.expect_count = 1,
	.interval_ms = 1000,
	.timeout_ms = 1000,
	.rise = 1,
	.fall = 1,
};

/* The processors this process may use, not those of the machine: in a container they differ. */
static uint32_t default_threads(void)
{
	cpu_set_t set;
	int n;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1;
	n = CPU_COUNT(&set);
	return n < 1 ? 1 : n > 16 ? 16 : (uint32_t)n;
}

static uint64_t default_memory(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);

	if (pages <= 0 || size <= 0)
		return 256ull * MIB;
	return MAX_OF((uint64_t)pages * (uint64_t)size / 8, 16ull * MIB);
}

void defaults_conf(struct conf *c)
{
	c->threads = default_threads();
	c->graceful_shutdown_timeout_ms = 300 * 1000;
	c->upstream_keepalive_pool_size = 128;
	c->max_retries = 2;
	c->log_level = "info";
	c->access_log.format = CONF_LOG_TEXT;
	c->admin.http.text = "";
	c->pin_dir = "/sys/fs/bpf/sluice";
	c->splice.engine = CONF_ENGINE_AUTO;
	c->splice.min_bytes = 64 * KIB;
	c->splice.window = MIB;
	c->splice.memory = default_memory();
}
