/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tenure.h"

#include "region.h"

#define FADING 0.75
#define FEW 64.0 /* breaks: no reason to hold anything back */

enum {
    /* It goes up at once and down slowly: with each step down some pages are merged that do not last. */
    CALM_TICKS = 4,
    STEP = 2,
    BRIEF_TICKS = 24, /* pages that are stable for less than that, on average, are not worth their merges */
};

void msh_tenure_tick(MshTenure *tenure, uint64_t merged, uint64_t stable)
{
    tenure->recent_soon = tenure->recent_soon * FADING + tenure->soon;
    tenure->recent_merged = tenure->recent_merged * FADING + (double)(merged - tenure->merged);
    tenure->recent_lost = tenure->recent_lost * FADING + tenure->lost;
    tenure->recent_stable = tenure->recent_stable * FADING + (double)stable;
    tenure->merged = merged;
    tenure->soon = tenure->lost = 0;
    bool is_brief = tenure->recent_lost > FEW && tenure->recent_lost * BRIEF_TICKS > tenure->recent_stable;
    bool is_soon = tenure->recent_soon > FEW && tenure->recent_soon > tenure->recent_merged / 2;
    bool is_calm = !is_brief && (tenure->recent_soon <= FEW || tenure->recent_soon < tenure->recent_merged / 4);
    tenure->calm = is_calm ? tenure->calm + 1 : 0;
    if (is_brief || is_soon)
        tenure->level = tenure->level + STEP < MSH_REGION_LEVEL_MAX ? tenure->level + STEP : MSH_REGION_LEVEL_MAX;
    if (tenure->calm >= CALM_TICKS) {
        tenure->level -= tenure->level > 0;
        tenure->calm = 0;
    }
}
