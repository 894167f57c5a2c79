/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "track.h"

#include <sys/mman.h>

/* Whether the kernel tells writes from reads, on populated and on empty pages, once each. */
static bool kernel_tells(const MshUffd *uffd, const MshPagemap *pagemap, volatile uint8_t *pages)
{
    enum { WRITTEN_AGAIN, ONLY_READ, NEVER_TOUCHED, DROPPED, PAGES };
    uint8_t *start = (uint8_t *)pages;
    MshPageRange ranges[MSH_PAGEMAP_RANGES];
    uint64_t end;
    for (unsigned page = 0; page < PAGES; page++)
        if (page != NEVER_TOUCHED)
            pages[page * MSH_PAGE_BYTES] = 1;
    if (msh_uffd_register(uffd, start, msh_pages_to_bytes(PAGES), MSH_UFFD_WRITES) != 0 ||
        msh_pagemap_written(pagemap, start, PAGES, PAGES, ranges, &end) < 1 ||
        msh_pagemap_protect(pagemap, start, PAGES) < 0 ||
        msh_pagemap_written(pagemap, start, PAGES, PAGES, ranges, &end) != 0)
        return false;
    pages[WRITTEN_AGAIN * MSH_PAGE_BYTES] = 2;
    uint8_t read = pages[ONLY_READ * MSH_PAGE_BYTES];
    madvise(start + DROPPED * MSH_PAGE_BYTES, MSH_PAGE_BYTES, MADV_DONTNEED);
    int count = msh_pagemap_written(pagemap, start, PAGES, PAGES, ranges, &end);
    /* A page dropped may be told or not: it is absent either way. */
    return read == 1 && count >= 1 && ranges[0].start == (uintptr_t)start &&
           ranges[0].end == (uintptr_t)start + MSH_PAGE_BYTES;
}

void msh_track_init(MshTrack *track, const MshUffd *uffd, const MshPagemap *pagemap,
                    MshCounters *counters)
{
    *track = (MshTrack){.pagemap = pagemap, .counters = counters};
    size_t length_bytes = msh_pages_to_bytes(4);
    void *pages = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return;
    madvise(pages, length_bytes, MADV_NOHUGEPAGE);
    if (kernel_tells(uffd, pagemap, pages))
        track->uffd = uffd;
    munmap(pages, length_bytes);
}

static void *block_start(const MshRegion *region, uint32_t block, size_t *ret_length_bytes)
{
    uint32_t first = msh_region_block_first(region, block);
    *ret_length_bytes = msh_pages_to_bytes(msh_region_block_end(region, block) - first);
    return msh_region_address(region, first);
}

bool msh_track_arm(MshTrack *track, MshRegion *region, uint32_t block)
{
    size_t length_bytes;
    void *start = block_start(region, block, &length_bytes);
    if (!track->uffd || msh_uffd_register(track->uffd, start, length_bytes, MSH_UFFD_WRITES) != 0)
        return false;
    if (msh_pagemap_protect(track->pagemap, start, msh_bytes_to_pages(length_bytes)) < 0) {
        msh_uffd_unregister(track->uffd, start, length_bytes);
        return false;
    }
    region->block[block].is_tracked = true;
    region->block[block].calm = 0;
    msh_count(&track->counters->tracked_pages, msh_bytes_to_pages(length_bytes));
    return true;
}

void msh_track_drop(MshTrack *track, MshRegion *region, uint32_t first, uint32_t end)
{
    for (uint32_t block = msh_region_block(region, first);
         block <= msh_region_block(region, end - 1); block++) {
        if (!region->block[block].is_tracked)
            continue;
        size_t length_bytes;
        void *start = block_start(region, block, &length_bytes);
        msh_uffd_unregister(track->uffd, start, length_bytes);
        region->block[block].is_tracked = false;
        msh_uncount(&track->counters->tracked_pages, msh_bytes_to_pages(length_bytes));
    }
}

bool msh_track_covers(const MshRegion *region, uint32_t first, uint32_t end)
{
    for (uint32_t block = msh_region_block(region, first);
         block <= msh_region_block(region, end - 1); block++)
        if (region->block[block].is_tracked)
            return true;
    return false;
}

/* The next pages of [*at, end) in one tracked block, as [*at, *ret_end). False: there are none. */
static bool next_tracked(const MshRegion *region, uint32_t *at, uint32_t end, uint32_t *ret_end)
{
    while (*at < end && !region->block[msh_region_block(region, *at)].is_tracked)
        *at = msh_region_block_end(region, msh_region_block(region, *at));
    if (*at >= end)
        return false;
    uint32_t block_end = msh_region_block_end(region, msh_region_block(region, *at));
    *ret_end = block_end < end ? block_end : end;
    return true;
}

void msh_track_lift(MshTrack *track, const MshRegion *region, uint32_t first, uint32_t end)
{
    for (uint32_t at = first, to; next_tracked(region, &at, end, &to); at = to)
        msh_uffd_unregister(track->uffd, msh_region_address(region, at), msh_pages_to_bytes(to - at));
}

void msh_track_resume(MshTrack *track, MshRegion *region, uint32_t first, uint32_t end)
{
    for (uint32_t at = first, to; next_tracked(region, &at, end, &to); at = to) {
        void *start = msh_region_address(region, at);
        if (msh_uffd_register(track->uffd, start, msh_pages_to_bytes(to - at), MSH_UFFD_WRITES) != 0) {
            msh_track_drop(track, region, at, to);
            continue;
        }
        /* What was replaced just now: most of it, and nobody has touched it. */
        msh_pagemap_protect_absent(track->pagemap, start, to - at);
        for (uint32_t page = at; page < to; page++)
            if (region->state[page] == MSH_PAGE_PRIVATE)
                msh_region_set_look(region, page, region->look[page] | MSH_LOOK_LIFTED, track->counters);
    }
}

static uint32_t page_of(const MshRegion *region, uint64_t address)
{
    return (uint32_t)msh_bytes_to_pages(address - (uintptr_t)region->base);
}

static void note_ranges(MshHarvest *harvest, const MshRegion *region, const MshPageRange *ranges, int count)
{
    harvest->ranges = (uint32_t)count;
    for (int i = 0; i < count; i++) {
        harvest->written[i].first = page_of(region, ranges[i].start);
        harvest->written[i].end = page_of(region, ranges[i].end);
    }
}

int msh_track_harvest(MshTrack *track, const MshRegion *region, uint32_t first, uint32_t end,
                      uint32_t max_pages, MshHarvest *ret_harvest)
{
    MshPageRange ranges[MSH_PAGEMAP_RANGES];
    uint64_t reached;
    int count = msh_pagemap_written(track->pagemap, msh_region_address(region, first), end - first,
                                    max_pages, ranges, &reached);
    if (count < 0)
        return count;
    ret_harvest->first = first;
    ret_harvest->end = page_of(region, reached);
    ret_harvest->max_pages = max_pages;
    note_ranges(ret_harvest, region, ranges, count);
    return 0;
}

int msh_track_protect(MshTrack *track, const MshRegion *region, MshHarvest *harvest)
{
    if (harvest->ranges == 0)
        return 0;
    MshPageRange ranges[MSH_PAGEMAP_RANGES];
    uint64_t reached;
    uint32_t first = harvest->written[0].first;
    uint32_t end = harvest->written[harvest->ranges - 1].end;
    int count = msh_pagemap_take_written(track->pagemap, msh_region_address(region, first), end - first,
                                         harvest->max_pages, ranges, &reached);
    if (count < 0)
        return count;
    if (page_of(region, reached) < end) /* so much more was written meanwhile */
        harvest->end = page_of(region, reached);
    note_ranges(harvest, region, ranges, count);
    return 0;
}
