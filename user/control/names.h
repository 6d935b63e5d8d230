/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the name that somebody meant. */
#pragma once
#include <stddef.h>

#define NAME_MAX_BYTES 192u /* "upstream/address" and NUL */

/* Letters to insert, delete or replace to make one of the other; SIZE_MAX when either is longer than NAME_MAX_BYTES. */
size_t name_distance(const char *a, const char *b);
