/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The side of an upgrade that comes: -u. Used by main while it starts, so it
 * waits instead of watching; a signal to stop ends every wait.
 *
 *   takeover_begin    find the running process, wait until it is asked, get the sockets
 *   (main prepares everything, accepts nothing)
 *   takeover_ready    say so, wait for the word to go ahead
 *   (main accepts)
 *   takeover_serving  say so: the running process stops accepting
 *
 * When the running process dies meanwhile, this one goes on alone with what
 * it has: somebody must serve.
 */
#pragma once
#include <sys/types.h>
#include "io/handed.h"

struct takeover;

/*
 * path: upgrade_sock of the configuration (NULL when a socket was passed in
 * the environment, see upgrade_spawn.h). cancel_fd: readable when we are to
 * stop (-1: none). set gets the sockets. 0, or -errno with a text for people.
 */
int takeover_begin(struct takeover **out, const char *path, int cancel_fd, struct handed *set, char *why, size_t n);
/* The running process has died; nobody waits for us. */
bool takeover_alone(const struct takeover *t);
pid_t takeover_pid(const struct takeover *t);
/* 0: go ahead. -errno with a text: the running process goes on, this one must end without having accepted anything. */
int takeover_ready(struct takeover *t, int cancel_fd, char *why, size_t n);
/* Frees; *t becomes NULL. */
void takeover_serving(struct takeover **t);
/* We do not come up: tells why, frees. NULL is fine. */
void takeover_failed(struct takeover **t, const char *why);
