/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One registered range and the engine's own map of it: what it has mapped where.
 *
 * States and the ways between them: core/lifecycle.h.
 *
 * Threads: everything here is read and changed under the memory lock.
 */
#ifndef MSH_REGION_H
#define MSH_REGION_H

#include "counters.h"
#include "lifecycle.h"
#include "memshare/error.h"
#include "memshare/units.h"

/* Words of PRIVATE pages that are no fingerprint; fingerprints are forced above these. */
enum {
    MSH_WORD_UNKNOWN = 0, /* not seen yet, or changed under our hands */
    MSH_WORD_ZERO = 1,    /* held zeros at the last visit */
    MSH_WORD_FINGERPRINT_MIN = 2,
};

/* What the last look at a PRIVATE page left: a set, with a back-off level in bits 4 to 6. */
enum {
    MSH_LOOK_SIGHTED = 1, /* asked about; unlike all others for all we know */
    MSH_LOOK_AGAIN = 2,   /* changed at the last look: to be looked at again, also where unwritten */
    MSH_LOOK_WORTH = 4,   /* zero, or equal to a slot when last asked about, but not worth splitting its
                             huge page for */
    MSH_LOOK_MOVING = 8,  /* SHARED, in a view that leaves: asked about */
    MSH_LOOK_HELD = 8,    /* PRIVATE: stable, but not for long enough to be asked about */
    MSH_LOOK_LEVEL = 16,  /* one step of the level: a page that keeps changing, or breaking, is looked at every
                             2^level passes, and so has to be stable for so long */
    MSH_LOOK_LEVEL_MAX = 6,
    MSH_LOOK_LIFTED = 128, /* in a tracked block, but we had to let go of it: the kernel calls it written, and
                              only its contents tell */
};

static inline unsigned msh_look_level(uint8_t look)
{
    return look / MSH_LOOK_LEVEL % 8;
}

enum { MSH_BLOCK_SETTLED = 2, MSH_BLOCK_QUIET = 2, MSH_BLOCK_HOT_SHARE = 16, MSH_BLOCK_CALM = 16 };

/* A huge page's worth of the region, by address; the first and the last may be cut short. */
typedef struct MshBlock {
    bool is_huge;       /* mapped as a huge page at the last visit */
    bool is_tracked;    /* the kernel tells which of its pages were written (track.h) */
    uint8_t settled;    /* visits in a row that changed next to nothing; MSH_BLOCK_SETTLED: to be tracked,
                           as every block is at first */
    uint8_t calm;       /* visits in a row, tracked, that found nothing written; MSH_BLOCK_CALM: it is visited
                           now and then only */
    uint8_t quiet;      /* visits in a row after which a good part of a huge page could be saved and
                           it was not hot; MSH_BLOCK_QUIET: it may be split */
    uint16_t again;     /* pages to be looked at again */
    uint16_t worth;     /* pages that could be saved, were it not for the huge page */
    uint16_t broken;    /* BROKEN pages */
    uint16_t present, changed, proposed; /* at the visit under way */
} MshBlock;

typedef struct MshRegion {
    uint8_t *base;
    uint32_t pages;
    uint32_t first_frame;
    bool advises_huge; /* the owner asked for huge pages (VmFlags hg): restored on detach */
    bool dont_fork, dont_dump;
    bool is_whole;         /* one mapping, when it was registered */
    bool is_written;       /* something in it was, before it was divided for tracking: it has one anon_vma (twin.h) */
    uint8_t *twin;         /* twin.h; NULL: none */
    uint32_t twin_tick;    /* when it was last tried to make it */
    bool is_leaving;    /* it is being released, and no page of it is shared any more */
    uint32_t released;  /* pages, from the first on: so far */
    uint8_t *state; /* MshPageState, one a page */
    uint8_t *look;  /* one a page */
    uint16_t *merge; /* bits 13 to 15: a level, how soon it broke so far; 0 to 12: the tick at which it was merged, if SHARED,
                        or last seen to be written */
    uint32_t tick;   /* at the last visit: MshScan.tick */
    uint32_t *word; /* PRIVATE: see above; SHARED and BROKEN: the slot, in local numbering */
    MshBlock *block;
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
    return msh_page_state_is_mapped(region->state[page]);
}

/* Takes a page from one state to another, with its new word, and counts it. */
void msh_region_become(MshRegion *region, uint32_t page, MshPageState to, uint32_t word,
                       MshCounters *counters);

enum { MSH_REGION_LEVEL_MAX = 7 };

/* A SHARED page that is about to become BROKEN: one that breaks soon after it was merged has to be stable for longer
 * before it is rebuilt and merged again, and so on; one that held for long, for less long. Returns whether it was soon.
 * With is_eager it never is. */
bool msh_region_note_break(MshRegion *region, uint32_t page, bool is_eager);
/* A PRIVATE or BROKEN page that was written, or came to be there. */
void msh_region_note_write(MshRegion *region, uint32_t page);
/* A PRIVATE page that was found stable: whether it has to be so for longer, as its own level has it or this one of the
 * engine's. */
bool msh_region_must_last(const MshRegion *region, uint32_t page, unsigned level);
/* Whether a page is BROKEN and was not seen to be written for long enough to be rebuilt: not before it could be merged
 * again, as it is written again where most of what merges breaks soon. */
bool msh_region_is_mendable(const MshRegion *region, uint32_t page, unsigned level);

/* Sets what a look at a PRIVATE page left, and counts it. */
void msh_region_set_look(MshRegion *region, uint32_t page, uint8_t look, MshCounters *counters);

/* Takes all pages out of the gauges: the region goes. */
void msh_region_uncount(MshRegion *region, MshCounters *counters);

/* Which block a page lies in. */
static inline uint32_t msh_region_block(const MshRegion *region, uint32_t page)
{
    uintptr_t first = (uintptr_t)region->base / MSH_HUGE_PAGE_BYTES;
    return (uint32_t)((uintptr_t)msh_region_address(region, page) / MSH_HUGE_PAGE_BYTES - first);
}

static inline uint32_t msh_region_blocks(const MshRegion *region)
{
    return msh_region_block(region, region->pages - 1) + 1;
}

/* The pages of a block: [first, end). */
uint32_t msh_region_block_first(const MshRegion *region, uint32_t block);
uint32_t msh_region_block_end(const MshRegion *region, uint32_t block);

/* Mappings (VMAs) that pages [first, end) and their neighbours make inside the region, as the kernel
 * joins them: adjacent slots of one segment are one mapping, and so is all plain memory. Counted as the
 * number of places between first-1 and end where one mapping ends and another begins. */
uint32_t msh_region_boundaries(const MshRegion *region, uint32_t first, uint32_t end);

/* More than one in so many of its pages were written between the last two visits. One page alone, a clock
 * or a log, must not keep the rest of a huge page from being saved. */
static inline bool msh_block_is_hot(const MshBlock *block)
{
    return (unsigned)block->changed * MSH_BLOCK_HOT_SHARE > block->present;
}

/* Whether a window may take a page of the block: a huge page is split only when enough of it can be
 * saved, and never while it is hot. */
static inline bool msh_block_may_open(const MshBlock *block)
{
    return !block->is_huge || (block->quiet == MSH_BLOCK_QUIET && !msh_block_is_hot(block));
}

/* Notes that a page could be saved where only its huge page speaks against it; false where it does not. */
bool msh_region_note_worth(MshRegion *region, uint32_t page, MshCounters *counters);

/* Memory of the page map itself. */
uint64_t msh_region_overhead_bytes(const MshRegion *region);

#endif
