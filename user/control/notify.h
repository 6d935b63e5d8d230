/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Telling the service manager what state we are in: the datagram protocol of
 * sd_notify(3) over $NOTIFY_SOCKET, without libsystemd. Path and abstract
 * ("@name") sockets. Never blocks, never fails a caller: without a manager, or
 * when it does not listen, nothing happens.
 */
#pragma once
#include "base/util.h"

/* Reads $NOTIFY_SOCKET and $WATCHDOG_USEC once. Before the first of the others, which do nothing without it. */
void notify_init(void);
/* READY=1, also after a reload. status may be NULL. */
void notify_ready(const char *status);
/* RELOADING=1 with MONOTONIC_USEC, as Type=notify-reload wants; notify_ready ends it. */
void notify_reloading(void);
void notify_stopping(void);
/* One line for `systemctl status`. */
void notify_status(const char *fmt, ...) _printf_(1, 2);
/* The process the manager should watch from now on, after an upgrade. */
void notify_main_pid(int pid);
/* How often notify_watchdog should be called, ns: half of what the manager allows. 0: it does not watch. */
uint64_t notify_watchdog_interval(void);
void notify_watchdog(void);
