/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Candidates for merging, and the runs they make. A run is what one kernel call can replace: pages that
 * follow each other in the guest and are all zero, or whose slots follow each other in one segment.
 * Pure.
 */
#ifndef MSH_RUNS_H
#define MSH_RUNS_H

#include <stddef.h>

#include "memshare/units.h"

#define MSH_SLOT_ZERO UINT32_MAX /* in place of a slot: the page held zeros */

typedef struct MshCandidate {
    uint32_t frame;
    uint32_t slot; /* of the store, or MSH_SLOT_ZERO */
} MshCandidate;

/* By frame; candidates of one frame by slot. */
void msh_candidates_sort(MshCandidate *candidates, size_t count);

/* Of sorted candidates, leaves one for each frame, the one that goes on with the run before it if there
 * is one, and moves the others behind them. Returns how many are left. */
size_t msh_candidates_unique(MshCandidate *candidates, size_t count);

/* How many of the count (at least 1) candidates, from the first on, make one run of at most max. */
size_t msh_run_length(const MshCandidate *candidates, size_t count, size_t max);

#endif
