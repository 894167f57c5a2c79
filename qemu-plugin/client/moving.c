/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "moving.h"

#include "release.h"

#define SECOND_NS 1000000000ull
#define REST_NS SECOND_NS
/* How long the last pages of a store that is gone wait for others of their contents to be visited. */
#define LOST_PATIENCE_NS (60 * SECOND_NS)

enum {
    RETRIES_MAX = 9, /* 512 s between two */
    KEPT_TIMES = 16, /* its own memory, that a page has to keep to be let go at once */
};

static void walk(MshEngine *engine)
{
    engine->moving.is_walking = true;
    engine->moving.frame = 0;
}

/* Everything may be asked about once more. */
static void forget(MshEngine *engine)
{
    pthread_mutex_lock(&engine->memory_lock);
    for (size_t i = 0; i < engine->memory.count; i++) {
        MshRegion *region = engine->memory.region[i];
        for (uint32_t page = 0; page < region->pages; page++)
            region->look[page] &= (uint8_t)~MSH_LOOK_MOVING; /* no gauge counts it */
    }
    pthread_mutex_unlock(&engine->memory_lock);
}

void msh_moving_begin(MshEngine *engine)
{
    MshMoving *moving = &engine->moving;
    uint64_t now_ns = msh_engine_now_ns();
    moving->retries = 0;
    /* Never later than it was: those that stayed would wait for as long as views come to leave. */
    if (moving->retry_earliest_ns <= now_ns || moving->retry_earliest_ns > now_ns + REST_NS)
        moving->retry_earliest_ns = now_ns + REST_NS;
    if (moving->is_walking)
        moving->walks_again = true;
    else
        walk(engine);
}

void msh_moving_begin_anew(MshEngine *engine)
{
    forget(engine);
    engine->moving.is_walking = engine->moving.walks_again = false;
    msh_moving_begin(engine);
}

void msh_moving_retry(MshEngine *engine)
{
    MshMoving *moving = &engine->moving;
    uint64_t now_ns = msh_engine_now_ns();
    if (moving->is_walking || now_ns < moving->retry_earliest_ns)
        return;
    moving->retry_earliest_ns = now_ns + REST_NS;
    if (msh_views_leaving_pages(&engine->views) == 0)
        return;
    forget(engine);
    walk(engine);
    moving->retries += moving->retries < RETRIES_MAX;
    moving->retry_earliest_ns = now_ns + (REST_NS << moving->retries);
}

bool msh_moving_takes_turn(MshEngine *engine)
{
    MshMoving *moving = &engine->moving;
    moving->had_turn = moving->is_walking && !moving->had_turn;
    return moving->had_turn;
}

static bool is_broken(const MshEngine *engine, const MshRegion *region, uint32_t page)
{
    return region->state[page] == MSH_PAGE_BROKEN && msh_scan_leaving_view(&engine->views, region, page);
}

/* Of what a page has to keep, by how long its view has been leaving: 1, 3, 7, 15 s; after 31 s nothing is asked of it. The
 * store takes nothing new while too much of it is dead, and has forgotten some pages that ought to move: where those
 * stayed for good it would stay so, and nobody would share any more. */
static unsigned halvings(MshView *view)
{
    uint64_t now_ns = msh_engine_now_ns();
    unsigned count = 0;
    if (view->leaving_ns == 0)
        view->leaving_ns = now_ns;
    while (count < RETRIES_MAX && now_ns - view->leaving_ns >= (REST_NS << (count + 1)) - REST_NS)
        count++;
    return count;
}

/* BROKEN, or SHARED and keeping so much that it is better copied. Where the store is there it has given its answer; pages of one
 * that is gone wait for others of their contents to be visited. */
static bool is_let_go(const MshEngine *engine, const MshRegion *region, uint32_t page)
{
    MshView *view = msh_scan_leaving_view(&engine->views, region, page);
    if (!view || region->state[page] == MSH_PAGE_BROKEN)
        return view != NULL;
    uint64_t mapped_bytes = msh_pages_to_bytes(atomic_load(&view->mapped_pages));
    if (view->source != engine->views.source)
        return msh_engine_now_ns() - engine->moving.connected_ns > LOST_PATIENCE_NS &&
               KEPT_TIMES * mapped_bytes <= view->size_bytes;
    return (KEPT_TIMES >> halvings(view)) * mapped_bytes <= view->size_bytes;
}

bool msh_moving_step(MshEngine *engine)
{
    MshMoving *moving = &engine->moving;
    MshVisit *visit = &engine->visit;
    pthread_mutex_lock(&engine->memory_lock);
    bool has_more = msh_scan_leaving(&engine->scan, &engine->memory, &engine->views, &moving->frame, visit);
    if (has_more)
        msh_release_some_of(engine, visit->region, visit->first, visit->end,
                            moving->retries ? is_let_go : is_broken);
    pthread_mutex_unlock(&engine->memory_lock);
    if (visit->sightings)
        engine->exchange->verbs->sight(engine->exchange, visit->sighting, visit->sightings);
    if (!has_more) {
        moving->is_walking = false;
        if (moving->walks_again)
            walk(engine);
        moving->walks_again = false;
    }
    return moving->is_walking;
}
