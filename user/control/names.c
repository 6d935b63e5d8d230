/* SPDX-License-Identifier: Apache-2.0 */
#include "control/names.h"

#include "base/util.h"

/* Levenshtein's distance by its table, of which one row is kept. */
size_t name_distance(const char *a, const char *b)
{
	size_t row[NAME_MAX_BYTES + 1], n = strlen(a), m = strlen(b);

	if (n > NAME_MAX_BYTES || m > NAME_MAX_BYTES)
		return SIZE_MAX;
	for (size_t j = 0; j <= m; j++)
		row[j] = j;
	for (size_t i = 1; i <= n; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= m; j++) {
			size_t replaced = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			row[j] = MIN_OF(replaced, MIN_OF(row[j], row[j - 1]) + 1);
		}
	}
	return row[m];
}
