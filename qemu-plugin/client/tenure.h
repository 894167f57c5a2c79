/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long pages stay merged, and so for how long one has to be stable before it is. Pure.
 *
 * Of a guest at rest nearly all that is equal stays so, and is best merged at once. Of one that reads files through a
 * page cache too small for them all that is merged is written again seconds later: each such page costs a merge, a
 * fault, a rebuild and a dead slot, and has others moved out of its segment. Then only what has been stable for longer
 * is merged. The more merges break soon, the longer that is.
 *
 * Threads: the caller's business.
 */
#ifndef MSH_TENURE_H
#define MSH_TENURE_H

#include <stdint.h>

typedef struct MshTenure {
    unsigned level;        /* MSH_REGION_LEVEL_MAX at most: see msh_region_must_last */
    uint32_t soon;         /* breaks soon after their merge, since the last tick */
    uint64_t merged;       /* ever, at the last tick */
    double recent_soon;    /* of the last ticks, fading */
    double recent_merged;
    unsigned calm;         /* ticks in a row that would have the level lower */
} MshTenure;

/* A tick is over, up to which so many pages were ever merged. */
void msh_tenure_tick(MshTenure *tenure, uint64_t merged);

#endif
