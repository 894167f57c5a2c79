/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "rebuild.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "fingerprint.h"
#include "twin.h"

/* Neighbours among the pages asked for: one piece of plain memory. */
typedef struct Run {
    uint32_t first, count;
} Run;

typedef struct Batch {
    MshRegion *region;
    const uint32_t *page;
    uint32_t pages;
    uint32_t runs;
    uint32_t placed; /* runs, so far */
    Run run[MSH_REBUILD_RUNS];
    uint8_t *cast; /* from the first page to the last, with what lies between; NULL: none */
    bool is_zero[MSH_REBUILD_PAGES];
} Batch;

int msh_rebuild_init(MshRebuild *rebuild, int device_fd, MshTrack *track, const MshViews *views, MshCounters *counters,
                     MshError *error)
{
    rebuild->uffd.fd = -1;
    rebuild->track = track;
    rebuild->views = views;
    rebuild->counters = counters;
    int result = msh_twin_try();
    if (result < 0)
        return msh_error_set(error, result, "memory that mremap moves is not joined with what is around it: %s",
                             strerror(-result));
    result = msh_uffd_open(&rebuild->uffd, device_fd, MSH_UFFD_FOR_REBUILD, error);
    if (result == 0)
        atomic_store(&rebuild->is_working, true);
    return result;
}

/* Closing the descriptor unregisters everything and wakes everybody; no more is rebuilt. */
void msh_rebuild_fini(MshRebuild *rebuild)
{
    if (atomic_exchange(&rebuild->is_working, false))
        msh_uffd_close(&rebuild->uffd);
}

static void *range_of(const MshRegion *region, uint32_t first, uint32_t end, size_t *ret_length_bytes)
{
    *ret_length_bytes = msh_pages_to_bytes(end - first);
    return msh_region_address(region, first);
}

int msh_rebuild_open_range(MshRebuild *rebuild, MshRegion *region, uint32_t first, uint32_t end, unsigned modes)
{
    size_t length_bytes;
    void *start = range_of(region, first, end, &length_bytes);
    msh_track_lift(rebuild->track, region, first, end);
    int result = msh_uffd_register(&rebuild->uffd, start, length_bytes, modes);
    if (result < 0)
        msh_rebuild_close_range(rebuild, region, first, end); /* a part may be registered */
    return result;
}

void msh_rebuild_close_range(MshRebuild *rebuild, MshRegion *region, uint32_t first, uint32_t end)
{
    size_t length_bytes;
    void *start = range_of(region, first, end, &length_bytes);
    /* Also when something failed: this takes the protection off again, and sleepers must not sleep
     * on. I8 */
    bool is_stuck = msh_uffd_unregister(&rebuild->uffd, start, length_bytes) < 0;
    msh_uffd_wake(&rebuild->uffd, start, length_bytes);
    if (is_stuck)
        msh_rebuild_fini(rebuild);
}

bool msh_rebuild_prepare(MshRebuild *rebuild, MshRegion *region)
{
    uint32_t first_pages = msh_twin_first_pages(region);
    for (uint32_t page = 0; page < first_pages; page++)
        if (msh_region_is_mapped(region, page))
            return false;
    int result = msh_rebuild_open_range(rebuild, region, 0, first_pages, MSH_UFFD_MISSING_PAGES);
    if (result == 0) {
        result = msh_twin_make(region, first_pages); /* for the way back. I12 */
        msh_rebuild_close_range(rebuild, region, 0, first_pages);
    }
    msh_track_resume(rebuild->track, region, 0, first_pages);
    return result == 0;
}

static uint32_t first_page(const Batch *batch, Run run)
{
    return batch->page[run.first];
}

static uint32_t end_page(const Batch *batch, Run run)
{
    return batch->page[run.first] + run.count;
}

static void find_runs(Batch *batch, uint32_t pages)
{
    for (; batch->pages < pages && batch->pages < MSH_REBUILD_PAGES; batch->pages++) {
        uint32_t i = batch->pages;
        if (i == 0 || batch->page[i] != batch->page[i - 1] + 1) {
            if (batch->runs == MSH_REBUILD_RUNS)
                return;
            batch->run[batch->runs++] = (Run){.first = i};
        }
        batch->run[batch->runs - 1].count++;
    }
}

static uint32_t batch_first(const Batch *batch)
{
    return batch->page[0];
}

static uint32_t batch_end(const Batch *batch)
{
    return batch->page[batch->pages - 1] + 1;
}

static uint8_t *cast_page(const Batch *batch, uint32_t page)
{
    return batch->cast + msh_pages_to_bytes(page - batch_first(batch));
}

/* Under the write protection: what the runs hold, but zeros. I1 The kernel is asked to do it since a fault of ours might be
 * answered with a huge page. */
static int copy_runs(const MshRebuild *rebuild, Batch *batch)
{
    int result = 0;
    for (uint32_t i = 0; i < batch->pages && result == 0;) {
        uint32_t end = i + 1;
        batch->is_zero[i] = msh_page_is_zero(msh_region_address(batch->region, batch->page[i]));
        while (end < batch->pages && batch->page[end] == batch->page[end - 1] + 1) {
            batch->is_zero[end] = msh_page_is_zero(msh_region_address(batch->region, batch->page[end]));
            if (batch->is_zero[end] != batch->is_zero[i])
                break;
            end++;
        }
        if (!batch->is_zero[i])
            result = msh_uffd_copy(&rebuild->uffd, cast_page(batch, batch->page[i]),
                                   msh_region_address(batch->region, batch->page[i]), msh_pages_to_bytes(end - i));
        i = end;
    }
    return result;
}

static int fill_cast(MshRebuild *rebuild, Batch *batch)
{
    size_t length_bytes = msh_pages_to_bytes(batch_end(batch) - batch_first(batch));
    batch->cast = msh_twin_cast(batch->region, batch_first(batch), batch_end(batch));
    if (!batch->cast)
        return -EBUSY;
    int result = msh_uffd_register(&rebuild->uffd, batch->cast, length_bytes, MSH_UFFD_MISSING_PAGES);
    if (result == 0)
        result = copy_runs(rebuild, batch);
    /* Or what comes from there would be joined with nothing. I12 */
    if (msh_uffd_unregister(&rebuild->uffd, batch->cast, length_bytes) < 0)
        return -EBUSY;
    return result;
}

/* Where a part of it was put in place, another thread's memory may be by now. */
static void unmap_rest(const Batch *batch)
{
    uint32_t rest = batch_first(batch);
    for (uint32_t i = 0; i <= batch->placed; i++) {
        uint32_t end = i < batch->placed ? first_page(batch, batch->run[i]) : batch_end(batch);
        if (rest < end)
            munmap(cast_page(batch, rest), msh_pages_to_bytes(end - rest));
        rest = i < batch->placed ? end_page(batch, batch->run[i]) : end;
    }
}

/* With its contents in it: who touches the page finds what it held, or waits in the kernel while it is replaced. -errno: the
 * old mapping is there still. */
static int put_in_place(const Batch *batch, Run run)
{
    unsigned char residency[MSH_REBUILD_PAGES];
    uint8_t *home = msh_region_address(batch->region, first_page(batch, run));
    size_t length_bytes = msh_pages_to_bytes(run.count);
    while (mremap(cast_page(batch, first_page(batch, run)), length_bytes, length_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                  home) != home) {
        int result = -errno;
        if (mincore(home, length_bytes, residency) == 0)
            return result;
        /* It failed after it had unmapped its target: there is no way back. I1 */
        sched_yield();
    }
    return 0;
}

static int protect(MshRebuild *rebuild, const Batch *batch)
{
    int result = 0;
    for (uint32_t i = 0; i < batch->runs && result == 0; i++)
        result = msh_uffd_protect(&rebuild->uffd, msh_region_address(batch->region, first_page(batch, batch->run[i])),
                                  msh_pages_to_bytes(batch->run[i].count), true);
    return result;
}

static int replace(MshRebuild *rebuild, Batch *batch, const MshPinOracle *pins)
{
    int result = protect(rebuild, batch);
    if (result != 0)
        return result;
    /* Who pins a page for writing has to wait from here on; who began before is seen now. Asked any earlier, one
     * that began in between would write to the page that is about to go. I1 */
    if (pins && !pins->nothing_pinned(pins->opaque))
        return -EBUSY;
    result = fill_cast(rebuild, batch);
    for (; batch->placed < batch->runs && result == 0; batch->placed += result == 0)
        result = put_in_place(batch, batch->run[batch->placed]);
    if (batch->cast)
        unmap_rest(batch);
    return result;
}

static void record(MshRebuild *rebuild, const Batch *batch, Run run, MshSlot *returned, size_t *returned_count)
{
    MshRegion *region = batch->region;
    MshCounters *counters = rebuild->counters;
    uint32_t first = first_page(batch, run), end = end_page(batch, run);
    uint32_t before = msh_region_boundaries(region, first, end);
    for (uint32_t i = run.first; i < run.first + run.count; i++) {
        uint32_t page = batch->page[i];
        MshSlot slot = {region->word[page]};
        atomic_fetch_sub(&msh_views_of(rebuild->views, slot)->mapped_pages, 1);
        if (region->state[page] == MSH_PAGE_SHARED)
            returned[(*returned_count)++] = slot;
        msh_region_become(region, page, batch->is_zero[i] ? MSH_PAGE_HOLE : MSH_PAGE_PRIVATE,
                          MSH_WORD_UNKNOWN, counters);
        msh_count(&counters->zeroed_pages, batch->is_zero[i]);
    }
    uint32_t after = msh_region_boundaries(region, first, end);
    msh_count(&counters->mappings, (uint64_t)after - before);
    msh_count(&counters->own_mappings, (uint64_t)after - before);
    msh_count(&counters->rebuilt_pages, run.count);
}

int msh_rebuild_some(MshRebuild *rebuild, MshRegion *region, const uint32_t *page, uint32_t pages,
                     const MshPinOracle *pins, uint32_t *ret_pages, MshSlot ret_returned[MSH_REBUILD_PAGES],
                     size_t *ret_returned_count)
{
    Batch batch = {.region = region, .page = page};
    *ret_pages = 0;
    *ret_returned_count = 0;
    if (!region->twin)
        return -ENOSYS;
    find_runs(&batch, pages);
    int result = 0;
    uint32_t tried = 0;
    for (; tried < batch.runs && result == 0; tried++)
        result = msh_rebuild_open_range(rebuild, region, first_page(&batch, batch.run[tried]),
                                        end_page(&batch, batch.run[tried]), MSH_UFFD_WRITES);
    uint32_t open = tried - (result != 0);
    if (result == 0)
        result = replace(rebuild, &batch, pins);
    for (uint32_t i = 0; i < batch.placed; i++) {
        record(rebuild, &batch, batch.run[i], ret_returned, ret_returned_count);
        *ret_pages += batch.run[i].count;
    }
    for (uint32_t i = 0; i < open; i++)
        msh_rebuild_close_range(rebuild, region, first_page(&batch, batch.run[i]), end_page(&batch, batch.run[i]));
    /* When all are closed: where that fails tracking lets go of the whole block. */
    for (uint32_t i = 0; i < tried; i++)
        msh_track_resume(rebuild->track, region, first_page(&batch, batch.run[i]), end_page(&batch, batch.run[i]));
    return result > 0 ? -EBUSY : result;
}
