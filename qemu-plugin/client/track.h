/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Change tracking: which pages were written since they were last asked about, from the kernel
 * (userfaultfd's asynchronous write protection with PAGEMAP_SCAN, Linux 6.7). An idle pass over a tracked
 * block costs a look at its page tables instead of a hash of its pages.
 *
 * It is a hint, and only decides what is hashed: a change that it misses costs a failed comparison, or a
 * page shared later than it could be. It is not free for the guest either: the first write to a page after each
 * visit is a fault (about 1 us). So blocks are tracked one by one, when they have settled; never while
 * they are mapped huge (the first write would split the huge page, hot ones first), nor empty (page
 * tables would be made for nothing).
 *
 * A tracked block is registered with the userfaultfd of the windows; nobody else can register it
 * meanwhile. A window that opens in it and a rebuild let go of the pages they need, and of no more; a hold
 * lets go of all. With its registration a page loses its mark, and counts as written.
 *
 * Threads: under the memory lock.
 */
#ifndef MSH_TRACK_H
#define MSH_TRACK_H

#include "pagemap.h"
#include "region.h"
#include "uffd.h"

typedef struct MshTrack {
    const MshUffd *uffd;       /* NULL: tracking does not work here */
    const MshPagemap *pagemap;
    MshCounters *counters;
} MshTrack;

typedef struct MshHarvest {
    uint32_t first, end; /* pages: this much of what was asked for is known */
    uint32_t max_pages;
    uint32_t ranges;
    struct {
        uint32_t first, end;
    } written[MSH_PAGEMAP_RANGES]; /* pages */
} MshHarvest;

/* Tries the kernel on a page of its own, as some misreport; without tracking everything is hashed, with
 * the same result. */
void msh_track_init(MshTrack *track, const MshUffd *uffd, const MshPagemap *pagemap,
                    MshCounters *counters);

/* Starts tracking a block: pages written from now on will be told. Absent pages can be told apart before,
 * not after (msh_pagemap_protect), but what came meanwhile only after. False: it is not tracked. */
bool msh_track_arm(MshTrack *track, MshRegion *region, uint32_t block);

/* Whether any of pages [first, end) is tracked. */
bool msh_track_covers(const MshRegion *region, uint32_t first, uint32_t end);

/* Lets go of pages [first, end) where they are tracked, for a while. */
void msh_track_lift(MshTrack *track, const MshRegion *region, uint32_t first, uint32_t end);

/* After that, or after whatever else has unregistered them: tracks them again, and whatever is mapped there
 * now. Where that fails, their block is tracked no more. */
void msh_track_resume(MshTrack *track, MshRegion *region, uint32_t first, uint32_t end);

/* Stops tracking the blocks that pages [first, end) lie in. */
void msh_track_drop(MshTrack *track, MshRegion *region, uint32_t first, uint32_t end);

/* Of pages [first, end), all in tracked blocks, those written since they were protected last: max_pages of
 * them, or as many ranges as fit, from the first on. Negative: -errno. */
int msh_track_harvest(MshTrack *track, const MshRegion *region, uint32_t first, uint32_t end,
                      uint32_t max_pages, MshHarvest *ret_harvest);

/* Protects anew what was harvested, and what was written among it since, which becomes part of the harvest; where that
 * makes too much of it, its end comes sooner. To be done before the pages are read, so that no later write is missed.
 * Negative: -errno; what was written may be forgotten then. */
int msh_track_protect(MshTrack *track, const MshRegion *region, MshHarvest *harvest);

#endif
