/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "fingerprint.h"
#include "merging.h"
#include "release.h"

#define SECOND_NS 1000000000ull
/* What the CPU limit must allow before a step is begun. */
#define CPU_STEP_NS 1000000ull
/* Passes that find nothing follow each other less and less closely. */
#define IDLE_MIN_NS 20000000ull
#define IDLE_MAX_NS 640000000ull
#define ANEW_INTERVAL_NS (10 * SECOND_NS)
/* Pages that did not move out of a view that leaves are asked about again, less and less often. */
#define MOVING_REST_MIN_NS (10 * SECOND_NS)
#define MOVING_REST_MAX_NS (640 * SECOND_NS)
#define RECOUNT_MAPPINGS_NS (10 * SECOND_NS)
/* How long a pass on a caller's thread waits for the store to come within reach. */
#define CONNECT_PATIENCE_NS (2 * SECOND_NS)

enum {
    QUEUE_FULL = 16384,
    STEP_PAGES_MIN = 64, /* waking up costs as much as hashing that many */
    RELEASE_RATE_MIN = 50000, /* pages/s: un-sharing goes on also where scanning is paused */
};

/*
 * Section: candidates and slots between the threads
 */

static bool append_candidate(MshCandidates *list, MshCandidate candidate)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 1024;
        MshCandidate *items = realloc(list->items, capacity * sizeof *items);
        if (!items)
            return false;
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = candidate;
    return true;
}

void msh_worker_return_slots(MshEngine *engine, const MshSlot *slots, size_t count)
{
    if (count == 0)
        return;
    pthread_mutex_lock(&engine->queue_lock);
    MshSlots *returned = &engine->returned;
    if (returned->count + count > returned->capacity) {
        size_t capacity = (returned->count + count) * 2;
        MshSlot *items = realloc(returned->items, capacity * sizeof *items);
        if (!items) {
            /* A grant too many keeps a slot alive for longer, no more. */
            pthread_mutex_unlock(&engine->queue_lock);
            return;
        }
        returned->items = items;
        returned->capacity = capacity;
    }
    memcpy(returned->items + returned->count, slots, count * sizeof *slots);
    returned->count += count;
    pthread_mutex_unlock(&engine->queue_lock);
}

static void flush_returned(MshEngine *engine)
{
    pthread_mutex_lock(&engine->queue_lock);
    MshSlots returned = engine->returned;
    engine->returned = (MshSlots){0};
    pthread_mutex_unlock(&engine->queue_lock);
    if (returned.count)
        engine->exchange->verbs->release(engine->exchange, returned.items, returned.count);
    free(returned.items);
}

static void hand_over(MshEngine *engine)
{
    if (engine->pending.count == 0)
        return;
    pthread_mutex_lock(&engine->queue_lock);
    for (size_t i = 0; i < engine->pending.count; i++)
        append_candidate(&engine->queue, engine->pending.items[i]);
    engine->pending.count = 0;
    pthread_cond_signal(&engine->queue_filled);
    pthread_mutex_unlock(&engine->queue_lock);
}

/*
 * Section: what the exchange tells
 */

static void on_match(void *opaque, uint32_t frame, MshSlot slot)
{
    MshEngine *engine = opaque;
    if (!append_candidate(&engine->pending, (MshCandidate){.frame = frame, .slot = slot.number}))
        msh_worker_return_slots(engine, &slot, 1);
}

/* The page was present a moment ago, when it was visited; asking the kernel once more for each one
 * would cost more than the copy. */
static bool on_copy_page(void *opaque, uint32_t frame, void *destination)
{
    MshEngine *engine = opaque;
    pthread_mutex_lock(&engine->memory_lock);
    uint32_t page;
    const MshRegion *region = msh_memory_find(&engine->memory, frame, &page);
    MshPageState state = region ? region->state[page] : MSH_PAGE_BROKEN;
    MshSlot slot = {state == MSH_PAGE_SHARED ? region->word[page] : 0};
    bool is_there = state == MSH_PAGE_PRIVATE || state == MSH_PAGE_SHARED;
    if (is_there)
        msh_page_copy(destination, state == MSH_PAGE_PRIVATE
                                       ? msh_region_address(region, page)
                                       : msh_view_page(msh_views_of(&engine->views, slot), slot));
    pthread_mutex_unlock(&engine->memory_lock);
    return is_there;
}

/* Asked about once more: whoever was asked before is gone. */
static void forget_moving(MshEngine *engine)
{
    pthread_mutex_lock(&engine->memory_lock);
    for (size_t i = 0; i < engine->memory.count; i++) {
        MshRegion *region = engine->memory.region[i];
        for (uint32_t page = 0; page < region->pages; page++)
            region->look[page] &= (uint8_t)~MSH_LOOK_MOVING; /* no gauge counts it */
    }
    pthread_mutex_unlock(&engine->memory_lock);
    engine->moving_frame = 0;
}

void msh_worker_stop_tracking(MshEngine *engine)
{
    for (size_t i = 0; i < engine->memory.count; i++)
        msh_track_drop(&engine->scan.track, engine->memory.region[i], 0,
                       engine->memory.region[i]->pages);
}

/* Somebody else may want to register the memory meanwhile, and the guest need not pay for marks that nobody
 * reads. */
static void pause_tracking(MshEngine *engine)
{
    if (msh_read(&engine->counters.tracked_pages) == 0)
        return;
    pthread_mutex_lock(&engine->memory_lock);
    msh_worker_stop_tracking(engine);
    pthread_mutex_unlock(&engine->memory_lock);
}

/* From the first page on: a view has come to leave since some were passed over. */
static void begin_moving(MshEngine *engine)
{
    engine->is_moving = true;
    engine->moving_frame = 0;
    engine->moving_rest_ns = MOVING_REST_MIN_NS;
    engine->moving_earliest_ns = msh_engine_now_ns() + engine->moving_rest_ns;
}

/* What windows and rebuilding need, once. An engine that is barred stays so: no other store changes what the
 * kernel has refused, and rebuilding is there still when only the window was lost. Memory lock. */
static int prepare(MshEngine *engine, int device_fd)
{
    MshError error = {0};
    if (atomic_load(&engine->is_barred))
        return -ENOSYS;
    if (engine->has_window)
        return 0;
    int result = msh_window_init(&engine->window, device_fd, &engine->scan.pagemap, &engine->memory,
                                 &engine->views, &engine->counters, &error);
    engine->has_window = result == 0;
    if (result == 0) {
        msh_track_init(&engine->scan.track, &engine->window.uffd, &engine->scan.pagemap,
                       &engine->counters);
        result = msh_rebuild_init(&engine->rebuild, device_fd, &engine->scan.pagemap, &engine->views,
                                  &engine->counters, &error);
        engine->has_rebuild = result == 0;
    }
    if (result < 0) {
        msh_text_set(&engine->texts, &engine->barred_reason, error.text);
        atomic_store(&engine->is_barred, true);
    }
    return result;
}

static int on_connected(void *opaque, const uint8_t *secret, int device_fd)
{
    MshEngine *engine = opaque;
    pthread_mutex_lock(&engine->memory_lock);
    int result = prepare(engine, device_fd);
    pthread_mutex_unlock(&engine->memory_lock);
    if (result < 0)
        return result;
    memcpy(engine->secret, secret, sizeof engine->secret);
    engine->scan.secret = engine->secret;
    engine->missed = 0;
    engine->anew_earliest_ns = 0;
    if (engine->had_store) { /* and the old one's memory is to come back */
        forget_moving(engine);
        begin_moving(engine);
    }
    engine->scan.wants_anew =
        engine->had_store; /* this store has heard nothing of what was sighted */
    engine->had_store = true;
    return 0;
}

static void on_disconnected(void *opaque)
{
    MshEngine *engine = opaque;
    engine->scan.secret = NULL;
}

static void on_emptying(void *opaque)
{
    begin_moving(opaque);
}

MshExchangeEvents msh_worker_events(MshEngine *engine)
{
    return (MshExchangeEvents){.match = on_match,
                               .copy_page = on_copy_page,
                               .connected = on_connected,
                               .disconnected = on_disconnected,
                               .emptying = on_emptying,
                               .opaque = engine};
}

/*
 * Section: passes
 */

static void count_mappings(MshEngine *engine)
{
    uint64_t now_ns = msh_engine_now_ns();
    if (engine->mappings_counted_ns && now_ns - engine->mappings_counted_ns < RECOUNT_MAPPINGS_NS)
        return;
    engine->mappings_counted_ns = now_ns;
    uint64_t limit = 65530, mappings = 0;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    if (file) {
        unsigned long value;
        if (fscanf(file, "%lu", &value) == 1)
            limit = value;
        fclose(file);
    }
    /* The window thread would add to what is being counted. */
    pthread_mutex_lock(&engine->memory_lock);
    file = fopen("/proc/self/maps", "re");
    if (file) {
        char chunk[65536];
        size_t got;
        while ((got = fread(chunk, 1, sizeof chunk, file)) > 0)
            for (const char *at = chunk; (at = memchr(at, '\n', (size_t)(chunk + got - at))); at++)
                mappings++;
        fclose(file);
        msh_gauge(&engine->counters.mappings, mappings);
    }
    msh_gauge(&engine->counters.mappings_limit, limit / 5 * 4); /* I11 */
    pthread_mutex_unlock(&engine->memory_lock);
}

/* Closes views that nothing maps and nothing will. */
static void close_spent_views(MshEngine *engine)
{
    pthread_mutex_lock(&engine->memory_lock);
    pthread_mutex_lock(&engine->queue_lock);
    bool is_idle = engine->queue.count == 0 && !engine->is_merging && engine->pending.count == 0 &&
                   engine->returned.count == 0;
    pthread_mutex_unlock(&engine->queue_lock);
    for (uint32_t local = 0; is_idle && local < MSH_VIEWS_MAX; local++) {
        const MshView *view = engine->views.view[local];
        if (!view || atomic_load(&view->mapped_pages))
            continue;
        bool is_current = view->source == engine->views.source;
        if (is_current && !view->retired)
            continue;
        uint32_t segment = view->segment;
        msh_views_close(&engine->views, local);
        if (is_current)
            engine->exchange->verbs->forget(engine->exchange, segment);
    }
    pthread_mutex_unlock(&engine->memory_lock);
}

/* Whether pages that could not be merged for want of mappings may be proposed once more: when there are
 * fewer mappings than at the last refusal, or each pass would ask about the same pages again. */
static bool budget_is_back(MshEngine *engine)
{
    enum { ROOM = 1024 };
    uint64_t refused_at = atomic_load(&engine->window.refused_at);
    if (msh_read(&engine->counters.mappings) + ROOM > refused_at)
        return false;
    atomic_store(&engine->window.refused_at, 0);
    return true;
}

/* The table has forgotten sightings: make them again, but not for ever if it is too small for them.
 */
static void note_missed(MshEngine *engine, uint32_t missed)
{
    uint64_t now_ns = msh_engine_now_ns();
    if (missed == engine->missed || now_ns < engine->anew_earliest_ns)
        return;
    engine->missed = missed;
    engine->anew_earliest_ns = now_ns + ANEW_INTERVAL_NS;
    engine->scan.wants_anew = true;
    engine->is_moving = msh_views_leaving_pages(&engine->views) > 0;
    if (engine->is_moving)
        forget_moving(engine);
}

/* Pages may have stayed in a view that leaves for many reasons: no room for mappings or in the
 * store, a broker that was slow, an engine that was held. The segment lives as long as any does. */
static void retry_moving(MshEngine *engine)
{
    uint64_t now_ns = msh_engine_now_ns();
    if (engine->is_moving || now_ns < engine->moving_earliest_ns ||
        msh_views_leaving_pages(&engine->views) == 0)
        return;
    forget_moving(engine);
    engine->is_moving = true;
    if (engine->moving_rest_ns < MOVING_REST_MAX_NS)
        engine->moving_rest_ns *= 2;
    engine->moving_earliest_ns = now_ns + engine->moving_rest_ns;
}

static void settle(MshEngine *engine)
{
    flush_returned(engine);
    close_spent_views(engine);
}

void msh_worker_settle(MshEngine *engine)
{
    if (pthread_mutex_trylock(&engine->work_lock))
        return;
    settle(engine);
    pthread_mutex_unlock(&engine->work_lock);
}

static void end_pass(MshEngine *engine)
{
    settle(engine);
    if (atomic_exchange(&engine->wants_anew, false) || budget_is_back(engine)) {
        engine->scan.wants_anew = true;
        engine->moving_earliest_ns = 0; /* what was to move may have been turned down as well */
    }
    MshAccount account;
    if (engine->exchange->verbs->account(engine->exchange, &account)) {
        /* Of a store that is gone nobody tells who shares: its pages save nothing, for all we know.
         */
        msh_gauge(&engine->counters.store_cost_bytes,
                  account.cost_bytes + msh_pages_to_bytes(msh_views_lost_pages(&engine->views)));
        note_missed(engine, account.missed);
        retry_moving(engine);
    }
    msh_gauge(&engine->counters.pass_end_ns, msh_engine_now_ns());
    msh_count(&engine->counters.passes, 1);
}

static void ask(MshEngine *engine)
{
    if (engine->asking_count && engine->scan.secret)
        engine->exchange->verbs->sight(engine->exchange, engine->asking, engine->asking_count);
    engine->asking_count = 0;
}

/* Visits one block, asks about its pages or notes to do so, and leaves what can be merged in pending. A barred
 * engine only notices what was written to, and gives slots back. */
static int scan_block(MshEngine *engine, uint32_t max_pages)
{
    MshVisit *visit = &engine->visit;
    flush_returned(engine);
    bool is_barred = atomic_load(&engine->is_barred);
    bool wants_content = msh_engine_mode(engine) == MSH_MODE_CONTENT && !is_barred;
    if (wants_content != engine->scan.wants_content)
        atomic_store(&engine->wants_anew, true);
    engine->scan.wants_content = wants_content;
    pthread_mutex_lock(&engine->memory_lock);
    engine->scan.may_track =
        !atomic_load(&engine->is_held) && msh_engine_mode(engine) != MSH_MODE_OFF;
    int result = msh_scan_visit(&engine->scan, &engine->memory, max_pages, visit);
    if (result == 0 && visit->region && engine->scan.may_track)
        msh_release_mend(engine, visit->region, visit->first, visit->end);
    pthread_mutex_unlock(&engine->memory_lock);
    if (result < 0)
        return result;
    for (size_t i = 0; i < visit->candidates && !is_barred; i++)
        append_candidate(&engine->pending, visit->candidate[i]);
    if (visit->broken)
        engine->exchange->verbs->release(engine->exchange, visit->broken_slot, visit->broken);
    memcpy(engine->asking + engine->asking_count, visit->sighting,
           visit->sightings * sizeof *visit->sighting);
    engine->asking_count += visit->sightings;
    if (visit->is_pass_end || engine->asking_count + MSH_SCAN_BLOCK_PAGES > MSH_ASKING_MAX)
        ask(engine);
    return 0;
}

/* Asks about pages of views that leave, a block of them. False: there are no more. */
static bool move_block(MshEngine *engine)
{
    pthread_mutex_lock(&engine->memory_lock);
    engine->is_moving = msh_scan_leaving(&engine->scan, &engine->memory, &engine->views,
                                         &engine->moving_frame, &engine->visit);
    pthread_mutex_unlock(&engine->memory_lock);
    if (!engine->is_moving)
        engine->moving_frame = 0;
    else if (engine->visit.sightings)
        engine->exchange->verbs->sight(engine->exchange, engine->visit.sighting,
                                       engine->visit.sightings);
    return engine->is_moving;
}

static bool poll_exchange(MshEngine *engine)
{
    bool is_connected = engine->exchange->verbs->poll(engine->exchange);
    atomic_store(&engine->is_connected, is_connected);
    atomic_store(&engine->protocol, engine->exchange->protocol);
    msh_text_set(&engine->texts, &engine->exchange_reason,
                 is_connected ? NULL : engine->exchange->why);
    return is_connected;
}

static void release_all(MshEngine *engine)
{
    uint32_t frame = 0;
    while (msh_release_block(engine, &frame))
        flush_returned(engine);
    flush_returned(engine);
}

int msh_worker_pass(MshEngine *engine, MshError *error)
{
    uint64_t give_up_ns = msh_engine_now_ns() + CONNECT_PATIENCE_NS;
    while (!poll_exchange(engine) && !atomic_load(&engine->is_barred) &&
           msh_engine_now_ns() < give_up_ns)
        engine->exchange->verbs->wait(engine->exchange, engine->wake_fd, SECOND_NS / 10);
    if (atomic_load(&engine->is_barred))
        return msh_error_set(error, -ENOSYS, "%s", msh_text_get(&engine->barred_reason));
    if (!atomic_load(&engine->is_connected))
        return msh_error_set(error, -ENOTCONN, "%s", msh_text_get(&engine->exchange_reason));

    if (msh_engine_mode(engine) < MSH_MODE_CONTENT)
        release_all(engine);
    if (msh_engine_mode(engine) == MSH_MODE_OFF) {
        end_pass(engine);
        return 0;
    }
    count_mappings(engine);
    if (engine->scan.cursor_frame) /* the pass that was under way is given up */
        msh_scan_restart(&engine->scan);
    int result = 0;
    do {
        result = scan_block(engine, MSH_SCAN_BLOCK_PAGES);
        if (engine->asking_count == 0)
            msh_merging_all(engine, &engine->pending, false);
        poll_exchange(engine);
    } while (result == 0 && !engine->visit.is_pass_end);
    msh_merging_all(engine, &engine->pending, false);
    while (result == 0 && engine->is_moving && move_block(engine))
        msh_merging_all(engine, &engine->pending, false);
    if (result < 0)
        return msh_error_set(error, result, "page tables cannot be scanned: %s", strerror(-result));
    end_pass(engine);
    return 0;
}

/*
 * Section: the scan thread
 */

typedef struct Pacing {
    MshPace pages, cpu;
    uint64_t rate, cpu_rate, cpu_spent_ns;
    uint32_t release_frame;
    bool is_limited;  /* cpu_spent_ns is kept */
    bool is_fruitful; /* this pass has found something to merge */
    uint64_t idle_ns; /* rest after a pass that found nothing */
} Pacing;

static uint64_t thread_cpu_ns(pthread_t thread)
{
    clockid_t clock;
    struct timespec used = {0};
    if (pthread_getcpuclockid(thread, &clock) == 0)
        clock_gettime(clock, &used);
    return (uint64_t)used.tv_sec * SECOND_NS + (uint64_t)used.tv_nsec;
}

/* How long to wait before pages may be visited; 0: now. */
static uint64_t pace_ns(MshEngine *engine, Pacing *pacing, uint64_t now_ns)
{
    uint64_t rate = atomic_load(&engine->scan_rate_pages);
    uint64_t percent = atomic_load(&engine->cpu_limit_percent);
    uint64_t cpu_rate = percent ? percent * (SECOND_NS / 100) : UINT64_MAX;
    if (rate != pacing->rate)
        msh_pace_set_rate(&pacing->pages, pacing->rate = rate, MSH_SCAN_BLOCK_PAGES, now_ns);
    if (cpu_rate != pacing->cpu_rate)
        msh_pace_set_rate(&pacing->cpu, pacing->cpu_rate = cpu_rate, SECOND_NS / 100, now_ns);
    /* The window thread is never throttled itself: it gets its work from here, and what it spends
     * on that delays the next. */
    bool was_limited = pacing->is_limited;
    pacing->is_limited = percent > 0;
    if (pacing->is_limited) { /* reading the clocks costs as much as hashing a page */
        uint64_t cpu_ns = thread_cpu_ns(pthread_self()) + thread_cpu_ns(engine->window_thread);
        msh_pace_spend(&pacing->cpu, was_limited ? cpu_ns - pacing->cpu_spent_ns : 0, now_ns);
        pacing->cpu_spent_ns = cpu_ns;
    }
    /* A slow rate is served in small steps, so that it is a rate and not a burst now and then. Smaller ones
     * would cost more for waking up than for the pages. */
    uint64_t step = rate / 50 < STEP_PAGES_MIN         ? STEP_PAGES_MIN
                    : rate / 50 < MSH_SCAN_BLOCK_PAGES ? rate / 50
                                                       : MSH_SCAN_BLOCK_PAGES;
    uint64_t pages_ns = msh_pace_wait_ns(&pacing->pages, step, now_ns);
    /* Who has to wait waits for twice as much as it takes to begin: waking up costs some of it, and a thread
     * that wakes with just too little would spend all that it may on waking. */
    uint64_t cpu_wait_ns = msh_pace_wait_ns(&pacing->cpu, CPU_STEP_NS, now_ns);
    if (cpu_wait_ns)
        cpu_wait_ns = msh_pace_wait_ns(&pacing->cpu, 2 * CPU_STEP_NS, now_ns);
    return pages_ns > cpu_wait_ns ? pages_ns : cpu_wait_ns;
}

/* Whether more may be visited before the window thread has caught up. A pass begins when all that
 * the last one found is merged: it would only find it again. */
static bool has_room_for_more(MshEngine *engine)
{
    bool is_start = engine->scan.cursor_frame == 0;
    pthread_mutex_lock(&engine->queue_lock);
    bool has_room = is_start ? engine->queue.count == 0 && !engine->is_merging
                             : engine->queue.count < QUEUE_FULL;
    pthread_mutex_unlock(&engine->queue_lock);
    return has_room;
}

/* Zero pages wait for what is asked about: neighbours of theirs that match share their window. */
static void hand_over_if_asked(MshEngine *engine)
{
    if (engine->asking_count == 0)
        hand_over(engine);
}

/* One step of the scan thread. Work lock. Returns for how long there is nothing to do. */
static uint64_t step(MshEngine *engine, Pacing *pacing)
{
    bool is_connected = poll_exchange(engine);
    hand_over_if_asked(engine); /* hints */
    flush_returned(engine);
    if (msh_engine_mode(engine) < MSH_MODE_CONTENT && msh_release_is_due(engine)) {
        msh_release_block(engine, &pacing->release_frame);
        return SECOND_NS * MSH_SCAN_BLOCK_PAGES / RELEASE_RATE_MIN;
    }
    if (msh_engine_mode(engine) == MSH_MODE_OFF || atomic_load(&engine->is_held) || !is_connected) {
        if (engine->asking_count) { /* nobody asks now; what was found waits for no answer, nor keeps slots */
            engine->asking_count = 0;
            atomic_store(&engine->wants_anew, true);
        }
        hand_over(engine);
        /* No pass ends now that would do it, and a view keeps a dead segment's memory. */
        close_spent_views(engine);
        return SECOND_NS / 10;
    }
    if (atomic_load(&engine->scan_rate_pages) == 0)
        pause_tracking(engine);
    uint64_t now_ns = msh_engine_now_ns();
    uint64_t wait_ns = pace_ns(engine, pacing, now_ns);
    bool has_room = has_room_for_more(engine);
    if (wait_ns || !has_room) {
        ask(engine);
        hand_over(engine);
        /* For want of room: the window thread wakes us. */
        return !has_room || wait_ns > SECOND_NS ? SECOND_NS : wait_ns;
    }
    count_mappings(engine);
    if (engine->is_moving) {
        if (move_block(engine))
            msh_pace_spend(&pacing->pages, engine->visit.scanned_pages, now_ns);
        hand_over(engine);
        return 0;
    }
    uint64_t allowed = msh_pace_available(&pacing->pages, now_ns);
    uint32_t pages = allowed < MSH_SCAN_BLOCK_PAGES ? (uint32_t)allowed : MSH_SCAN_BLOCK_PAGES;
    if (scan_block(engine, pages ? pages : 1) < 0)
        return SECOND_NS;
    msh_pace_spend(&pacing->pages,
                   engine->visit.scanned_pages + engine->visit.skipped_pages / MSH_SKIPPED_PER_SCANNED,
                   now_ns);
    pacing->is_fruitful |= engine->pending.count > 0;
    hand_over_if_asked(engine);
    if (!engine->visit.is_pass_end)
        return 0;
    end_pass(engine);
    pacing->idle_ns = pacing->is_fruitful             ? 0
                      : pacing->idle_ns == 0          ? IDLE_MIN_NS
                      : pacing->idle_ns < IDLE_MAX_NS ? pacing->idle_ns * 2
                                                      : pacing->idle_ns;
    pacing->is_fruitful = false;
    return pacing->idle_ns;
}

static void *scan_main(void *opaque)
{
    MshEngine *engine = opaque;
    Pacing pacing = {0};
    uint64_t now_ns = msh_engine_now_ns();
    pthread_setname_np(pthread_self(), "memshare-scan");
    msh_pace_init(&pacing.pages, 0, MSH_SCAN_BLOCK_PAGES, now_ns);
    msh_pace_init(&pacing.cpu, 0, SECOND_NS / 100, now_ns);
    while (!atomic_load(&engine->is_stopping)) {
        pthread_mutex_lock(&engine->work_lock);
        uint64_t idle_ns = step(engine, &pacing);
        if (idle_ns && !atomic_load(&engine->is_stopping))
            engine->exchange->verbs->wait(engine->exchange, engine->wake_fd, idle_ns);
        pthread_mutex_unlock(&engine->work_lock);
        eventfd_t ignored;
        (void)eventfd_read(engine->wake_fd, &ignored);
    }
    return NULL;
}

int msh_worker_start(MshEngine *engine, MshError *error)
{
    /* A signal handler of the host process must not run on a thread that holds a window open. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&engine->window_thread, NULL, msh_merging_main, engine);
    if (result == 0) {
        result = pthread_create(&engine->scan_thread, NULL, scan_main, engine);
        if (result) {
            msh_worker_stop(engine);
            pthread_join(engine->window_thread, NULL);
            /* Threads of a later start would end at once. */
            atomic_store(&engine->is_stopping, false);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result)
        return msh_error_set(error, -result, "no thread: %s", strerror(result));
    atomic_store(&engine->is_started, true);
    return 0;
}

void msh_worker_stop(MshEngine *engine)
{
    atomic_store(&engine->is_stopping, true);
    (void)eventfd_write(engine->wake_fd, 1);
    pthread_mutex_lock(&engine->queue_lock);
    pthread_cond_broadcast(&engine->queue_filled);
    pthread_mutex_unlock(&engine->queue_lock);
    if (atomic_exchange(&engine->is_started, false)) {
        pthread_join(engine->scan_thread, NULL);
        pthread_join(engine->window_thread, NULL);
    }
}
