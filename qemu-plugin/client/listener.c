/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "listener.h"

#include <errno.h>
#include <string.h>

#include "fingerprint.h"
#include "handover.h"
#include "worker.h"

static void on_match(void *opaque, uint32_t frame, MshSlot slot)
{
    MshEngine *engine = opaque;
    if (!msh_handover_add(&engine->pending, (MshCandidate){.frame = frame, .slot = slot.number}))
        msh_handover_return(engine, &slot, 1);
}

/* The page was present a moment ago, when it was visited; asking the kernel once more for each one
 * would cost more than the copy. In a huge page that no window may open its slot would be dead at once. */
static bool on_copy_page(void *opaque, uint32_t frame, void *destination)
{
    MshEngine *engine = opaque;
    pthread_mutex_lock(&engine->memory_lock);
    uint32_t page;
    MshRegion *region = msh_memory_find(&engine->memory, frame, &page);
    MshPageState state = region ? region->state[page] : MSH_PAGE_BROKEN;
    MshSlot slot = {state == MSH_PAGE_SHARED ? region->word[page] : 0};
    bool is_there = (state == MSH_PAGE_PRIVATE || state == MSH_PAGE_SHARED) &&
                    !msh_region_note_worth(region, page, &engine->counters);
    if (is_there)
        msh_page_copy(destination, state == MSH_PAGE_PRIVATE
                                       ? msh_region_address(region, page)
                                       : msh_view_page(msh_views_of(&engine->views, slot), slot));
    pthread_mutex_unlock(&engine->memory_lock);
    return is_there;
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
        result = msh_rebuild_init(&engine->rebuild, device_fd, &engine->scan.track, &engine->views,
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
    engine->anew_rest_ns = MSH_ANEW_REST_MIN_NS;
    engine->moving.connected_ns = msh_engine_now_ns();
    if (engine->had_store) /* and the old one's memory is to come back */
        msh_moving_begin_anew(engine);
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
    msh_moving_begin(opaque);
}

MshExchangeEvents msh_listener_events(MshEngine *engine)
{
    return (MshExchangeEvents){.match = on_match,
                               .copy_page = on_copy_page,
                               .connected = on_connected,
                               .disconnected = on_disconnected,
                               .emptying = on_emptying,
                               .opaque = engine};
}
