/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small things every room needs: string views, minimum/maximum, clocks, and
 * the calling convention.
 *
 * Calling convention of the whole program: a function that can fail returns
 * int. Negative is a fatal errno value for the caller to forward, 0 is
 * success, positive is a documented condition that the caller must handle.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#define MIN_OF(a, b) ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b) ((a) > (b) ? (a) : (b))
#define _printf_(f, a) __attribute__((format(printf, f, a)))
#define _unused_ __attribute__((unused))

/* A view of bytes owned by somebody else; not NUL-terminated. */
struct str {
	const char *p;
	size_t n;
};

#define STR(lit) ((struct str){ (lit), sizeof(lit) - 1 })
#define STR_NONE ((struct str){ NULL, 0 })
#define STR_FMT "%.*s"
#define STR_ARG(s) (int)(s).n, (s).p ? (s).p : ""

static inline struct str str_from(const char *z)
{
	return (struct str){ z, z ? strlen(z) : 0 };
}

static inline bool str_eq(struct str a, struct str b)
{
	return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/* ASCII case-insensitive equality. */
static inline bool str_ieq(struct str a, struct str b)
{
	return a.n == b.n && (a.n == 0 || strncasecmp(a.p, b.p, a.n) == 0);
}

static inline bool str_eqz(struct str a, const char *z)
{
	return str_eq(a, str_from(z));
}

/* As much of z as fits into out, NUL included. */
static inline void text_copy(char *out, size_t cap, const char *z)
{
	size_t n = MIN_OF(strlen(z), cap - 1);

	memcpy(out, z, n);
	out[n] = '\0';
}

/* Nanoseconds on CLOCK_MONOTONIC. */
static inline uint64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

/* malloc'ed copy of the view, NUL-terminated; NULL when out of memory. */
char *str_dup(struct str s);

/* 64-bit mix with good avalanche (splitmix64 finaliser). */
static inline uint64_t hash_u64(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* FNV-1a, 64 bit. */
uint64_t hash_bytes(const void *p, size_t n);

/* xorshift64* on a caller-owned state; never returns the same sequence for two states. State must not be 0. */
static inline uint64_t rand_next(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dull;
}
