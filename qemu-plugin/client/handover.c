/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "handover.h"

#include <stdlib.h>
#include <string.h>

enum {
    QUEUE_FULL_MAX = 16384,
    QUEUE_FULL_MIN = 512, /* and with a CPU limit: what waits there is time that will be spent, and is not counted yet */
    QUEUE_FULL_SHARE = 16, /* of the memory: what waits to be merged is in the store already, and so is there twice */
};

bool msh_handover_add(MshCandidates *list, MshCandidate candidate)
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

void msh_handover_return(MshEngine *engine, const MshSlot *slots, size_t count)
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

void msh_handover_tell_returned(MshEngine *engine)
{
    pthread_mutex_lock(&engine->queue_lock);
    MshSlots returned = engine->returned;
    engine->returned = (MshSlots){0};
    pthread_mutex_unlock(&engine->queue_lock);
    if (returned.count)
        engine->exchange->verbs->release(engine->exchange, returned.items, returned.count);
    free(returned.items);
}

void msh_handover_candidates(MshEngine *engine)
{
    if (engine->pending.count == 0)
        return;
    pthread_mutex_lock(&engine->queue_lock);
    for (size_t i = 0; i < engine->pending.count; i++)
        msh_handover_add(&engine->queue, engine->pending.items[i]);
    engine->pending.count = 0;
    pthread_cond_signal(&engine->queue_filled);
    pthread_mutex_unlock(&engine->queue_lock);
}

static size_t queue_full(MshEngine *engine)
{
    uint64_t share = msh_bytes_to_pages(msh_read(&engine->counters.ram_bytes)) / QUEUE_FULL_SHARE;
    if (share < QUEUE_FULL_MIN || atomic_load(&engine->cpu_limit_percent))
        return QUEUE_FULL_MIN;
    return share < QUEUE_FULL_MAX ? share : QUEUE_FULL_MAX;
}

bool msh_handover_has_room(MshEngine *engine)
{
    bool is_start = engine->scan.cursor_frame == 0;
    pthread_mutex_lock(&engine->queue_lock);
    bool has_room = is_start ? engine->queue.count == 0 && !engine->is_merging
                             : engine->queue.count < queue_full(engine);
    pthread_mutex_unlock(&engine->queue_lock);
    return has_room;
}

bool msh_handover_is_idle(MshEngine *engine)
{
    pthread_mutex_lock(&engine->queue_lock);
    bool is_idle = engine->queue.count == 0 && !engine->is_merging && engine->pending.count == 0 &&
                   engine->returned.count == 0;
    pthread_mutex_unlock(&engine->queue_lock);
    return is_idle;
}

void msh_handover_turn_down(MshEngine *engine)
{
    if (engine->pending.count == 0)
        return;
    for (size_t i = 0; i < engine->pending.count; i++)
        if (engine->pending.items[i].slot != MSH_SLOT_ZERO)
            msh_handover_return(engine, &(MshSlot){engine->pending.items[i].slot}, 1);
    engine->pending.count = 0;
    atomic_store(&engine->wants_anew, true);
}
