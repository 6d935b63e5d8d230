/* SPDX-License-Identifier: Apache-2.0 */
#include <bpf/libbpf.h>

#include "kern/bpf.h"

const char *kern_libbpf_version(void)
{
	return libbpf_version_string();
}
