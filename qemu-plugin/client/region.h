/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One registered range and the engine's own map of it: what it has mapped where.
 *
 * Page states (DESIGN's life of a page): PRIVATE and HOLE lie in the memory that was registered, SHARED
 * and BROKEN in a store mapping. The engine cannot see a guest write: SHARED becomes BROKEN here at
 * the next visit, not at the write.
 *
 * Threads: the state of a page is changed under the window lock; a visit changes only the word of
 * PRIVATE pages, under the scan lock, and states under both.
 */
#ifndef MSH_REGION_H
#define MSH_REGION_H

#include "memshare/error.h"
#include "memshare/units.h"

typedef enum MshPageState {
    MSH_PAGE_PRIVATE = 0, /* as registered: present, swapped or never touched */
    MSH_PAGE_HOLE = 1,    /* given back as zero, and not touched since, as far as was seen */
    MSH_PAGE_SHARED = 2,  /* a mapping of a store slot */
    MSH_PAGE_BROKEN = 3,  /* a private copy inside a store mapping */
} MshPageState;

/* Words of PRIVATE pages that are no fingerprint; fingerprints are forced above these. */
enum {
    MSH_WORD_UNKNOWN = 0, /* not seen yet, or changed under our hands */
    MSH_WORD_ZERO = 1,    /* held zeros at the last visit */
    MSH_WORD_FINGERPRINT_MIN = 2,
};

typedef struct MshRegion {
    uint8_t *base;
    uint32_t pages;
    uint32_t first_frame;
    bool advises_huge; /* the owner asked for huge pages (VmFlags hg): restored on detach */
    bool dont_fork, dont_dump, no_reserve;
    uint8_t *state; /* MshPageState, one a page */
    bool *is_huge;  /* one a huge page that the range touches: mapped as one at the last visit */
    uint32_t *word; /* PRIVATE: see above; SHARED and BROKEN: the slot, in local numbering */
} MshRegion;

/* Checks that the range is memory which can be shared, and claims it in this process.
 * Errors as msh_engine_register. */
int msh_region_new(void *address, size_t length_bytes, MshRegion **ret_region, MshError *error);

/* Gives up the claim. NULL is fine. */
MshRegion *msh_region_free(MshRegion *region);

/* Switches huge pages off for the range while it shares, or back to what the owner had asked for. */
void msh_region_set_sharing(const MshRegion *region, bool sharing);

static inline void *msh_region_address(const MshRegion *region, uint32_t page)
{
    return region->base + msh_pages_to_bytes(page);
}

static inline bool msh_region_is_mapped(const MshRegion *region, uint32_t page)
{
    return region->state[page] >= MSH_PAGE_SHARED;
}

/* Which of is_huge a page lies in. */
static inline uint32_t msh_region_huge_page(const MshRegion *region, uint32_t page)
{
    uintptr_t first = (uintptr_t)region->base / MSH_HUGE_PAGE_BYTES;
    return (uint32_t)((uintptr_t)msh_region_address(region, page) / MSH_HUGE_PAGE_BYTES - first);
}

/* Mappings (VMAs) that pages [first, end) and their neighbours make inside the region, as the kernel
 * joins them: adjacent slots of one segment are one mapping, and so is all plain memory. Counted as the
 * number of places between first-1 and end where one mapping ends and another begins. */
uint32_t msh_region_boundaries(const MshRegion *region, uint32_t first, uint32_t end);

/* Memory of the page map itself. */
uint64_t msh_region_overhead_bytes(const MshRegion *region);

#endif
