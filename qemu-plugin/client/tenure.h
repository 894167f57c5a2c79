/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long pages stay merged, and so for how long one has to be stable before it is. Pure.
 *
 * Of a guest at rest nearly all that is equal stays so, and is best merged at once. Of one that reads files through a
 * page cache too small for them all that is merged is written again seconds later: each such page costs a merge, a
 * fault, a rebuild and a dead slot, and has others moved out of its segment. Then only what has been stable for longer
 * is merged: the longer, the more merges break soon; and as long as may be while stable pages, merged or not, are written
 * again within some tens of seconds on average, which tells before the first of these merges breaks, and ends with it.
 *
 * Threads: the caller's business.
 */
#ifndef MSH_TENURE_H
#define MSH_TENURE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct MshTenure {
    unsigned level; /* MSH_REGION_LEVEL_MAX at most: see msh_region_must_last */
    /* Since the last tick. */
    uint32_t soon; /* breaks soon after their merge */
    uint32_t lost; /* pages that were stable and were written */
    /* Of the last ticks, fading. */
    double recent_soon;
    double recent_merged;
    double recent_lost;
    double recent_stable;
    uint64_t merged;       /* ever, at the last tick */
    unsigned breaks_level; /* what is asked for on account of merges that broke soon */
    bool is_brief;         /* stable pages are written again soon, most of them */
    unsigned calm;         /* ticks in a row that would have that lower */
} MshTenure;

/* A tick is over, up to which so many pages were ever merged, and at which so many are stable, merged or not. */
void msh_tenure_tick(MshTenure *tenure, uint64_t merged, uint64_t stable);

#endif
