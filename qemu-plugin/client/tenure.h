/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long pages stay merged, and so for how long one has to be stable before it is. Pure.
 *
 * Of a guest at rest nearly all that is equal stays so, and is best merged at once. Of one that reads files through a
 * page cache too small for them all that is merged is written again seconds later: each such page costs a merge, a
 * fault, a rebuild and a dead slot, and has others moved out of its segment. Then only what has been stable for longer
 * is merged: the more, the more merges break soon, and the more stable pages are written within some tens of seconds,
 * merged or not, which tells before the first of these merges breaks.
 *
 * Threads: the caller's business.
 */
#ifndef MSH_TENURE_H
#define MSH_TENURE_H

#include <stdint.h>

typedef struct MshTenure {
    unsigned level;        /* MSH_REGION_LEVEL_MAX at most: see msh_region_must_last */
    uint32_t soon;         /* breaks soon after their merge, since the last tick */
    uint32_t lost;         /* pages that were stable and were written, since the last tick */
    uint64_t merged;       /* ever, at the last tick */
    /* Of the last ticks, fading. */
    double recent_soon;
    double recent_merged;
    double recent_lost;
    double recent_stable;
    unsigned calm;         /* ticks in a row that would have the level lower */
} MshTenure;

/* A tick is over, up to which so many pages were ever merged, and at which so many are stable, merged or not. */
void msh_tenure_tick(MshTenure *tenure, uint64_t merged, uint64_t stable);

#endif
