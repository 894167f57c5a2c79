/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "presence.h"

#include <string.h>

enum { NEAR_PAGES = 16 }; /* so many more in a scan of page tables cost less than another one */

int msh_presence_find(const MshPagemap *pagemap, const MshRegion *region, uint32_t first, uint32_t end,
                      uint8_t *ret_presence)
{
    bool any_mapped = false; /* elsewhere it does not matter which pages are a file's */
    for (uint32_t page = first; page < end; page++)
        any_mapped |= msh_region_is_mapped(region, page);
    return msh_pagemap_scan(pagemap, msh_region_address(region, first), end - first, any_mapped,
                            ret_presence);
}

int msh_presence_correct(const MshPagemap *pagemap, const MshRegion *region, uint32_t first, uint32_t end,
                         uint8_t *presence)
{
    uint8_t now[MSH_SCAN_BLOCK_PAGES];
    bool is_sure = true; /* what was present and private is looked at again in any case */
    for (uint32_t page = first; page < end; page++)
        is_sure &= presence[page - first] == MSH_PRESENT && !msh_region_is_mapped(region, page);
    if (is_sure)
        return 0;
    int result = msh_presence_find(pagemap, region, first, end, now);
    for (uint32_t i = 0; result == 0 && i < end - first; i++)
        if (now[i] & MSH_PRESENT)
            presence[i] = now[i];
    return result;
}

/* Copies what was found out about pages [first, end), those of the harvest one after the other; 0 of others. */
static void recall(const MshHarvest *harvest, const uint8_t *found, uint32_t first, uint32_t end,
                   uint8_t *ret_presence)
{
    memset(ret_presence, 0, end - first);
    for (uint32_t i = 0; i < harvest->ranges; i++) {
        uint32_t from = harvest->written[i].first, to = harvest->written[i].end;
        for (uint32_t page = from < first ? first : from; page < to && page < end; page++)
            ret_presence[page - first] = found[page - from];
        found += to - from;
    }
}

int msh_presence_take(MshTrack *track, const MshRegion *region, MshHarvest *harvest,
                      uint8_t ret_presence[MSH_SCAN_BLOCK_PAGES])
{
    uint8_t found[MSH_SCAN_BLOCK_PAGES];
    const MshHarvest before = *harvest;
    uint32_t at = 0;
    int result = 0;
    for (uint32_t i = 0; result == 0 && i < before.ranges; i++) {
        uint32_t first = before.written[i].first, end = before.written[i].end;
        result = msh_presence_find(track->pagemap, region, first, end, found + at);
        at += end - first;
    }
    if (result == 0)
        result = msh_track_protect(track, region, harvest);
    at = 0;
    for (uint32_t i = 0; result == 0 && i < harvest->ranges; i++) {
        uint32_t first = harvest->written[i].first, end = harvest->written[i].end;
        recall(&before, found, first, end, ret_presence + at);
        result = msh_presence_correct(track->pagemap, region, first, end, ret_presence + at);
        at += end - first;
    }
    return result;
}

int msh_presence_take_block(MshTrack *track, const MshRegion *region, MshHarvest *harvest,
                            uint8_t ret_presence[MSH_SCAN_BLOCK_PAGES],
                            bool ret_written[MSH_SCAN_BLOCK_PAGES])
{
    bool was_written[MSH_SCAN_BLOCK_PAGES] = {false};
    uint32_t first = harvest->first;
    int result = 0;
    memset(ret_written, false, MSH_SCAN_BLOCK_PAGES * sizeof(bool));
    for (uint32_t i = 0; i < harvest->ranges; i++)
        memset(was_written + (harvest->written[i].first - first), true,
               harvest->written[i].end - harvest->written[i].first);
    for (uint32_t page = first; page < harvest->end && result == 0;) {
        uint32_t from = page, to = page;
        for (; page < harvest->end && page - to <= NEAR_PAGES; page++)
            if (was_written[page - first] || (region->look[page] & MSH_LOOK_AGAIN))
                to = page + 1;
        if (to > from)
            result = msh_presence_find(track->pagemap, region, from, to, ret_presence + (from - first));
    }
    if (result == 0)
        result = msh_track_protect(track, region, harvest);
    for (uint32_t i = 0; result == 0 && i < harvest->ranges; i++) {
        uint32_t from = harvest->written[i].first, to = harvest->written[i].end;
        for (uint32_t page = from; page < to; page++) {
            ret_written[page - first] = true;
            if (!was_written[page - first])
                ret_presence[page - first] = 0; /* it was protected then, and an absent one would read as swapped */
        }
        result = msh_presence_correct(track->pagemap, region, from, to, ret_presence + (from - first));
    }
    return result;
}
