/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets that somebody else opened for us: the process that ran before
 * (an upgrade) or the service manager (socket activation). A set owns what is
 * in it until it is taken out; what nobody wants is closed with the set.
 */
#pragma once
#include "io/sock.h"

/* Part of the upgrade protocol: numbers stay. */
enum handed_kind {
	HANDED_LISTENER = 1,
	HANDED_ADMIN_HTTP = 2,
	HANDED_ADMIN_SOCKET = 3,
	HANDED_UPGRADE = 4,  /* the socket that upgrades are asked for on */
	HANDED_PIN_LOCK = 5, /* name: the pin directory */
	HANDED_COUNTS = 6,   /* the reading end of a socket, any number: control/counts.h */
	HANDED_PID_FILE = 7, /* name: its path; the lock on it goes along */
	HANDED_TICKETS = 8,  /* a memory file with the keys of TLS session tickets */
};

#define HANDED_OWNS_PATH 1u /* a unix socket's file goes with it */
#define HANDED_NAME_MAX 128u

struct handed_fd {
	int fd; /* -1: taken */
	uint16_t kind, flags;
	char name[HANDED_NAME_MAX]; /* a listener: its address as the configuration wrote it; "" unknown */
};

struct handed {
	struct handed_fd *v;
	size_t n, cap;
};

#define HANDED_INIT ((struct handed){ 0 })

/* 0 or -ENOMEM (the descriptor stays the caller's). */
int handed_add(struct handed *h, int fd, enum handed_kind kind, unsigned flags, const char *name);
/* The first of a kind, which is the caller's from here on; name NULL: any. -1: there is none. */
int handed_take(struct handed *h, enum handed_kind kind, const char *name);
/*
 * The next listening socket bound to want, or named like it (a port the kernel
 * chose is known by its name only). It is the caller's from here on, made
 * non-blocking and close-on-exec. flags may be NULL. -1: there is none, or none is left.
 */
int handed_take_listener(struct handed *h, const struct sock_addr *want, const char *name, unsigned *flags);
/* Closes what is left and frees. */
void handed_deinit(struct handed *h);
/* Frees without closing: for a set of borrowed descriptors. */
void handed_forget(struct handed *h);

/*
 * Adds the sockets of the service manager (sd_listen_fds(3): LISTEN_PID,
 * LISTEN_FDS), and removes the variables, so that no child takes them for its
 * own. Call before any fork. How many there were, or -errno.
 */
int handed_from_manager(struct handed *h);
