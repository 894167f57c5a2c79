/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the page tables of this process say about a range (PAGEMAP_SCAN, Linux 6.7). It cannot tell a
 * page's state alone: an unpopulated store mapping looks like a hole, a swapped copy in one like a
 * swapped private page. The engine's own page map knows what is mapped where; this adds the rest.
 */
#ifndef MSH_PAGEMAP_H
#define MSH_PAGEMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memshare/error.h"

typedef struct MshPagemap {
    int fd;
} MshPagemap;

/* A set; 0: nothing there. */
typedef enum MshPresence {
    MSH_PRESENT = 1,
    MSH_PRESENT_FILE = 2, /* a page of the store, or of another file */
    MSH_PRESENT_ZERO = 4, /* the kernel's zero page, which holds no memory */
    MSH_PRESENT_HUGE = 8,
    MSH_SWAPPED = 16,
} MshPresence;

/* -ENOSYS: the kernel cannot scan page tables; error says so. */
int msh_pagemap_open(MshPagemap *pagemap, MshError *error);
void msh_pagemap_close(MshPagemap *pagemap);

/* One byte (a set of MshPresence) a page from start on. Whether it is a file's page is told only if asked for:
 * the kernel looks at the page itself for that, which takes longer than all the rest. */
int msh_pagemap_scan(const MshPagemap *pagemap, const void *start, size_t pages, bool with_file,
                     uint8_t *ret_presence);

enum { MSH_PAGEMAP_RANGES = 64 };

typedef struct MshPageRange {
    uint64_t start, end; /* addresses */
} MshPageRange;

/* Whether reading a page brings nothing in from swap. Tells a page of the store that is absent and protected from a
 * copy that was swapped out, which read alike above. */
bool msh_pagemap_is_in_memory(const void *page);

/* Of pages registered for asynchronous write protection: which were written since they were protected, or
 * never were. Stops after max_pages, or when ret_ranges is full. Returns how many ranges, and in *ret_end
 * up to where it has looked; or -errno. */
int msh_pagemap_written(const MshPagemap *pagemap, const void *start, size_t pages,
                        uint32_t max_pages, MshPageRange ret_ranges[MSH_PAGEMAP_RANGES],
                        uint64_t *ret_end);

/* The same, and those it returns are protected anew, in one step: no write in between is lost. */
int msh_pagemap_take_written(const MshPagemap *pagemap, const void *start, size_t pages,
                             uint32_t max_pages, MshPageRange ret_ranges[MSH_PAGEMAP_RANGES],
                             uint64_t *ret_end);

/* Protects those that were written anew. An absent page that is protected reads as MSH_SWAPPED from then
 * on: look at presence before. */
int msh_pagemap_protect(const MshPagemap *pagemap, const void *start, size_t pages);

/* Protects those that are absent, which would count as written otherwise; who is present keeps what he has. */
int msh_pagemap_protect_absent(const MshPagemap *pagemap, const void *start, size_t pages);

#endif
