/* SPDX-License-Identifier: Apache-2.0 */
#include "lb/ring.h"

#include <stdlib.h>

#define KETAMA_POINTS 160u
#define KETAMA_POINTS_MAX (1u << 20) /* 8 MiB a worker; above it everyone gets fewer points */
#define MAGLEV_SMALL 65537u          /* primes */
#define MAGLEV_LARGE 655373u
#define MAGLEV_SHARE 100u /* places a member should have at least, for evenness to a percent */
#define NOBODY UINT32_MAX

struct point {
	uint32_t hash, index;
};

struct balance_ring {
	enum conf_balance policy;
	uint32_t n, size;
	uint32_t *weights;
	struct point *points; /* ketama: size of them, sorted */
	uint32_t *places;     /* maglev: size of them, indices or NOBODY */
};

uint32_t balance_crc32(uint32_t crc, const void *p, size_t n)
{
	/* Half a byte at a time: 16 entries, no table to build. */
	static const uint32_t table[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};
	const uint8_t *b = p;

	crc = ~crc;
	for (size_t i = 0; i < n; i++) {
		crc ^= b[i];
		crc = (crc >> 4) ^ table[crc & 15];
		crc = (crc >> 4) ^ table[crc & 15];
	}
	return ~crc;
}

/* Splits "host:port" at a colon with only digits behind it; "unix:/path" is all host. */
static void name_split(struct str name, struct str *host, struct str *port)
{
	size_t i = name.n;

	*host = name;
	*port = (struct str){ "", 0 };
	if (name.n >= 5 && str_ieq((struct str){ name.p, 5 }, STR("unix:"))) {
		*host = (struct str){ name.p + 5, name.n - 5 };
		return;
	}
	while (i > 0 && name.p[i - 1] >= '0' && name.p[i - 1] <= '9')
		i--;
	if (i == 0 || name.p[i - 1] != ':')
		return;
	*host = (struct str){ name.p, i - 1 };
	*port = (struct str){ name.p + i, name.n - i };
}

static int point_compare(const void *a, const void *b)
{
	const struct point *x = a, *y = b;

	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return x->index < y->index ? -1 : x->index > y->index;
}

static void ketama_place(struct point *at, uint32_t count, struct str name, uint32_t index)
{
	struct str host, port;
	uint32_t base, prev = 0;

	name_split(name, &host, &port);
	base = balance_crc32(0, host.p, host.n);
	base = balance_crc32(base, "", 1);
	base = balance_crc32(base, port.p, port.n);
	for (uint32_t i = 0; i < count; i++) {
		/* Byte by byte: the formula wants little endian everywhere. */
		uint8_t le[4] = { (uint8_t)prev, (uint8_t)(prev >> 8), (uint8_t)(prev >> 16), (uint8_t)(prev >> 24) };

		prev = balance_crc32(base, le, sizeof(le));
		at[i] = (struct point){ prev, index };
	}
}

static bool ketama_build(struct balance_ring *r, const struct str *names)
{
	uint64_t total = 0;
	uint32_t each = KETAMA_POINTS, kept = 0;

	for (uint32_t i = 0; i < r->n; i++)
		total += r->weights[i];
	if (total == 0)
		return true;
	if (total * each > KETAMA_POINTS_MAX)
		each = (uint32_t)MAX_OF(1, KETAMA_POINTS_MAX / total);
	r->points = calloc((size_t)total * each, sizeof(*r->points));
	if (!r->points)
		return false;
	for (uint32_t i = 0; i < r->n; i++) {
		ketama_place(r->points + r->size, r->weights[i] * each, names[i], i);
		r->size += r->weights[i] * each;
	}
	qsort(r->points, r->size, sizeof(*r->points), point_compare);
	/* Of points on one spot the first counts. */
	for (uint32_t i = 0; i < r->size; i++)
		if (kept == 0 || r->points[kept - 1].hash != r->points[i].hash)
			r->points[kept++] = r->points[i];
	r->size = kept;
	return true;
}

/* A member's walk over the table: offset, offset + skip, … visits every place once, as the size is prime. */
struct walk {
	uint32_t next, skip;
	uint64_t credit; /* turns it is owed, in units of the greatest weight */
};

static void maglev_fill(struct balance_ring *r, struct walk *walks, uint32_t heaviest)
{
	uint32_t filled = 0;

	for (;;) {
		for (uint32_t i = 0; i < r->n; i++) {
			struct walk *w = &walks[i];

			w->credit += r->weights[i];
			if (w->credit < heaviest)
				continue;
			w->credit -= heaviest;
			while (r->places[w->next] != NOBODY)
				w->next = (w->next + w->skip) % r->size;
			r->places[w->next] = i;
			if (++filled == r->size)
				return;
		}
	}
}

static bool maglev_build(struct balance_ring *r, const struct str *names)
{
	uint32_t heaviest = 0;
	struct walk *walks;

	for (uint32_t i = 0; i < r->n; i++)
		heaviest = MAX_OF(heaviest, r->weights[i]);
	if (heaviest == 0)
		return true;
	r->size = (uint64_t)r->n * MAGLEV_SHARE > MAGLEV_SMALL ? MAGLEV_LARGE : MAGLEV_SMALL;
	r->places = malloc(r->size * sizeof(*r->places));
	walks = calloc(r->n, sizeof(*walks));
	if (!r->places || !walks) {
		free(walks);
		return false;
	}
	memset(r->places, 0xff, r->size * sizeof(*r->places));
	for (uint32_t i = 0; i < r->n; i++) {
		uint64_t h = hash_bytes(names[i].p, names[i].n);

		walks[i].next = (uint32_t)(hash_u64(h) % r->size);
		walks[i].skip = (uint32_t)(hash_u64(h + 0x9e3779b97f4a7c15ull) % (r->size - 1)) + 1;
	}
	maglev_fill(r, walks, heaviest);
	free(walks);
	return true;
}

struct balance_ring *balance_ring_new(enum conf_balance policy, const struct str *names,
				      const struct balancer_candidate *c, uint32_t n)
{
	struct balance_ring *r = calloc(1, sizeof(*r));
	bool built;

	if (!r)
		return NULL;
	r->policy = policy;
	r->n = n;
	r->weights = calloc(n ? n : 1, sizeof(*r->weights));
	if (!r->weights) {
		free(r);
		return NULL;
	}
	for (uint32_t i = 0; i < n; i++)
		r->weights[i] = c[i].weight;
	built = policy == CONF_BALANCE_KETAMA ? ketama_build(r, names) : maglev_build(r, names);
	if (!built) {
		balance_ring_free(r);
		return NULL;
	}
	return r;
}

void balance_ring_free(struct balance_ring *r)
{
	if (!r)
		return;
	free(r->weights);
	free(r->points);
	free(r->places);
	free(r);
}

bool balance_ring_current(const struct balance_ring *r, const struct balancer_candidate *c)
{
	for (uint32_t i = 0; i < r->n; i++)
		if (r->weights[i] != c[i].weight)
			return false;
	return true;
}

/* The first point at or after hash, the first of all behind the last. */
static uint32_t ketama_find(const struct balance_ring *r, uint32_t hash)
{
	uint32_t lo = 0, hi = r->size;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (r->points[mid].hash < hash)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo == r->size ? 0 : lo;
}

int balance_ring_choose(const struct balance_ring *r, const struct balancer_candidate *c, struct str key)
{
	uint32_t at;

	if (r->size == 0)
		return -1;
	if (r->points)
		at = ketama_find(r, balance_crc32(0, key.p, key.n));
	else
		at = (uint32_t)(hash_u64(hash_bytes(key.p, key.n)) % r->size);
	for (uint32_t seen = 0; seen < r->size; seen++) {
		uint32_t i = r->points ? r->points[at].index : r->places[at];

		if (c[i].usable && c[i].weight > 0)
			return (int)i;
		at = at + 1 == r->size ? 0 : at + 1;
	}
	return -1;
}
