/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What two processes say to each other at an upgrade, over a SOCK_SEQPACKET
 * unix socket. Everything is in the byte order of the host they share.
 *
 *   message   u32 magic, u16 version, u16 type, then attributes
 *   attribute u16 type, u16 length of the value, the value, padding to 4
 *
 * To extend it: add attributes and messages. A reader skips attributes it does
 * not know, unless the type has UPGRADE_MUST_KNOW set, and ignores messages it
 * does not know. The version is raised only when the order of messages itself
 * changes; the lower of the two sides' versions is spoken.
 *
 *   new                         old
 *                          <-   HERE pid
 *   HELLO pid program      ->
 *                          <-   WAIT pid text        nobody has asked it to hand over yet
 *                          <-   SOCKETS ...          any number of times, descriptors by SCM_RIGHTS
 *                          <-   OFFERED count
 *   READY                  ->                        all is prepared; nothing is accepted yet
 *                          <-   GO
 *   SERVING                ->                        accepts; only now the old one stops
 *   FAILED text            ->                        instead of READY
 *                          <-   REFUSED text         at any time before GO; the old one goes on
 *
 * Who goes away before READY or GO, goes away alone: the old one goes on
 * serving; a new one whose old process died serves with what it has.
 */
#pragma once
#include "io/handed.h"

#define UPGRADE_VERSION 1u
#define UPGRADE_MUST_KNOW 0x8000u
#define UPGRADE_BATCH 64u      /* sockets in a message; the kernel takes 253 */
#define UPGRADE_MESSAGE_MAX 16384u

enum upgrade_message_type {
	UPGRADE_HELLO = 1,
	UPGRADE_WAIT,
	UPGRADE_SOCKETS,
	UPGRADE_OFFERED,
	UPGRADE_READY,
	UPGRADE_GO,
	UPGRADE_SERVING,
	UPGRADE_FAILED,
	UPGRADE_REFUSED,
	UPGRADE_HERE,
};

struct upgrade_message {
	uint16_t type, version;
	uint32_t pid, count; /* 0: not said */
	char text[512];	     /* "": not said; no control characters */
	char program[32];
};

/*
 * Sends m, and the sockets v[0..n) with it. 0; -EAGAIN: the other side must read
 * first; or -errno. Never raises SIGPIPE.
 */
int upgrade_send(int fd, const struct upgrade_message *m, const struct handed_fd *v, size_t n);
/*
 * Receives one message without waiting. Sockets that come with it are added to
 * set (NULL: closed). 0; 1: the other side has gone; -EAGAIN: nothing is there;
 * -EPROTO: not understood; or -errno.
 */
int upgrade_receive(int fd, struct upgrade_message *m, struct handed *set);
/* Whether the process at the other end may take part: our user, or root. 0, or -EPERM with *uid set. */
int upgrade_peer_check(int fd, unsigned *uid);
