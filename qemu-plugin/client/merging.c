/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "merging.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "handover.h"
#include "twin.h"
#include "worker.h"

/* Windows that are open for so long together are followed by a rest as long: they start on a fresh time slice,
 * and the guest gets as long without one. A rest after each would cost as much as the window itself. */
#define WINDOWS_AT_ONCE_NS 800000ull
#define REST_MAX_NS 10000000ull

static bool may_merge(const MshEngine *engine, bool content)
{
    MshMode mode = msh_engine_mode(engine);
    return engine->has_window && !atomic_load(&engine->is_held) &&
           mode >= (content ? MSH_MODE_CONTENT : MSH_MODE_ZERO);
}

/* As long as windows were open, longer under strain, and until the flushes are not too many. */
static void rest(MshEngine *engine)
{
    uint64_t open_ns = engine->open_unrested_ns;
    uint64_t rest_ns = engine->rest_ns;
    uint64_t flush_ns = engine->flushes_unrested * (1000000000ull / MSH_FLUSHES_A_SECOND);
    engine->open_unrested_ns = engine->rest_ns = engine->flushes_unrested = 0;
    if (rest_ns < WINDOWS_AT_ONCE_NS)
        rest_ns = WINDOWS_AT_ONCE_NS;
    if (rest_ns > REST_MAX_NS)
        rest_ns = REST_MAX_NS;
    if (rest_ns + open_ns < flush_ns)
        rest_ns = flush_ns - open_ns;
    clock_nanosleep(CLOCK_MONOTONIC, 0,
                    &(struct timespec){.tv_sec = (time_t)(rest_ns / 1000000000u), .tv_nsec = (long)(rest_ns % 1000000000u)},
                    NULL);
}

/* The userfaultfd is closed, and with it every registration is gone. */
static void lose_window(MshEngine *engine)
{
    msh_worker_stop_tracking(engine);
    engine->scan.track.uffd = NULL;
    msh_window_fini(&engine->window);
    engine->has_window = false;
}

/* The SHARED pages of one run, from views that leave, to the slots they were granted. Returns how many
 * candidates are done with; 0: this is no such run. Memory lock. */
static size_t rehome_some(MshEngine *engine, const MshCandidate *candidates, size_t count,
                          MshSlot *returned, size_t *returned_count)
{
    MshRehomed done[MSH_REHOME_PAGES] = {MSH_REHOMED_NOT};
    MshSlot old[MSH_REHOME_PAGES];
    MshSlot first = {candidates->slot};
    uint32_t page = 0, pages = 0;
    MshRegion *region = msh_memory_find(&engine->memory, candidates->frame, &page);
    size_t length = msh_run_length(candidates, count, MSH_REHOME_PAGES);
    if (!region || first.number == MSH_SLOT_ZERO || !msh_views_of(&engine->views, first))
        return 0;
    while (pages < length && page + pages < region->pages &&
           region->state[page + pages] == MSH_PAGE_SHARED &&
           atomic_load(
               &msh_views_of(&engine->views, (MshSlot){region->word[page + pages]})->is_leaving))
        pages++;
    if (pages == 0)
        return 0;
    bool is_affordable = msh_read(&engine->counters.mappings) + 2 * (uint64_t)pages <=
                         msh_read(&engine->counters.mappings_limit); /* I11 */
    uint32_t before = msh_region_boundaries(region, page, page + pages);
    if (is_affordable && msh_rebuild_works(&engine->rebuild))
        msh_rehome_run(&engine->rebuild, &engine->scan.pagemap, region, page, pages, first, done, old);
    for (uint32_t i = 0; i < pages; i++) {
        MshSlot slot = {first.number + i};
        if (done[i] != MSH_REHOMED_DONE) {
            returned[(*returned_count)++] = slot;
            /* Where passes are slow it would keep its segment until the next visit. */
            if (done[i] == MSH_REHOMED_BROKEN)
                returned[(*returned_count)++] = msh_scan_note_break(&engine->scan, region, page + i);
            continue;
        }
        returned[(*returned_count)++] = old[i]; /* void where its source is gone */
        atomic_fetch_sub(&msh_views_of(&engine->views, old[i])->mapped_pages, 1);
        atomic_fetch_add(&msh_views_of(&engine->views, slot)->mapped_pages, 1);
        msh_region_become(region, page + i, MSH_PAGE_SHARED, slot.number, &engine->counters);
    }
    uint32_t after = msh_region_boundaries(region, page, page + pages);
    msh_count(&engine->counters.mappings, (uint64_t)after - before);
    msh_count(&engine->counters.own_mappings, (uint64_t)after - before);
    return pages;
}

static bool has_content_for(const MshRegion *region, const MshCandidate *candidates, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (candidates[i].slot != MSH_SLOT_ZERO && candidates[i].frame - region->first_frame < region->pages)
            return true;
    return false;
}

/* No page is mapped before there is a way back for it. */
static void prepare_regions(MshEngine *engine, const MshCandidate *candidates, size_t count)
{
    enum { MAPPINGS = 8 };
    for (size_t i = 0; i < engine->memory.count && msh_rebuild_works(&engine->rebuild); i++) {
        MshRegion *region = engine->memory.region[i];
        bool is_due = !region->twin && region->is_whole && !region->is_leaving && region->twin_tick != engine->scan.tick + 1;
        if (!is_due || !has_content_for(region, candidates, count) ||
            msh_read(&engine->counters.mappings) + MAPPINGS > msh_read(&engine->counters.mappings_limit)) /* I11 */
            continue;
        region->twin_tick = engine->scan.tick + 1; /* 0: never */
        if (!msh_rebuild_prepare(&engine->rebuild, region))
            atomic_store(&engine->wants_anew, true); /* what is turned down now will not be proposed again by itself */
        engine->window.flushes += MSH_TWIN_FLUSHES;
    }
}

/* Merges as many of the candidates as one window takes; the rest stays for the next. Memory lock. */
static size_t merge_some(MshEngine *engine, const MshCandidate *candidates, size_t count)
{
    MshSlot returned[MSH_SCAN_BLOCK_PAGES];
    size_t returned_count = 0;
    if (count > MSH_SCAN_BLOCK_PAGES)
        count = MSH_SCAN_BLOCK_PAGES;
    bool is_content = candidates->slot != MSH_SLOT_ZERO;
    size_t done = 1;
    if (may_merge(engine, is_content)) {
        /* A handler that ran on this thread and touched the window would wait for ever. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        prepare_regions(engine, candidates, count);
        done = rehome_some(engine, candidates, count, returned, &returned_count);
        if (done == 0)
            done = msh_window_merge(&engine->window, candidates, count, returned, &returned_count);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    } else {
        atomic_store(&engine->wants_anew, true); /* it will not be proposed again by itself */
        if (is_content)
            returned[returned_count++] = (MshSlot){candidates->slot};
    }
    if (engine->has_window && !msh_window_works(&engine->window)) {
        msh_text_set(&engine->texts, &engine->barred_reason, "the userfaultfd was lost");
        atomic_store(&engine->is_barred, true);
        lose_window(engine);
    }
    msh_handover_return(engine, returned, returned_count);
    return done;
}

void msh_merging_all(MshEngine *engine, MshCandidates *candidates, bool is_paced)
{
    msh_candidates_sort(candidates->items, candidates->count);
    /* A hint and an answer may name the same page: a window that took both would replace it twice. */
    size_t count = msh_candidates_unique(candidates->items, candidates->count);
    for (size_t i = count; i < candidates->count; i++)
        if (candidates->items[i].slot != MSH_SLOT_ZERO)
            msh_handover_return(engine, &(MshSlot){candidates->items[i].slot}, 1);
    bool must_rest = is_paced;
    for (size_t at = 0; at < count;) {
        if (must_rest)
            rest(engine);
        pthread_mutex_lock(&engine->memory_lock);
        uint64_t start_ns = msh_engine_now_ns();
        at += merge_some(engine, candidates->items + at, count - at);
        if (is_paced) {
            engine->open_unrested_ns += msh_engine_now_ns() - start_ns;
            engine->flushes_unrested += engine->window.flushes;
            engine->rest_ns = engine->open_unrested_ns << engine->window.strain;
            must_rest = engine->rest_ns >= WINDOWS_AT_ONCE_NS;
        }
        engine->window.flushes = 0;
        if (at == count && engine->has_window)
            msh_window_free_replaced(&engine->window);
        pthread_mutex_unlock(&engine->memory_lock);
    }
    candidates->count = 0;
}

void *msh_merging_main(void *opaque)
{
    MshEngine *engine = opaque;
    MshCandidates mine = {0};
    pthread_setname_np(pthread_self(), "memshare-window");
    pthread_mutex_lock(&engine->queue_lock);
    while (!atomic_load(&engine->is_stopping)) {
        if (engine->queue.count == 0) {
            pthread_cond_wait(&engine->queue_filled, &engine->queue_lock);
            continue;
        }
        MshCandidates filled = engine->queue;
        engine->queue = mine;
        mine = filled;
        engine->is_merging = true;
        pthread_mutex_unlock(&engine->queue_lock);
        msh_merging_all(engine, &mine, true);
        pthread_mutex_lock(&engine->queue_lock);
        engine->is_merging = false;
        (void)eventfd_write(engine->wake_fd, 1); /* the scan thread may wait for room */
    }
    pthread_mutex_unlock(&engine->queue_lock);
    free(mine.items);
    return NULL;
}
