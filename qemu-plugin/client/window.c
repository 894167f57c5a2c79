/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "window.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "fingerprint.h"

/* Once a window has been open for this long no further run is begun; with a run's own time, at most
 * HAUL_PAGES pages, it stays within 200 us. I8 */
#define CLOSE_AFTER_NS 110000u
#define AIM_NS 90000u
#define LATE_NS 256000u

enum {
    RUN_PAGES = 32,
    HAUL_PAGES = 64,
    SPANS_MAX = 16,
    SPAN_PAGES = MSH_HUGE_PAGE_BYTES / MSH_PAGE_BYTES,
    TRACKED_GAP_PAGES = 16, /* to be hashed again; more cost more than one span more */
    RUN_EFFORT = 12, /* what the calls of one run cost, in pages' worth */
    EFFORT_MIN = 32,
    EFFORT_MAX = 2048,
    CALM_WINDOWS = 100, /* in time, for each one that was late */
    MOVE_TRIES = 4,
    ROLLBACK_SPINS = 64,
};

typedef enum Outcome {
    LEFT = 0,  /* could not be moved: untouched */
    MOVED = 1, /* in the scratch area; the address holds nothing */
    BACK = 2,  /* compared and different, or rolled back: at its address again */
    DONE = 3,  /* replaced */
} Outcome;

/* One or more runs, and what lies between them, registered together. Never includes a store
 * mapping: pages move within one mapping only. */
typedef struct Span {
    MshRegion *region;
    uint32_t first, end; /* pages */
    bool open;
    bool foreign; /* registered by somebody else */
} Span;

typedef struct Run {
    Span *span;
    MshRegion *region;
    uint32_t page, pages;
    uint32_t slot;                             /* MSH_SLOT_ZERO, or the first one */
    uint32_t scratch;                          /* first page in the window's part of the scratch area */
    size_t candidates_before, returned_before; /* by the plan, when it came to this run */
    uint8_t *outcome;                          /* one a page */
} Run;

typedef struct Plan {
    Span span[SPANS_MAX];
    size_t spans;
    Run run[MSH_WINDOW_RUNS_MAX];
    size_t runs;
    size_t candidates;                         /* taken or turned down */
    uint8_t outcome[MSH_WINDOW_PAGES]; /* by page of its part of the scratch area */
} Plan;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *scratch_page(const MshWindow *window, uint32_t page)
{
    return window->scratch + msh_pages_to_bytes(window->held + page);
}

static int map_scratch(MshWindow *window)
{
    size_t length_bytes = msh_pages_to_bytes(MSH_WINDOW_SCRATCH_PAGES);
    void *area = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return -errno;
    window->scratch = area;
    madvise(area, length_bytes, MADV_DONTFORK);
    madvise(area, length_bytes, MADV_DONTDUMP);
    madvise(area, length_bytes, MADV_NOHUGEPAGE);
    int result = msh_uffd_register(&window->uffd, area, length_bytes, MSH_UFFD_MISSING_PAGES);
    return result == MSH_E_UFFD_FOREIGN ? -EBUSY : result;
}

int msh_window_init(MshWindow *window, int device_fd, const MshPagemap *pagemap,
                    const MshMemory *memory, const MshViews *views, MshCounters *counters,
                    MshError *error)
{
    *window = (MshWindow){.uffd = {-1},
                          .track = window->track,
                          .effort = EFFORT_MIN,
                          .pagemap = pagemap,
                          .memory = memory,
                          .views = views,
                          .counters = counters};
    int result = msh_uffd_open(&window->uffd, device_fd, MSH_UFFD_FOR_WINDOWS, error);
    if (result < 0)
        return result;
    result = map_scratch(window);
    if (result < 0) {
        msh_window_fini(window);
        return msh_error_set(error, result, "no scratch area for moved pages: %s",
                             strerror(-result));
    }
    return 0;
}

void msh_window_fini(MshWindow *window)
{
    msh_uffd_close(&window->uffd);
    if (window->scratch)
        munmap(window->scratch, msh_pages_to_bytes(MSH_WINDOW_SCRATCH_PAGES));
    window->scratch = NULL;
}

/*
 * Section: what goes into the window. Outside it, so it may look at pages of the store.
 */

static bool gap_is_plain(const MshRegion *region, uint32_t first, uint32_t end)
{
    for (uint32_t page = first; page < end; page++)
        if (msh_region_is_mapped(region, page))
            return false;
    return true;
}

static Span *span_for(Plan *plan, MshRegion *region, uint32_t page, uint32_t pages)
{
    if (plan->spans) {
        Span *last = &plan->span[plan->spans - 1];
        if (last->region == region && page >= last->end &&
            page + pages - last->first <= SPAN_PAGES && gap_is_plain(region, last->end, page) &&
            (page - last->end <= TRACKED_GAP_PAGES || !msh_track_covers(region, last->end, page))) {
            last->end = page + pages;
            return last;
        }
    }
    if (plan->spans == SPANS_MAX)
        return NULL;
    Span *span = &plan->span[plan->spans++];
    *span = (Span){.region = region, .first = page, .end = page + pages};
    return span;
}

/* Mappings that a run of so many pages must leave to longer ones: each run costs the same, however much
 * it saves. */
static uint64_t kept_for_longer(size_t length, uint64_t limit)
{
    enum { SHORT_PAGES = 4, LONG_PAGES = 16 };
    return length < SHORT_PAGES ? limit / 4 : length < LONG_PAGES ? limit / 8 : 0;
}

/* Whether the process may have the mappings that replacing runs of pages can add, the last of them of this
 * length. I11 */
static bool budget_allows(const MshWindow *window, size_t runs, size_t length)
{
    uint64_t limit = msh_read(&window->counters->mappings_limit);
    return msh_read(&window->counters->mappings) + 2 * runs + SPANS_MAX * 2 <=
           limit - kept_for_longer(length, limit);
}

/* Brings the slots' pages in, which may have been swapped out: inside the window that would make
 * sleepers wait for a disk. */
static void touch_slots(const MshView *view, uint32_t slot, size_t pages)
{
    for (size_t i = 0; i < pages; i++)
        *(volatile const uint8_t *)msh_view_page(view, (MshSlot){slot + (uint32_t)i});
}

/* The pages, from this one on, that a window may replace: of one kind, in one region. */
static uint32_t fitting_pages(const MshRegion *region, uint32_t page, size_t length)
{
    uint32_t fit = 0;
    while (fit < length && page + fit < region->pages &&
           region->state[page + fit] == MSH_PAGE_PRIVATE &&
           msh_block_may_open(&region->block[msh_region_block(region, page + fit)]))
        fit++;
    return fit;
}

/* Splitting a huge page takes longer than a window may, so it is done before: the advice, given for
 * a part of it, makes the kernel split it and marks that one page as less recently used. Zero pages
 * in it are given back by the split itself. */
static void split_huge_pages(MshRegion *region, uint32_t page, uint32_t pages)
{
    for (uint32_t at = page; at < page + pages;) {
        uint32_t number = msh_region_block(region, at);
        if (region->block[number].is_huge)
            madvise(msh_region_address(region, at), MSH_PAGE_BYTES, MADV_COLD);
        region->block[number].is_huge = false;
        at = msh_region_block_end(region, number);
    }
}

static void make_plan(MshWindow *window, Plan *plan, const MshCandidate *candidates, size_t count,
                      MshSlot *returned, size_t *returned_count)
{
    uint32_t effort = 0, scratch = 0;
    size_t at = 0;
    plan->spans = plan->runs = 0;
    memset(plan->outcome, LEFT, sizeof plan->outcome);
    while (at < count && plan->runs < MSH_WINDOW_RUNS_MAX && effort < window->effort &&
           scratch + RUN_PAGES <= MSH_WINDOW_PAGES) {
        const MshCandidate *first = &candidates[at];
        uint32_t page = 0;
        MshRegion *region = msh_memory_find(window->memory, first->frame, &page);
        MshView *view = NULL;
        bool is_zero = first->slot == MSH_SLOT_ZERO;
        if (!is_zero)
            view = msh_views_of(window->views, (MshSlot){first->slot});
        size_t length = msh_run_length(first, count - at, RUN_PAGES);
        bool is_affordable = is_zero || budget_allows(window, plan->runs + 1, length);
        if (!is_affordable)
            atomic_store(&window->refused_at, msh_read(&window->counters->mappings));
        bool has_way_back = is_zero || (view && region && region->twin); /* or it could not go back. I12 */
        bool take = region && !region->is_leaving && has_way_back && is_affordable;
        /* The end of a run that reaches a page of another kind, or of another region, waits. */
        uint32_t fit = take ? fitting_pages(region, page, length) : 0;
        if (fit && view && plan->runs &&
            (view->dont_fork != region->dont_fork || view->dont_dump != region->dont_dump))
            break; /* an earlier run needs the template as it is */
        Span *span = fit ? span_for(plan, region, page, fit) : NULL;
        if (fit && !span)
            break; /* full */
        if (!fit) {
            /* Gone, replaced already, in a huge page, without a way back, or beyond the budget: it stays private. */
            if (take)
                msh_region_note_worth(region, page, window->counters);
            if (!is_zero)
                returned[(*returned_count)++] = (MshSlot){first->slot};
            at++;
            continue;
        }
        split_huge_pages(region, page, fit);
        if (view) {
            msh_view_set_flags(view, region->dont_fork, region->dont_dump);
            touch_slots(view, first->slot, fit);
        }
        Run *run = &plan->run[plan->runs++];
        *run = (Run){.span = span,
                     .region = region,
                     .page = page,
                     .pages = fit,
                     .slot = first->slot,
                     .scratch = scratch,
                     .outcome = plan->outcome + scratch,
                     .candidates_before = at,
                     .returned_before = *returned_count};
        at += fit;
        scratch += fit;
        effort += RUN_EFFORT + fit;
    }
    plan->candidates = at;
}

/*
 * Section: inside the window
 */

/* The runs from first on, up to the one returned, that follow each other without a gap: they are
 * moved in one call, since each call costs every other processor that runs this process a TLB
 * flush. */
static size_t haul_end(const Plan *plan, size_t first)
{
    size_t end = first + 1;
    uint32_t pages = plan->run[first].pages;
    for (; end < plan->runs; end++) {
        const Run *last = &plan->run[end - 1], *next = &plan->run[end];
        pages += next->pages;
        if (next->span != last->span || next->page != last->page + last->pages ||
            pages > HAUL_PAGES)
            break;
    }
    return end;
}

static void move_out(MshWindow *window, const Run *first, const Run *last)
{
    uint32_t pages = last->page + last->pages - first->page;
    uint32_t at = 0, tries = 0;
    while (at < pages) {
        size_t moved_bytes = 0;
        int result =
            msh_uffd_move(&window->uffd, window->pagemap, scratch_page(window, first->scratch + at),
                          msh_region_address(first->region, first->page + at),
                          msh_pages_to_bytes(pages - at), &moved_bytes);
        window->flushes++;
        uint32_t moved = (uint32_t)msh_bytes_to_pages(moved_bytes);
        memset(first->outcome + at, MOVED, moved);
        at += moved;
        if (result == 0)
            return;
        if (moved) {
            tries = 0; /* the rest may go, or the next call says why not */
        } else if (result != MSH_E_UFFD_AGAIN || ++tries == MOVE_TRIES) {
            if (result == MSH_E_UFFD_BUSY)
                msh_count(&window->counters->pinned_skips, 1);
            at++; /* this one stays where it is */
            tries = 0;
        }
    }
}

/* May wait, may not fail: the address holds nothing, and sleepers need their page. I1 */
static void move_back(MshWindow *window, MshRegion *region, uint32_t page, uint32_t scratch,
                      uint32_t pages)
{
    uint32_t at = 0;
    for (unsigned tries = 0; at < pages; tries++) {
        void *home = msh_region_address(region, page + at);
        void *here = scratch_page(window, scratch + at);
        size_t moved_bytes = 0;
        int result = msh_uffd_move(&window->uffd, window->pagemap, home, here,
                                   msh_pages_to_bytes(pages - at), &moved_bytes);
        window->flushes++;
        at += (uint32_t)msh_bytes_to_pages(moved_bytes);
        if (result == 0)
            return;
        if (moved_bytes) {
            tries = 0;
        } else if (tries > ROLLBACK_SPINS) {
            /* A page under writeback to swap cannot be moved for a while, but its bytes can be
             * copied; nothing else can write to the scratch area. */
            if (msh_uffd_copy(&window->uffd, home, here, MSH_PAGE_BYTES) == 0)
                at++;
            else
                sched_yield();
        }
    }
}

/* The mapping failed, and may have unmapped its target before: the page goes back, with its memory
 * where its address has none. None other may stand there for a moment: it would show zeros. I1 */
static void restore(MshWindow *window, Run *run, uint32_t at, uint32_t pages)
{
    unsigned char residency[RUN_PAGES];
    void *home = msh_region_address(run->region, run->page + at);
    void *here = scratch_page(window, run->scratch + at);
    size_t length_bytes = msh_pages_to_bytes(pages);
    if (mincore(home, length_bytes, residency) == 0) {
        move_back(window, run->region, run->page + at, run->scratch + at, pages);
        return;
    }
    /* DONTUNMAP: no one else's mapping may get between the scratch pages. */
    while (mremap(here, length_bytes, length_bytes,
                  MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, home) != home)
        sched_yield();
    madvise(home, length_bytes, run->region->dont_fork ? MADV_DONTFORK : MADV_DOFORK);
    madvise(home, length_bytes, run->region->dont_dump ? MADV_DONTDUMP : MADV_DODUMP);
}

/* I2: both sides of the comparison are out of reach of writers: the page is in the scratch area,
 * the slot is sealed. */
static bool is_equal(const MshWindow *window, const Run *run, uint32_t at)
{
    const uint8_t *page = scratch_page(window, run->scratch + at);
    if (run->slot == MSH_SLOT_ZERO)
        return msh_page_is_zero(page);
    MshSlot slot = {run->slot + at};
    return memcmp(page, msh_view_page(msh_views_of(window->views, slot), slot), MSH_PAGE_BYTES) ==
           0;
}

static bool map_slots(MshWindow *window, Run *run, uint32_t at, uint32_t pages)
{
    MshSlot slot = {run->slot + at};
    const MshView *view = msh_views_of(window->views, slot);
    void *home = msh_region_address(run->region, run->page + at);
    size_t length_bytes = msh_pages_to_bytes(pages);
    window->flushes++;
    /* DONTUNMAP leaves the template whole; the new mapping carries its flags at once. */
    return mremap(view->template + msh_slot_offset_bytes(slot), length_bytes, length_bytes,
                  MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, home) == home;
}

/* Pages [at, at + pages) of the run, all moved out, all equal or all different. */
static void settle(MshWindow *window, Run *run, uint32_t at, uint32_t pages, bool equal)
{
    Outcome outcome = DONE;
    if (!equal) {
        move_back(window, run->region, run->page + at, run->scratch + at, pages);
        outcome = BACK;
    } else if (run->slot != MSH_SLOT_ZERO && !map_slots(window, run, at, pages)) {
        restore(window, run, at, pages);
        outcome = BACK;
    }
    memset(run->outcome + at, outcome, pages);
}

/* All that was moved out of the run is replaced or moved back. */
static void work(MshWindow *window, Run *run)
{
    for (uint32_t at = 0; at < run->pages;) {
        if (run->outcome[at] != MOVED) {
            at++;
            continue;
        }
        bool equal = is_equal(window, run, at);
        uint32_t end = at + 1;
        while (end < run->pages && run->outcome[end] == MOVED &&
               is_equal(window, run, end) == equal)
            end++;
        if (!equal)
            msh_count(&window->counters->compare_failures, end - at);
        settle(window, run, at, end - at, equal);
        at = end;
    }
}

/*
 * Section: after it
 */

/* Enters the outcome of a run into the page map and gives back the slots that were not mapped. */
static void record(MshWindow *window, const Run *run, MshSlot *returned, size_t *returned_count)
{
    MshRegion *region = run->region;
    MshCounters *counters = window->counters;
    uint32_t done = 0;
    uint32_t before = msh_region_boundaries(region, run->page, run->page + run->pages);
    for (uint32_t i = 0; i < run->pages; i++) {
        uint32_t page = run->page + i;
        bool is_zero = run->slot == MSH_SLOT_ZERO;
        if (run->outcome[i] == DONE) {
            done++;
            msh_region_become(region, page, is_zero ? MSH_PAGE_HOLE : MSH_PAGE_SHARED,
                              is_zero ? MSH_WORD_UNKNOWN : run->slot + i, counters);
            continue;
        }
        /* Changed since it was looked at, or pinned: not worth another window soon. */
        region->word[page] = MSH_WORD_UNKNOWN;
        msh_region_set_look(region, page, MSH_LOOK_AGAIN | MSH_LOOK_LEVEL, counters);
        if (!is_zero)
            returned[(*returned_count)++] = (MshSlot){run->slot + i};
    }
    if (run->slot == MSH_SLOT_ZERO) {
        msh_count(&counters->zeroed_pages, done);
        return;
    }
    uint32_t after = msh_region_boundaries(region, run->page, run->page + run->pages);
    atomic_fetch_add(&msh_views_of(window->views, (MshSlot){run->slot})->mapped_pages, done);
    /* May be fewer than before: the difference wraps, and so does the sum. */
    msh_count(&counters->mappings, (uint64_t)after - before);
    msh_count(&counters->own_mappings, (uint64_t)after - before);
    msh_count(&counters->merged_pages, done);
}

static void count_window(MshWindow *window, uint64_t took_ns)
{
    unsigned bucket = 0;
    while (bucket < MSH_WINDOW_BUCKETS - 1 && took_ns >= (1000ull << bucket))
        bucket++;
    msh_count(&window->counters->windows, 1);
    msh_count(&window->counters->window_time_ns[bucket], 1);
    if (took_ns > AIM_NS + AIM_NS / 2 && window->effort > EFFORT_MIN)
        window->effort -= window->effort / 4;
    else if (took_ns < AIM_NS && window->effort < EFFORT_MAX)
        window->effort += EFFORT_MIN / 4;
}

/* A window is late when its thread lost the processor, or the machine is short of some other thing:
 * then fewer are opened. */
static void note_strain(MshWindow *window, bool is_late)
{
    if (is_late) {
        window->strain += window->strain < MSH_WINDOW_STRAIN_MAX;
        window->calm = 0;
    } else if (++window->calm == CALM_WINDOWS) {
        window->strain -= window->strain > 0;
        window->calm = 0;
    }
}

static void close_spans(MshWindow *window, Plan *plan)
{
    bool is_stuck = false;
    for (size_t i = 0; i < plan->spans; i++) {
        const Span *span = &plan->span[i];
        void *start = msh_region_address(span->region, span->first);
        size_t length_bytes = msh_pages_to_bytes(span->end - span->first);
        if (span->foreign)
            continue;
        /* Also where registering failed: part of the span may be registered all the same. */
        int result = msh_uffd_unregister(&window->uffd, start, length_bytes);
        is_stuck |= result < 0 && span->open;
        /* Always, and all of it: unregistering wakes sleepers only where the span is registered
         * still; one asleep on a page just replaced would sleep for ever. I8 */
        msh_uffd_wake(&window->uffd, start, length_bytes);
    }
    /* Closing the descriptor unregisters everything and wakes everybody. */
    if (is_stuck)
        msh_uffd_close(&window->uffd);
}

void msh_window_free_replaced(MshWindow *window)
{
    madvise(window->scratch, msh_pages_to_bytes(window->held), MADV_DONTNEED);
    window->held = 0;
}

size_t msh_window_merge(MshWindow *window, const MshCandidate *candidates, size_t count,
                        MshSlot *ret_returned, size_t *ret_returned_count)
{
    Plan plan;
    *ret_returned_count = 0;
    if (window->held + MSH_WINDOW_PAGES > MSH_WINDOW_SCRATCH_PAGES)
        msh_window_free_replaced(window);
    make_plan(window, &plan, candidates, count, ret_returned, ret_returned_count);
    if (plan.runs == 0)
        return plan.candidates;

    uint64_t opened_ns = now_ns();
    for (size_t i = 0; i < plan.spans; i++) {
        Span *span = &plan.span[i];
        unsigned modes = MSH_UFFD_MISSING_PAGES;
        if (msh_track_covers(span->region, span->first, span->end))
            modes |= MSH_UFFD_WRITES; /* without it the marks would stay on pages that nobody tracks */
        int result = msh_uffd_register(&window->uffd, msh_region_address(span->region, span->first),
                                       msh_pages_to_bytes(span->end - span->first), modes);
        span->open = result == 0;
        span->foreign = result == MSH_E_UFFD_FOREIGN;
    }
    size_t runs = 0;
    while (runs < plan.runs && (runs == 0 || now_ns() - opened_ns < CLOSE_AFTER_NS)) {
        size_t end = haul_end(&plan, runs);
        bool is_open = plan.run[runs].span->open;
        if (is_open)
            move_out(window, &plan.run[runs], &plan.run[end - 1]);
        for (; runs < end; runs++)
            if (is_open)
                work(window, &plan.run[runs]);
    }
    msh_count(&window->counters->slept_faults, msh_uffd_discard_events(&window->uffd));
    close_spans(window, &plan);
    uint64_t took_ns = now_ns() - opened_ns;

    window->held += plan.run[runs - 1].scratch + plan.run[runs - 1].pages;
    if (runs < plan.runs) {
        /* Time was up: what the plan did from here on is for the next window to do again. */
        plan.candidates = plan.run[runs].candidates_before;
        *ret_returned_count = plan.run[runs].returned_before;
    }
    for (size_t i = 0; i < runs; i++)
        record(window, &plan.run[i], ret_returned, ret_returned_count);
    for (size_t i = 0; i < plan.spans; i++)
        msh_track_resume(window->track, plan.span[i].region, plan.span[i].first, plan.span[i].end);
    count_window(window, took_ns);
    note_strain(window, took_ns > LATE_NS);
    return plan.candidates;
}
