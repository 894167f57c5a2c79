/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The public verbs of memshare.h.
 */
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "codec.h"
#include "listener.h"
#include "probe.h"
#include "release.h"
#include "worker.h"

/* What a store mapping costs the kernel: its VMA, its place in the tree, its reverse mapping. Measured
 * as slab growth over 100,000 mappings of one page. */
#define MAPPING_OVERHEAD_BYTES 560u

uint64_t msh_engine_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

MshMode msh_engine_mode(const MshEngine *engine)
{
    uint32_t mode = atomic_load(&((MshEngine *)engine)->mode);
    uint32_t ceiling = atomic_load(&((MshEngine *)engine)->ceiling);
    return mode < ceiling ? mode : ceiling;
}

/*
 * Section: life cycle
 */

static int open_exchange(MshEngine *engine, const MshConfig *config, MshError *error)
{
    MshExchangeEvents events = msh_listener_events(engine);
    if (!config->socket_path)
        return msh_local_new(engine->group, &engine->views, &events, &engine->exchange, error);
    char name[MSH_NAME_BYTES];
    if (config->guest_name)
        snprintf(name, sizeof name, "%s", config->guest_name);
    else
        snprintf(name, sizeof name, "pid %d", (int)getpid());
    return msh_channel_new(config->socket_path, engine->group, name, &engine->views, &events,
                           &engine->exchange, error);
}

int msh_engine_new(const MshConfig *config, MshEngine **ret_engine, MshError *error)
{
    const char *group = config->group ? config->group : "default";
    int result = msh_group_name_check(group, error);
    if (result < 0)
        return result;
    if (!msh_mode_name(config->mode))
        return msh_error_set(error, -EINVAL, "mode %u is none of off, zero, content", config->mode);
    if (config->cpu_limit_percent > 100)
        return msh_error_set(error, -EINVAL, "cpu limit %u is more than 100 percent of a core",
                             config->cpu_limit_percent);
    result = msh_probe_host(error);
    if (result < 0)
        return result;

    MshEngine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return msh_error_set(error, -ENOMEM, "out of memory");
    snprintf(engine->group, sizeof engine->group, "%s", group);
    engine->has_broker = config->socket_path != NULL;
    engine->nothing_pinned = config->nothing_pinned;
    engine->opaque = config->opaque;
    engine->patience_ns = config->patience_ns;
    atomic_init(&engine->mode, config->mode);
    atomic_init(&engine->ceiling, MSH_MODE_CONTENT);
    atomic_init(&engine->scan_rate_pages, config->scan_rate_pages);
    atomic_init(&engine->cpu_limit_percent, config->cpu_limit_percent);
    engine->window.uffd.fd = engine->scan.pagemap.fd = -1;
    engine->scan.counters = &engine->counters;
    engine->scan.is_eager = config->is_eager;
    engine->scan.wants_content = config->mode == MSH_MODE_CONTENT;
    engine->window.track = &engine->scan.track;
    msh_texts_init(&engine->texts);
    pthread_mutex_init(&engine->start_lock, NULL);
    pthread_mutex_init(&engine->work_lock, NULL);
    pthread_mutex_init(&engine->memory_lock, NULL);
    pthread_mutex_init(&engine->queue_lock, NULL);
    pthread_cond_init(&engine->queue_filled, NULL);
    engine->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->wake_fd < 0)
        result = msh_error_set(error, -errno, "no eventfd: %s", strerror(errno));
    if (result == 0)
        result = msh_pagemap_open(&engine->scan.pagemap, error);
    if (result == 0)
        result = open_exchange(engine, config, error);
    if (result < 0) {
        msh_engine_free(engine);
        return result;
    }
    *ret_engine = engine;
    return 0;
}

MshEngine *msh_engine_free(MshEngine *engine)
{
    if (!engine)
        return NULL;
    msh_engine_detach(engine, NULL);
    msh_worker_stop(engine);
    if (engine->exchange) {
        msh_worker_settle(engine);
        engine->exchange->verbs->free(engine->exchange);
    }
    msh_window_fini(&engine->window);
    if (engine->has_rebuild)
        msh_rebuild_fini(&engine->rebuild);
    msh_views_close_all(&engine->views);
    for (size_t i = 0; i < engine->memory.count; i++)
        msh_region_set_sharing(engine->memory.region[i], false); /* I12 */
    msh_memory_free(&engine->memory);
    msh_pagemap_close(&engine->scan.pagemap);
    if (engine->wake_fd >= 0)
        close(engine->wake_fd);
    free(engine->pending.items);
    free(engine->queue.items);
    free(engine->returned.items);
    msh_texts_fini(&engine->texts);
    pthread_cond_destroy(&engine->queue_filled);
    pthread_mutex_destroy(&engine->queue_lock);
    pthread_mutex_destroy(&engine->memory_lock);
    pthread_mutex_destroy(&engine->work_lock);
    pthread_mutex_destroy(&engine->start_lock);
    free(engine);
    return NULL;
}

int msh_engine_start(MshEngine *engine, MshError *error)
{
    pthread_mutex_lock(&engine->start_lock);
    int result = atomic_load(&engine->is_started) ? 0 : msh_worker_start(engine, error);
    pthread_mutex_unlock(&engine->start_lock);
    return result;
}

static void wake(MshEngine *engine)
{
    (void)eventfd_write(engine->wake_fd, 1); /* full means awake */
}

int msh_engine_detach(MshEngine *engine, MshError *error)
{
    (void)error;
    atomic_store(&engine->mode, MSH_MODE_OFF); /* nothing that waits in the queue is merged now */
    uint32_t frame = 0;
    while (msh_release_block(engine, &frame))
        ;
    msh_worker_settle(engine);
    atomic_store(&engine->wants_anew, true);
    return 0;
}

/*
 * Section: memory
 */

/* For callers of other threads than the engine's own. */
static int lock_memory(MshEngine *engine, MshError *error)
{
    if (engine->patience_ns == 0) {
        pthread_mutex_lock(&engine->memory_lock);
        return 0;
    }
    uint64_t end_ns = msh_engine_now_ns() + engine->patience_ns;
    struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000u),
                           .tv_nsec = (long)(end_ns % 1000000000u)};
    int result = pthread_mutex_clocklock(&engine->memory_lock, CLOCK_MONOTONIC, &end);
    if (result)
        return msh_error_set(error, -result, "the engine is busy");
    return 0;
}

bool msh_engine_release(MshEngine *engine, uint64_t budget_ns)
{
    uint64_t begun_ns = msh_engine_now_ns();
    bool has_more = true;
    /* The mode may rise meanwhile: then what is shared stays. */
    while (has_more && msh_engine_mode(engine) != MSH_MODE_CONTENT &&
           msh_engine_now_ns() - begun_ns < budget_ns) {
        if (budget_ns == UINT64_MAX)
            pthread_mutex_lock(&engine->memory_lock);
        else if (lock_memory(engine, NULL) < 0)
            break;
        has_more = msh_release_some(engine, &engine->quiet_frame, true);
        pthread_mutex_unlock(&engine->memory_lock);
    }
    wake(engine); /* slots are to be returned */
    return has_more;
}

int msh_engine_register(MshEngine *engine, void *address, size_t length_bytes, MshError *error)
{
    MshRegion *region;
    int result = msh_region_new(address, length_bytes, &region, error);
    if (result < 0)
        return result;
    result = lock_memory(engine, error);
    if (result < 0) {
        msh_region_free(region);
        return result;
    }
    result = msh_memory_add(&engine->memory, region, error);
    if (result == 0) {
        msh_region_set_sharing(region, true);
        msh_count(&engine->counters.ram_bytes, length_bytes);
        msh_count(&engine->counters.page_map_bytes, msh_region_overhead_bytes(region));
    }
    pthread_mutex_unlock(&engine->memory_lock);
    if (result < 0)
        msh_region_free(region);
    return result;
}

/* What stays mapped from the store is no business of the views any more. */
static void forget_pages(MshEngine *engine, MshRegion *region)
{
    for (uint32_t page = 0; page < region->pages; page++)
        if (msh_region_is_mapped(region, page))
            atomic_fetch_sub(
                &msh_views_of(&engine->views, (MshSlot){region->word[page]})->mapped_pages, 1);
    msh_region_uncount(region, &engine->counters);
}

static void remove_region(MshEngine *engine, MshRegion *region)
{
    msh_memory_remove(&engine->memory, region->base);
    /* Since it was released, some of it may have been visited. */
    msh_track_drop(&engine->scan.track, region, 0, region->pages);
    msh_region_set_sharing(region, false);
    forget_pages(engine, region);
    msh_uncount(&engine->counters.ram_bytes, msh_pages_to_bytes(region->pages));
    msh_uncount(&engine->counters.page_map_bytes, msh_region_overhead_bytes(region));
}

int msh_engine_unregister(MshEngine *engine, void *address, MshError *error)
{
    int result = lock_memory(engine, error);
    if (result < 0)
        return result;
    uint64_t until_ns = engine->patience_ns ? msh_engine_now_ns() + engine->patience_ns : UINT64_MAX;
    MshRegion *region = msh_memory_at(&engine->memory, address);
    if (!region)
        result = msh_error_set(error, -ENOENT, "no memory is registered at %p", address);
    else if (!msh_release_region(engine, region, until_ns))
        result = msh_error_set(error, -ETIMEDOUT, "the memory at %p is not un-shared yet", address);
    else
        remove_region(engine, region);
    pthread_mutex_unlock(&engine->memory_lock);
    if (result == 0)
        msh_region_free(region);
    return result;
}

/*
 * Section: steering
 */

int msh_engine_set_mode(MshEngine *engine, MshMode mode)
{
    if (!msh_mode_name(mode))
        return -EINVAL;
    atomic_store(&engine->mode, mode);
    wake(engine);
    return 0;
}

int msh_engine_set_scan_rate(MshEngine *engine, uint64_t pages_per_second)
{
    atomic_store(&engine->scan_rate_pages, pages_per_second);
    wake(engine);
    return 0;
}

int msh_engine_set_cpu_limit(MshEngine *engine, uint32_t percent)
{
    if (percent > 100)
        return -EINVAL;
    atomic_store(&engine->cpu_limit_percent, percent);
    wake(engine);
    return 0;
}

int msh_engine_set_ceiling(MshEngine *engine, MshMode ceiling, const char *reason)
{
    if (!msh_mode_name(ceiling))
        return -EINVAL;
    msh_text_set(&engine->texts, &engine->ceiling_reason,
                 ceiling == MSH_MODE_CONTENT ? NULL : reason);
    atomic_store(&engine->ceiling, ceiling);
    wake(engine);
    return 0;
}

int msh_engine_hold(MshEngine *engine, bool hold)
{
    atomic_store(&engine->is_held, hold);
    wake(engine);
    if (!hold)
        return 0;
    /* Who gets the lock knows that the last window is closed, and the next one sees the flag. */
    int result = lock_memory(engine, NULL);
    if (result < 0)
        return result;
    msh_worker_stop_tracking(engine);
    pthread_mutex_unlock(&engine->memory_lock);
    return 0;
}

/*
 * Section: work and facts
 */

int msh_engine_scan_once(MshEngine *engine, MshError *error)
{
    struct timespec before, after;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    pthread_mutex_lock(&engine->work_lock);
    int result = msh_worker_pass(engine, error);
    pthread_mutex_unlock(&engine->work_lock);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    msh_count(&engine->counters.foreground_cpu_ns,
              (uint64_t)(after.tv_sec - before.tv_sec) * 1000000000u + (uint64_t)after.tv_nsec -
                  (uint64_t)before.tv_nsec);
    return result;
}

uint64_t msh_engine_thread_cpu_ns(pthread_t thread)
{
    clockid_t clock;
    struct timespec used = {0};
    if (pthread_getcpuclockid(thread, &clock) == 0)
        clock_gettime(clock, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static MshState state_of(const MshEngine *engine)
{
    MshMode mode = msh_engine_mode(engine);
    if (atomic_load(&((MshEngine *)engine)->is_barred))
        return MSH_STATE_REFUSED;
    if (mode == MSH_MODE_OFF && msh_release_is_due(engine))
        return MSH_STATE_DRAINING;
    if (atomic_load(&((MshEngine *)engine)->ceiling) == MSH_MODE_OFF)
        return MSH_STATE_REFUSED;
    if (mode == MSH_MODE_OFF)
        return MSH_STATE_OFF;
    if (!atomic_load(&((MshEngine *)engine)->is_connected))
        return engine->has_broker ? MSH_STATE_WAITING_FOR_BROKER : MSH_STATE_STARTING;
    if (atomic_load(&((MshEngine *)engine)->is_held) ||
        atomic_load(&((MshEngine *)engine)->scan_rate_pages) == 0)
        return MSH_STATE_PAUSED;
    return MSH_STATE_RUNNING;
}

static const char *refusal_of(const MshEngine *engine)
{
    const char *barred = msh_text_get(&engine->barred_reason);
    const char *ceiling = msh_text_get(&engine->ceiling_reason);
    return *barred ? barred : *ceiling ? ceiling : msh_text_get(&engine->exchange_reason);
}

static uint64_t less_or_zero(uint64_t whole, uint64_t part)
{
    return whole > part ? whole - part : 0;
}

void msh_engine_stats(const MshEngine *engine, MshStats *ret_stats)
{
    const MshCounters *counters = &engine->counters;
    MshEngine *atomics = (MshEngine *)engine;
    MshStats stats = {
        .version = MSH_VERSION,
        .protocol = atomic_load(&atomics->protocol),
        .state = state_of(engine),
        .mode = msh_engine_mode(engine),
        .scan_rate_pages = atomic_load(&atomics->scan_rate_pages),
        .cpu_limit_percent = atomic_load(&atomics->cpu_limit_percent),
        .ram_bytes = msh_read(&counters->ram_bytes),
        .present_pages = msh_read(&counters->present_pages),
        .shared_pages = msh_read(&counters->shared_pages),
        .broken_pages = msh_read(&counters->broken_pages),
        .zero_pages = msh_read(&counters->zero_pages),
        .unique_pages = msh_read(&counters->unique_pages),
        .volatile_pages = msh_read(&counters->volatile_pages),
        .tracked_pages = msh_read(&counters->tracked_pages),
        .saved_content_bytes =
            less_or_zero(msh_pages_to_bytes(msh_read(&counters->shared_pages)),
                         msh_read(&counters->store_cost_bytes)),
        .saved_zero_bytes = msh_pages_to_bytes(msh_read(&counters->zero_pages)),
        .overhead_bytes = sizeof *engine + msh_read(&counters->page_map_bytes) +
                          msh_read(&counters->own_mappings) * MAPPING_OVERHEAD_BYTES,
        .scanned_pages = msh_read(&counters->scanned_pages),
        .skipped_pages = msh_read(&counters->skipped_pages),
        .changed_pages = msh_read(&counters->changed_pages),
        .hashed_pages = msh_read(&counters->hashed_pages),
        .merged_pages = msh_read(&counters->merged_pages),
        .zeroed_pages = msh_read(&counters->zeroed_pages),
        .breaks = msh_read(&counters->breaks),
        .rebuilt_pages = msh_read(&counters->rebuilt_pages),
        .compare_failures = msh_read(&counters->compare_failures),
        .pinned_skips = msh_read(&counters->pinned_skips),
        .scan_cpu_ns = msh_read(&counters->foreground_cpu_ns),
        .windows = msh_read(&counters->windows),
        .slept_faults = msh_read(&counters->slept_faults),
        .mappings = msh_read(&counters->mappings),
        .mappings_limit = msh_read(&counters->mappings_limit),
        .passes = msh_read(&counters->passes),
    };
    if (atomic_load(&atomics->is_started))
        stats.scan_cpu_ns +=
            msh_engine_thread_cpu_ns(engine->scan_thread) + msh_engine_thread_cpu_ns(engine->window_thread);
    for (unsigned i = 0; i < MSH_WINDOW_BUCKETS; i++)
        stats.window_time_ns[i] = msh_read(&counters->window_time_ns[i]);
    uint64_t pass_end_ns = msh_read(&counters->pass_end_ns);
    stats.pass_age_ns = pass_end_ns ? msh_engine_now_ns() - pass_end_ns : 0;
    snprintf(stats.refusal, sizeof stats.refusal, "%s", refusal_of(engine));
    snprintf(stats.group, sizeof stats.group, "%s", engine->group);
    *ret_stats = stats;
}
