/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tenure.h"

#include "region.h"

#define BREAKS_FADING 0.9
#define LOSSES_FADING 0.5
/* Pages, in some ticks: no reason to hold anything back. What is merged, breaks and is rebuilt takes some 30 us. */
#define FEW_LOSSES 2048.0

enum {
    FEW_BREAKS = 32, /* pages, in one tick: the same */
    CALM_TICKS = 4,
    BRIEF_TICKS = 12, /* pages that are stable for less than that, on average, are not worth their merges */
    LASTING_TICKS = 2 * BRIEF_TICKS,
};

/* It goes up at once and down slowly: with each step down some pages are merged that do not last. Breaks come up to some
 * ticks after their merges, which so fade slowly, or the fewer were merged the more of them would seem to break. */
static void note_breaks(MshTenure *tenure, uint64_t merged)
{
    tenure->recent_soon = tenure->recent_soon * BREAKS_FADING + tenure->soon;
    tenure->recent_merged = tenure->recent_merged * BREAKS_FADING + (double)(merged - tenure->merged);
    tenure->merged = merged;
    bool is_few = tenure->soon <= FEW_BREAKS;
    bool is_calm = is_few || tenure->recent_soon < tenure->recent_merged / 4;
    tenure->calm = is_calm ? tenure->calm + 1 : 0;
    if (!is_few && tenure->recent_soon > tenure->recent_merged / 2 &&
        tenure->breaks_level < MSH_REGION_LEVEL_MAX)
        tenure->breaks_level++;
    if (tenure->calm >= CALM_TICKS) {
        tenure->breaks_level -= tenure->breaks_level > 0;
        tenure->calm = 0;
    }
}

/* For how long pages are stable, on average, against what it takes to come to hold them back, and to stop. */
static void note_losses(MshTenure *tenure, uint64_t stable)
{
    tenure->recent_lost = tenure->recent_lost * LOSSES_FADING + tenure->lost;
    tenure->recent_stable = tenure->recent_stable * LOSSES_FADING + (double)stable;
    unsigned ticks = tenure->is_brief ? LASTING_TICKS : BRIEF_TICKS;
    tenure->is_brief = tenure->recent_lost > FEW_LOSSES && tenure->recent_lost * ticks > tenure->recent_stable;
}

void msh_tenure_tick(MshTenure *tenure, uint64_t merged, uint64_t stable)
{
    note_losses(tenure, stable);
    note_breaks(tenure, merged);
    tenure->level = tenure->is_brief ? MSH_REGION_LEVEL_MAX : tenure->breaks_level;
    tenure->soon = tenure->lost = 0;
}
