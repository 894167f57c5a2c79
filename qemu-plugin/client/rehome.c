/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "rehome.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

/* I2: neither side of the comparison can change: both slots are sealed. */
static bool is_equal(const MshViews *views, MshSlot old, MshSlot new)
{
    return memcmp(msh_view_page(msh_views_of(views, old), old),
                  msh_view_page(msh_views_of(views, new), new), MSH_PAGE_BYTES) == 0;
}

/* Brings the page's mapping in, so that it can be told from a copy that was swapped out. */
static void touch(const void *page)
{
    (void)*(const volatile uint8_t *)page;
}

/* False: the old mapping is there still. */
static bool map_slots(const MshView *view, MshRegion *region, uint32_t page, uint32_t pages,
                      MshSlot slot)
{
    unsigned char residency[MSH_REHOME_PAGES];
    void *home = msh_region_address(region, page);
    size_t length_bytes = msh_pages_to_bytes(pages);
    while (mremap(view->template + msh_slot_offset_bytes(slot), length_bytes, length_bytes,
                  MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, home) != home) {
        if (mincore(home, length_bytes, residency) == 0)
            return false;
        /* It failed after it had unmapped its target, and there is no way but on: the slot holds what was
         * there, writers are asleep, and nothing else may stand there for a moment. I1 */
        sched_yield();
    }
    return true;
}

int msh_rehome_run(MshRebuild *rebuild, const MshPagemap *pagemap, MshRegion *region, uint32_t page,
                   uint32_t pages, MshSlot first, MshRehomed ret_done[MSH_REHOME_PAGES],
                   MshSlot ret_old[MSH_REHOME_PAGES])
{
    const MshViews *views = rebuild->views;
    MshView *view = msh_views_of(views, first);
    void *home = msh_region_address(region, page);
    size_t length_bytes = msh_pages_to_bytes(pages);
    uint8_t presence[MSH_REHOME_PAGES];
    bool equal[MSH_REHOME_PAGES];
    for (uint32_t i = 0; i < pages; i++) {
        ret_done[i] = MSH_REHOMED_NOT;
        ret_old[i] = (MshSlot){region->word[page + i]};
        equal[i] = is_equal(views, ret_old[i], (MshSlot){first.number + i});
        touch((const uint8_t *)home + msh_pages_to_bytes(i));
    }
    msh_view_set_flags(view, region->dont_fork, region->dont_dump);

    int result = msh_rebuild_open_range(rebuild, region, page, page + pages, MSH_UFFD_WRITES);
    if (result != 0) {
        msh_track_resume(rebuild->track, region, page, page + pages);
        return result > 0 ? -EBUSY : result;
    }
    result = msh_uffd_protect(&rebuild->uffd, home, length_bytes, true);
    if (result == 0)
        result = msh_pagemap_scan(pagemap, home, pages, true, presence);
    for (uint32_t i = 0; result == 0 && i < pages;) {
        uint32_t end = i;
        /* Anything but a clean page of the file was written to, or may have been: it stays. I1 */
        while (end < pages && equal[end] && presence[end] == (MSH_PRESENT | MSH_PRESENT_FILE))
            end++;
        if (end > i && map_slots(view, region, page + i, end - i, (MshSlot){first.number + i}))
            for (uint32_t page_done = i; page_done < end; page_done++)
                ret_done[page_done] = MSH_REHOMED_DONE;
        if (end == i && (presence[i] & MSH_PRESENT) && !(presence[i] & MSH_PRESENT_FILE))
            ret_done[i] = MSH_REHOMED_BROKEN;
        i = end > i ? end : i + 1;
    }
    msh_rebuild_close_range(rebuild, region, page, page + pages);
    msh_track_resume(rebuild->track, region, page, page + pages);
    return result;
}
