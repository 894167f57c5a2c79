/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A region's twin: a mapping like the region's plain memory, at least as large, at another address, in which there is never
 * a page. What is cast from it can be filled elsewhere and mremapped to its place in the region: it becomes a part of
 * the mapping around it, with its contents from the first moment on.
 *
 * Linux joins two mappings when they have the same flags, offsets that go on, and one anon_vma (mm/vma.c). Memory that is
 * mapped afresh and touched has an anon_vma of its own for ever. The twin has the region's, since it comes from the
 * region's first pages: they are moved aside and back, and a mapping is left behind (MREMAP_DONTUNMAP).
 *
 * It takes no memory, but address space, also in core dumps, and is charged where the kernel limits what processes may
 * commit. Every step that is charged can fail; none that has to succeed is.
 *
 * Threads: under the memory lock, but msh_twin_try().
 */
#ifndef MSH_TWIN_H
#define MSH_TWIN_H

#include "region.h"

enum { MSH_TWIN_FLUSHES = 4 }; /* of TLBs, when it is made */

/* Whether this kernel does as said above. 0 · -ENOSYS: it does not, as Linux 6.15, which forgets that memory was charged ·
 * -errno: it cannot be told. Any thread. */
int msh_twin_try(void);

/* How many pages it is made of: one, or a huge page, which would be split. */
uint32_t msh_twin_first_pages(const MshRegion *region);

/* Makes the region's twin of these pages: plain, and registered for missing pages: who touches one meanwhile has to sleep.
 * Something was written to the region before it was divided for any reason (MshRegion.is_written), or it would have
 * several anon_vmas. -errno: there is no twin. */
int msh_twin_make(MshRegion *region, uint32_t first_pages);

/* Empty memory for pages [first, end), for the caller to fill, put in place by mremap as a whole or in pieces, and unmap the
 * rest of. NULL: none can be had now. */
uint8_t *msh_twin_cast(const MshRegion *region, uint32_t first, uint32_t end);

/* None is fine. */
void msh_twin_drop(MshRegion *region);

#endif
