/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "release.h"

#include <signal.h>

#include "handover.h"
#include "rebuild.h"

/* With the memory lock or, for stats, without: these read atomics, and what never changes. */
static bool can_rebuild(const MshEngine *engine)
{
    return msh_rebuild_works(&engine->rebuild) && !atomic_load(&((MshEngine *)engine)->is_held);
}

static bool may_rebuild(const MshEngine *engine)
{
    return can_rebuild(engine) && engine->nothing_pinned && engine->nothing_pinned(engine->opaque);
}

bool msh_release_is_due(const MshEngine *engine)
{
    return msh_read(&engine->counters.shared_pages) ||
           (msh_read(&engine->counters.broken_pages) && may_rebuild(engine)) ||
           (msh_read(&engine->counters.tracked_pages) && msh_engine_mode(engine) == MSH_MODE_OFF);
}

/* Writes the byte that is there, in one atomic step: the kernel copies the page and no write of anybody
 * is lost (I1, I12). A compare-and-swap, since compilers turn an atomic OR of 0 into a load. */
static void break_page(void *address)
{
    uint8_t *byte = address;
    uint8_t value = __atomic_load_n(byte, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(byte, &value, value, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED))
        ;
}

static void break_pages(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end)
{
    MshSlot slots[MSH_SCAN_BLOCK_PAGES];
    size_t count = 0;
    for (uint32_t page = first; page < end; page++) {
        if (region->state[page] != MSH_PAGE_SHARED)
            continue;
        break_page(msh_region_address(region, page));
        slots[count++] = (MshSlot){region->word[page]};
        msh_region_become(region, page, MSH_PAGE_BROKEN, region->word[page], &engine->counters);
    }
    msh_handover_return(engine, slots, count);
}

/* Mapped pages, by address. */
static int rebuild_pages(MshEngine *engine, MshRegion *region, const uint32_t *page, uint32_t pages, bool is_quiet)
{
    const MshPinOracle pins = {engine->nothing_pinned, engine->opaque};
    MshSlot slots[MSH_REBUILD_PAGES];
    int result = 0;
    for (uint32_t at = 0, rebuilt; at < pages && result == 0; at += rebuilt) {
        size_t count = 0;
        /* A handler that ran on this thread and touched the window would wait for ever. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        result = msh_rebuild_some(&engine->rebuild, region, page + at, pages - at, is_quiet ? NULL : &pins, &rebuilt,
                                  slots, &count);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        msh_handover_return(engine, slots, count);
    }
    return result;
}

/* All mapped pages of [first, end), a block at most; where one fails they are broken in place instead. */
static void rebuild_all(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end,
                        bool is_quiet)
{
    uint32_t mapped[MSH_SCAN_BLOCK_PAGES], count = 0;
    for (uint32_t page = first; page < end; page++)
        if (msh_region_is_mapped(region, page))
            mapped[count++] = page;
    (void)rebuild_pages(engine, region, mapped, count, is_quiet);
}

static void release_pages(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end,
                          bool is_quiet)
{
    msh_track_drop(&engine->scan.track, region, first, end);
    if (is_quiet ? can_rebuild(engine) : may_rebuild(engine))
        rebuild_all(engine, region, first, end, is_quiet);
    break_pages(engine, region, first, end);
}

static uint32_t block_end(const MshRegion *region, uint32_t first)
{
    return region->pages - first > MSH_SCAN_BLOCK_PAGES ? first + MSH_SCAN_BLOCK_PAGES
                                                        : region->pages;
}

bool msh_release_some(MshEngine *engine, uint32_t *frame, bool is_quiet)
{
    MshRegion *region = msh_memory_next(&engine->memory, *frame);
    if (region) {
        uint32_t first = *frame > region->first_frame ? *frame - region->first_frame : 0;
        uint32_t end = block_end(region, first);
        release_pages(engine, region, first, end, is_quiet);
        *frame = region->first_frame + end;
    } else {
        *frame = 0;
    }
    return region != NULL;
}

bool msh_release_block(MshEngine *engine, uint32_t *frame)
{
    pthread_mutex_lock(&engine->memory_lock);
    bool has_more = msh_release_some(engine, frame, false);
    pthread_mutex_unlock(&engine->memory_lock);
    return has_more;
}

bool msh_release_region(MshEngine *engine, MshRegion *region, uint64_t until_ns)
{
    region->is_leaving = true;
    while (region->released < region->pages) {
        uint32_t end = block_end(region, region->released);
        release_pages(engine, region, region->released, end, false);
        region->released = end;
        if (msh_engine_now_ns() >= until_ns)
            break;
    }
    return region->released == region->pages;
}

/* A page in the middle of a run costs two mappings more when it is plain again. */
static bool may_spend_mappings(const MshEngine *engine, uint32_t runs)
{
    return msh_read(&engine->counters.mappings) + 2 * (uint64_t)runs <
           msh_read(&engine->counters.mappings_limit) / 8 * 7;
}

static bool is_mendable(const MshEngine *engine, const MshRegion *region, uint32_t page)
{
    return msh_region_is_mendable(region, page, engine->scan.tenure.level);
}

/* A page of the store need not be in the page table to be there; where it carries a mark of tracking it reads as
 * swapped. */
static bool is_there(const MshRegion *region, uint32_t page, uint8_t presence)
{
    if (region->state[page] != MSH_PAGE_SHARED)
        return presence & MSH_PRESENT;
    return !(presence & MSH_SWAPPED) || msh_pagemap_is_in_memory(msh_region_address(region, page));
}

/* Those pages of a block, less those that are swapped out: they are not brought in for this (I9). */
static void mend_block(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end,
                       MshIsDue *is_due)
{
    uint8_t presence[MSH_SCAN_BLOCK_PAGES];
    if (msh_pagemap_scan(&engine->scan.pagemap, msh_region_address(region, first), end - first,
                         false, presence) < 0)
        return;
    uint32_t due[MSH_SCAN_BLOCK_PAGES], count = 0;
    for (uint32_t page = first; page < end; page++)
        if (is_due(engine, region, page) && is_there(region, page, presence[page - first]))
            due[count++] = page;
    (void)rebuild_pages(engine, region, due, count, false);
}

void msh_release_mend(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end)
{
    enum { PAGES_AT_ONCE = 512 }; /* a visit may be of a row of blocks, and the only one in its pass */
    uint32_t left = PAGES_AT_ONCE;
    for (uint32_t at = first; at < end && left > 0;) {
        uint32_t number = msh_region_block(region, at), due = 0;
        uint32_t from = msh_region_block_first(region, number), to = from;
        at = msh_region_block_end(region, number);
        if (region->block[number].broken == 0)
            continue;
        for (; to < at && due < left; to++)
            due += is_mendable(engine, region, to);
        if (due == 0 || !may_spend_mappings(engine, due) || !may_rebuild(engine))
            continue;
        mend_block(engine, region, from, to, is_mendable);
        left -= due;
    }
}

void msh_release_some_of(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end, MshIsDue *is_due)
{
    uint32_t due = 0;
    for (uint32_t page = first; page < end; page++)
        due += is_due(engine, region, page);
    if (due && may_spend_mappings(engine, due) && may_rebuild(engine))
        mend_block(engine, region, first, end, is_due);
}
