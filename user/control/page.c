/* SPDX-License-Identifier: Apache-2.0 */
/* The page for people is page.html, put into the binary as it is. */
#include "control/control_inner.h"

/* The path is from the root of the tree, where make runs the compiler. */
__asm__(".pushsection .rodata\n"
	".globl sluice_page_html, sluice_page_html_end\n"
	".hidden sluice_page_html, sluice_page_html_end\n"
	"sluice_page_html:\n"
	".incbin \"user/control/page.html\"\n"
	"sluice_page_html_end:\n"
	".byte 0\n"
	".popsection\n");

extern const char sluice_page_html[] __attribute__((visibility("hidden")));
extern const char sluice_page_html_end[] __attribute__((visibility("hidden")));

struct str page_html(void)
{
	return (struct str){ sluice_page_html, (size_t)(sluice_page_html_end - sluice_page_html) };
}
