/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "shelf.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "memshare/protocol.h"
#include "segment.h"

enum {
    UNSWEPT_SEGMENTS_MAX = 64,
    DEAD_SHARE = 10, /* at most one slot in so many */
    SEGMENT_SLOTS_MIN = 1024,
    STORE_SEGMENTS = 8,
    MOVING_SHARE = 4, /* at most one slot in so many */
};

typedef struct Place {   /* of one number */
    MshSegment *segment; /* NULL unless kept */
    uint32_t shown;      /* members that know the number */
    bool unswept;
    bool is_emptying; /* kept, and to have no new grants */
    uint64_t emptied_at; /* when a grant there ended last, or its emptying began */
} Place;

struct MshShelf {
    char group[MSH_NAME_BYTES];
    MshGrants *grants;
    Place *places;
    uint32_t count;
    MshSegment *filling; /* also in its place; NULL: the next slot needs a new one */
    uint32_t unswept_segments;
    uint64_t unswept_slots;
};

int msh_shelf_new(const char *group, MshGrants *grants, MshShelf **ret_shelf)
{
    MshShelf *shelf = calloc(1, sizeof(*shelf));
    if (!shelf)
        return -ENOMEM;
    snprintf(shelf->group, sizeof(shelf->group), "%s", group);
    shelf->grants = grants;
    *ret_shelf = shelf;
    return 0;
}

MshShelf *msh_shelf_free(MshShelf *shelf)
{
    if (shelf) {
        for (uint32_t i = 0; i < shelf->count; i++)
            msh_segment_free(shelf->places[i].segment);
        free(shelf->places);
        free(shelf);
    }
    return NULL;
}

static bool is_free(const Place *place)
{
    return !place->segment && place->shown == 0 && !place->unswept; /* I4 */
}

/* A free number, or a new one. */
static int find_number(MshShelf *shelf, uint32_t *ret_number)
{
    for (uint32_t i = 0; i < shelf->count; i++) {
        if (is_free(&shelf->places[i])) {
            *ret_number = i;
            return 0;
        }
    }
    if (shelf->count == MSH_SEGMENTS_MAX)
        return -ENOSPC;
    Place *grown = reallocarray(shelf->places, shelf->count + 1, sizeof(Place));
    if (!grown)
        return -ENOMEM;
    grown[shelf->count] = (Place){0};
    shelf->places = grown;
    *ret_number = shelf->count++;
    return 0;
}

/* An eighth of what is live in the store: as long as a segment is emptied, all that is live in it is there twice. */
static uint32_t slots_of_next(const MshShelf *shelf)
{
    MshGrantsStats grants;
    msh_grants_stats(shelf->grants, &grants);
    uint64_t slots = grants.slots_live / STORE_SEGMENTS;
    if (slots < SEGMENT_SLOTS_MIN)
        return SEGMENT_SLOTS_MIN;
    return slots < MSH_SEGMENT_SLOTS ? (uint32_t)slots : MSH_SEGMENT_SLOTS;
}

static int start_segment(MshShelf *shelf)
{
    uint32_t number;
    MshSegment *segment;

    int r = find_number(shelf, &number);
    if (r == 0)
        r = msh_segment_new(shelf->group, number, slots_of_next(shelf), &segment, NULL);
    if (r < 0)
        return r;
    r = msh_grants_add_segment(shelf->grants, number);
    if (r < 0) {
        msh_segment_free(segment);
        return r;
    }
    shelf->places[number].segment = shelf->filling = segment;
    return 0;
}

int msh_shelf_stage(MshShelf *shelf, const void *page, const void **ret_staged)
{
    uint32_t position;
    int r = shelf->filling ? msh_segment_stage(shelf->filling, page, &position) : -ENOSPC;
    if (r == -ENOSPC) {
        r = start_segment(shelf);
        if (r == 0)
            r = msh_segment_stage(shelf->filling, page, &position);
    }
    if (r == 0)
        *ret_staged = msh_segment_staged(shelf->filling);
    return r;
}

int msh_shelf_commit(MshShelf *shelf, MshSlot *ret_slot)
{
    MshSegment *segment = shelf->filling;
    int r = msh_segment_commit(segment);
    if (r < 0) { /* it is closed now; unless it holds something, nothing else would retire it */
        shelf->filling = NULL;
        if (msh_segment_used_slots(segment) == 0)
            msh_shelf_retire(shelf, msh_segment_id(segment));
        return r;
    }
    r = msh_grants_fill(shelf->grants, msh_segment_id(segment), ret_slot);
    assert(r == 0 && msh_slot_position(*ret_slot) + 1 == msh_segment_used_slots(segment));
    return r;
}

bool msh_shelf_keeps(const MshShelf *shelf, uint32_t segment)
{
    return segment < shelf->count && shelf->places[segment].segment;
}

bool msh_shelf_retired(const MshShelf *shelf, uint32_t segment)
{
    return segment < shelf->count && !shelf->places[segment].segment &&
           !is_free(&shelf->places[segment]);
}

uint32_t msh_shelf_filling(const MshShelf *shelf)
{
    return shelf->filling ? msh_segment_id(shelf->filling) : MSH_SHELF_NONE;
}

/* The segment being filled is spared: it is short of live slots only because it is new, and what is
 * moved goes there. */
bool msh_shelf_wants_emptying(const MshShelf *shelf, uint32_t segment)
{
    if (!msh_shelf_keeps(shelf, segment) || shelf->places[segment].is_emptying ||
        shelf->places[segment].segment == shelf->filling)
        return false;
    uint32_t live = msh_grants_live(shelf->grants, segment);
    return live > 0 && 2 * live < msh_grants_filled(shelf->grants, segment);
}

uint32_t msh_shelf_deadest(const MshShelf *shelf)
{
    uint64_t filled = 0, dead = 0, dead_there = 0, filled_there = 1;
    uint32_t deadest = MSH_SHELF_NONE;
    for (uint32_t i = 0; i < shelf->count; i++) {
        if (!shelf->places[i].segment || shelf->places[i].is_emptying)
            continue;
        uint64_t filled_here = msh_grants_filled(shelf->grants, i);
        uint64_t dead_here = filled_here - msh_grants_live(shelf->grants, i);
        filled += filled_here;
        dead += dead_here;
        if (dead_here * filled_there > dead_there * filled_here &&
            shelf->places[i].segment != shelf->filling) {
            dead_there = dead_here;
            filled_there = filled_here;
            deadest = i;
        }
    }
    return DEAD_SHARE * dead > filled ? deadest : MSH_SHELF_NONE;
}

bool msh_shelf_is_crowded(const MshShelf *shelf, uint64_t now)
{
    MshGrantsStats grants;
    msh_grants_stats(shelf->grants, &grants);
    uint64_t moving = 0, room = (grants.slots_live + grants.slots_dead) / MOVING_SHARE;
    for (uint32_t i = 0; i < shelf->count; i++)
        if (shelf->places[i].is_emptying && now - shelf->places[i].emptied_at <= grants.slots_live)
            moving += msh_grants_filled(shelf->grants, i);
    return moving > (room < SEGMENT_SLOTS_MIN ? SEGMENT_SLOTS_MIN : room);
}

void msh_shelf_note_release(MshShelf *shelf, uint32_t segment, uint64_t now)
{
    shelf->places[segment].emptied_at = now;
}

void msh_shelf_empty(MshShelf *shelf, uint32_t segment, uint64_t now)
{
    assert(msh_shelf_keeps(shelf, segment) && shelf->places[segment].segment != shelf->filling);
    shelf->places[segment].is_emptying = true;
    shelf->places[segment].emptied_at = now;
}

bool msh_shelf_is_emptying(const MshShelf *shelf, uint32_t segment)
{
    return msh_shelf_keeps(shelf, segment) && shelf->places[segment].is_emptying;
}

uint32_t msh_shelf_numbers_end(const MshShelf *shelf)
{
    return shelf->count;
}

void msh_shelf_retire(MshShelf *shelf, uint32_t segment)
{
    Place *place = &shelf->places[segment];
    uint32_t used_slots = msh_segment_used_slots(place->segment);

    int r = msh_grants_remove_segment(shelf->grants, segment);
    assert(r == 0);
    if (place->segment == shelf->filling)
        shelf->filling = NULL;
    place->segment = msh_segment_free(place->segment);
    place->is_emptying = false;
    if (used_slots > 0) {
        place->unswept = true;
        shelf->unswept_segments++;
        shelf->unswept_slots += used_slots;
    }
}

bool msh_shelf_wants_sweep(const MshShelf *shelf, uint64_t table_entries)
{
    return shelf->unswept_segments > 0 && (shelf->unswept_segments >= UNSWEPT_SEGMENTS_MAX ||
                                           shelf->unswept_slots >= table_entries / 4);
}

void msh_shelf_swept(MshShelf *shelf)
{
    for (uint32_t i = 0; i < shelf->count; i++)
        shelf->places[i].unswept = false;
    shelf->unswept_segments = 0;
    shelf->unswept_slots = 0;
}

int msh_shelf_read(const MshShelf *shelf, MshSlot slot, void *ret_page)
{
    uint32_t segment = msh_slot_segment(slot);
    if (!msh_shelf_keeps(shelf, segment))
        return -ENOENT;
    return msh_segment_read(shelf->places[segment].segment, msh_slot_position(slot), ret_page);
}

int msh_shelf_open(const MshShelf *shelf, uint32_t segment)
{
    if (!msh_shelf_keeps(shelf, segment))
        return -ENOENT;
    return msh_segment_open_readonly(shelf->places[segment].segment);
}

void msh_shelf_shown(MshShelf *shelf, uint32_t segment)
{
    shelf->places[segment].shown++;
}

void msh_shelf_forgotten(MshShelf *shelf, uint32_t segment)
{
    assert(shelf->places[segment].shown > 0);
    shelf->places[segment].shown--;
}

uint32_t msh_shelf_knowers(const MshShelf *shelf, uint32_t segment)
{
    return shelf->places[segment].shown;
}

void msh_shelf_audit(const MshShelf *shelf, MshAudit *audit)
{
    MshGrantsStats grants;
    uint64_t kept = 0, unswept = 0;

    for (uint32_t i = 0; i < shelf->count; i++) {
        const MshSegment *segment = shelf->places[i].segment;
        unswept += shelf->places[i].unswept;
        if (!segment)
            continue;
        kept++;
        msh_audit_compare(audit, "filled slots of a segment", msh_grants_filled(shelf->grants, i),
                          msh_segment_used_slots(segment));
    }
    msh_grants_stats(shelf->grants, &grants);
    msh_audit_compare(audit, "segments of the store", grants.segments, kept);
    msh_audit_compare(audit, "segments that the table may still name", shelf->unswept_segments,
                      unswept);
}
