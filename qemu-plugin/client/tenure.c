/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tenure.h"

#include "region.h"

#define FADING 0.75
#define FEW 64.0 /* breaks: no reason to hold anything back */

/* It goes up at once and down slowly: with each step down some pages are merged that do not last. */
enum { CALM_TICKS = 4 };

void msh_tenure_tick(MshTenure *tenure, uint64_t merged)
{
    tenure->recent_soon = tenure->recent_soon * FADING + tenure->soon;
    tenure->recent_merged = tenure->recent_merged * FADING + (double)(merged - tenure->merged);
    tenure->merged = merged;
    tenure->soon = 0;
    bool is_few = tenure->recent_soon <= FEW;
    bool is_calm = is_few || tenure->recent_soon < tenure->recent_merged / 4;
    tenure->calm = is_calm ? tenure->calm + 1 : 0;
    if (!is_few && tenure->recent_soon > tenure->recent_merged / 2 && tenure->level < MSH_REGION_LEVEL_MAX)
        tenure->level++;
    if (tenure->calm >= CALM_TICKS) {
        tenure->level -= tenure->level > 0;
        tenure->calm = 0;
    }
}
