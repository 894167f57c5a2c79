/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "handover.h"
#include "merging.h"
#include "pacing.h"
#include "release.h"

#define SECOND_NS 1000000000ull
#define ANEW_REST_MAX_NS (16 * SECOND_NS)
#define RECOUNT_MAPPINGS_NS (10 * SECOND_NS)
/* How long a pass on a caller's thread waits for the store to come within reach. */
#define CONNECT_PATIENCE_NS (2 * SECOND_NS)

enum {
    RELEASE_RATE_MIN = 50000, /* pages/s: un-sharing goes on also where scanning is paused */
};

/*
 * Section: passes
 */

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
    bool is_idle = msh_handover_is_idle(engine);
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++) {
        const MshView *view = engine->views.view[local];
        if (!view || atomic_load(&view->mapped_pages))
            continue;
        bool is_current = view->source == engine->views.source;
        /* Nobody has a grant in one that is retired, so nothing that waits anywhere names it. */
        if (is_current ? !view->retired : !is_idle)
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

/* The table has forgotten sightings, or the store would take nothing for a while: make them again, but not for ever
 * if it is too small for them. */
static void note_missed(MshEngine *engine, uint32_t missed)
{
    uint64_t now_ns = msh_engine_now_ns();
    if (missed == engine->missed && now_ns >= engine->anew_earliest_ns + ANEW_REST_MAX_NS)
        engine->anew_rest_ns = MSH_ANEW_REST_MIN_NS;
    if (missed == engine->missed || now_ns < engine->anew_earliest_ns)
        return;
    engine->missed = missed;
    engine->anew_earliest_ns = now_ns + engine->anew_rest_ns;
    if (engine->anew_rest_ns < ANEW_REST_MAX_NS)
        engine->anew_rest_ns *= 2;
    engine->scan.wants_anew = true;
    if (msh_views_leaving_pages(&engine->views) > 0)
        msh_moving_begin_anew(engine);
}

static void settle(MshEngine *engine)
{
    msh_handover_tell_returned(engine);
    close_spent_views(engine);
}

void msh_worker_settle(MshEngine *engine)
{
    if (pthread_mutex_trylock(&engine->work_lock))
        return;
    settle(engine);
    pthread_mutex_unlock(&engine->work_lock);
}

static uint64_t moves(const MshEngine *engine)
{
    return msh_read(&engine->counters.merged_pages) + msh_read(&engine->counters.breaks);
}

/* What the store costs us, as others share what we do and stop to. The broker goes through all that we hold for it. */
static void note_account(MshEngine *engine)
{
    enum { REST_TIMES = 128 };
    uint64_t asked_ns = msh_engine_now_ns();
    engine->accounted_moves = moves(engine);
    MshAccount account;
    if (engine->exchange->verbs->account(engine->exchange, &account)) {
        /* Of a store that is gone nobody tells who shares: its pages save nothing, for all we know. */
        msh_gauge(&engine->counters.store_cost_bytes,
                  account.cost_bytes + msh_pages_to_bytes(msh_views_lost_pages(&engine->views)));
        note_missed(engine, account.missed);
    }
    uint64_t rest_ns = REST_TIMES * (msh_engine_now_ns() - asked_ns);
    engine->account_earliest_ns = asked_ns + (rest_ns > SECOND_NS ? rest_ns : SECOND_NS);
}

static void end_pass(MshEngine *engine)
{
    settle(engine);
    if (atomic_exchange(&engine->wants_anew, false) || budget_is_back(engine)) {
        engine->scan.wants_anew = true;
        engine->moving.retry_earliest_ns = 0; /* what was to move may have been turned down as well */
    }
    note_account(engine);
    msh_moving_retry(engine);
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
    msh_handover_tell_returned(engine);
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
        msh_handover_add(&engine->pending, visit->candidate[i]);
    if (visit->broken)
        engine->exchange->verbs->release(engine->exchange, visit->broken_slot, visit->broken);
    memcpy(engine->asking + engine->asking_count, visit->sighting,
           visit->sightings * sizeof *visit->sighting);
    engine->asking_count += visit->sightings;
    if (visit->is_pass_end || engine->asking_count + MSH_SCAN_BLOCK_PAGES > MSH_ASKING_MAX)
        ask(engine);
    return 0;
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
        msh_handover_tell_returned(engine);
    msh_handover_tell_returned(engine);
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
    engine->scan.now_ns = 0; /* as quick as can be: a pass by hand visits everything once */
    if (engine->scan.cursor_frame || msh_stretch_is_second(&engine->scan.stretch)) { /* the one under way is given up */
        pthread_mutex_lock(&engine->memory_lock);
        msh_scan_restart(&engine->scan);
        pthread_mutex_unlock(&engine->memory_lock);
    }
    int result = 0;
    do {
        result = scan_block(engine, MSH_SCAN_BLOCK_PAGES);
        if (engine->asking_count == 0)
            msh_merging_all(engine, &engine->pending, false);
        poll_exchange(engine);
    } while (result == 0 && !engine->visit.is_pass_end);
    msh_merging_all(engine, &engine->pending, false);
    while (result == 0 && engine->moving.is_walking && msh_moving_step(engine))
        msh_merging_all(engine, &engine->pending, false);
    if (result < 0)
        return msh_error_set(error, result, "page tables cannot be scanned: %s", strerror(-result));
    end_pass(engine);
    return 0;
}

/*
 * Section: the scan thread
 */

/* Zero pages wait for what is asked about: neighbours of theirs that match share their window. */
static void hand_over_if_asked(MshEngine *engine)
{
    if (engine->asking_count == 0)
        msh_handover_candidates(engine);
}

/* One step of the scan thread. Work lock. Returns for how long there is nothing to do. */
static uint64_t step(MshEngine *engine, MshPacing *pacing)
{
    bool is_connected = poll_exchange(engine);
    bool is_paused = atomic_load(&engine->scan_rate_pages) == 0;
    if (is_paused && engine->asking_count == 0)
        msh_handover_turn_down(engine);
    hand_over_if_asked(engine); /* hints */
    msh_handover_tell_returned(engine);
    if (msh_engine_mode(engine) < MSH_MODE_CONTENT && msh_release_is_due(engine)) {
        msh_release_block(engine, &engine->release_frame);
        return SECOND_NS * MSH_SCAN_BLOCK_PAGES / RELEASE_RATE_MIN;
    }
    if (msh_engine_mode(engine) == MSH_MODE_OFF || atomic_load(&engine->is_held) || !is_connected) {
        if (engine->asking_count) { /* nobody asks now; what was found waits for no answer, nor keeps slots */
            engine->asking_count = 0;
            atomic_store(&engine->wants_anew, true);
        }
        msh_handover_candidates(engine);
        /* No pass ends now that would do it, and a view keeps a dead segment's memory. */
        close_spent_views(engine);
        return SECOND_NS / 10;
    }
    uint64_t now_ns = msh_engine_now_ns();
    if (is_paused) {
        pause_tracking(engine);
        /* No pass ends that would do it, and what was under way goes on. */
        if (now_ns >= engine->account_earliest_ns || moves(engine) != engine->accounted_moves)
            note_account(engine);
    }
    uint64_t wait_ns = msh_pacing_wait_ns(pacing, engine, now_ns);
    bool has_room = msh_handover_has_room(engine);
    if (wait_ns || !has_room) {
        ask(engine);
        msh_handover_candidates(engine);
        /* For want of room: the window thread wakes us. */
        return !has_room || wait_ns > SECOND_NS ? SECOND_NS : wait_ns;
    }
    count_mappings(engine);
    msh_moving_retry(engine);
    /* In turns: new pages are found all the while, and what moves is memory that is held twice. */
    if (msh_moving_takes_turn(engine)) {
        if (msh_moving_step(engine))
            msh_pacing_pay(pacing, &engine->visit, now_ns);
        else
            close_spent_views(engine);
        msh_handover_candidates(engine);
        return 0;
    }
    engine->scan.now_ns = now_ns;
    size_t found_before = engine->pending.count;
    if (scan_block(engine, msh_pacing_pages(pacing, now_ns)) < 0)
        return SECOND_NS;
    msh_pacing_pay(pacing, &engine->visit, now_ns);
    pacing->found += engine->pending.count - found_before + engine->visit.broken;
    hand_over_if_asked(engine);
    if (!engine->visit.is_pass_end)
        return 0;
    end_pass(engine);
    return engine->moving.is_walking ? 0 : msh_pacing_rest_ns(pacing, msh_read(&engine->counters.ram_bytes), msh_engine_now_ns());
}

static void *scan_main(void *opaque)
{
    MshEngine *engine = opaque;
    MshPacing pacing;
    pthread_setname_np(pthread_self(), "memshare-scan");
    msh_pacing_init(&pacing, msh_engine_now_ns());
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
