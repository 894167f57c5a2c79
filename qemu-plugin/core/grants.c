/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Arrays by segment number, grown as numbers come up; the large ones exist only for segments in
 * use.
 */
#include "grants.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct Segment {
    uint32_t filled, live;
    uint32_t grants[MSH_SEGMENT_SLOTS];
} Segment;

struct MshGrants {
    Segment **segments; /* by number; NULL: none of that number */
    uint32_t capacity;
    MshGrantsStats stats;
};

/* What one member holds in one segment; exists while it holds anything there. */
typedef struct Held {
    uint32_t total;
    uint16_t counts[MSH_SEGMENT_SLOTS];
} Held;

struct MshHolder {
    MshGrants *grants;
    Held **held; /* by segment number */
    uint32_t capacity;
    uint64_t total;
};

/* Makes room for index in an array of pointers, the new ones NULL. */
static int reserve(void ***array, uint32_t *capacity, uint32_t index)
{
    if (index < *capacity)
        return 0;
    uint32_t wanted = *capacity ? *capacity : 16;
    while (wanted <= index)
        wanted *= 2;
    void **grown = reallocarray(*array, wanted, sizeof(void *));
    if (!grown)
        return -ENOMEM;
    memset(grown + *capacity, 0, (wanted - *capacity) * sizeof(void *));
    *array = grown;
    *capacity = wanted;
    return 0;
}

static Segment *segment_of(const MshGrants *grants, uint32_t segment)
{
    return segment < grants->capacity ? grants->segments[segment] : NULL;
}

static Held *held_in(const MshHolder *holder, uint32_t segment)
{
    return segment < holder->capacity ? holder->held[segment] : NULL;
}

int msh_grants_new(MshGrants **ret_grants)
{
    MshGrants *grants = calloc(1, sizeof(*grants));
    if (!grants)
        return -ENOMEM;
    *ret_grants = grants;
    return 0;
}

MshGrants *msh_grants_free(MshGrants *grants)
{
    if (grants) {
        for (uint32_t i = 0; i < grants->capacity; i++)
            free(grants->segments[i]);
        free(grants->segments);
        free(grants);
    }
    return NULL;
}

int msh_grants_add_segment(MshGrants *grants, uint32_t segment)
{
    if (segment >= MSH_SEGMENTS_MAX)
        return -ERANGE;
    if (segment_of(grants, segment))
        return -EEXIST;
    int r = reserve((void ***)&grants->segments, &grants->capacity, segment);
    if (r < 0)
        return r;
    grants->segments[segment] = calloc(1, sizeof(Segment));
    if (!grants->segments[segment])
        return -ENOMEM;
    grants->stats.segments++;
    return 0;
}

int msh_grants_remove_segment(MshGrants *grants, uint32_t segment)
{
    Segment *gone = segment_of(grants, segment);
    if (!gone)
        return -ENOENT;
    if (gone->live)
        return -EBUSY;
    grants->stats.segments--;
    grants->stats.slots_dead -= gone->filled;
    grants->segments[segment] = NULL;
    free(gone);
    return 0;
}

int msh_grants_fill(MshGrants *grants, uint32_t segment, MshSlot *ret_slot)
{
    Segment *into = segment_of(grants, segment);
    if (!into)
        return -ENOENT;
    if (into->filled == MSH_SEGMENT_SLOTS)
        return -ENOSPC;
    *ret_slot = msh_slot(segment, into->filled++); /* I4 */
    grants->stats.slots_dead++;
    return 0;
}

void msh_grants_stats(const MshGrants *grants, MshGrantsStats *ret_stats)
{
    *ret_stats = grants->stats;
}

uint32_t msh_grants_filled(const MshGrants *grants, uint32_t segment)
{
    const Segment *of = segment_of(grants, segment);
    return of ? of->filled : 0;
}

uint32_t msh_grants_live(const MshGrants *grants, uint32_t segment)
{
    const Segment *of = segment_of(grants, segment);
    return of ? of->live : 0;
}

bool msh_grants_slot_is_live(const MshGrants *grants, MshSlot slot)
{
    const Segment *of = segment_of(grants, msh_slot_segment(slot));
    return of && of->grants[msh_slot_position(slot)] > 0;
}

int msh_holder_new(MshGrants *grants, MshHolder **ret_holder)
{
    MshHolder *holder = calloc(1, sizeof(*holder));
    if (!holder)
        return -ENOMEM;
    holder->grants = grants;
    *ret_holder = holder;
    return 0;
}

int msh_holder_take(MshHolder *holder, MshSlot slot)
{
    uint32_t number = msh_slot_segment(slot), position = msh_slot_position(slot);
    Segment *segment = segment_of(holder->grants, number);
    if (!segment || position >= segment->filled)
        return -ENOENT;
    Held *held = held_in(holder, number);
    if (!held) {
        int r = reserve((void ***)&holder->held, &holder->capacity, number);
        if (r < 0)
            return r;
        held = holder->held[number] = calloc(1, sizeof(*held));
        if (!held)
            return -ENOMEM;
    }
    if (held->counts[position] == MSH_GRANTS_PER_SLOT_MAX)
        return -EOVERFLOW;

    held->counts[position]++;
    held->total++;
    holder->total++;
    holder->grants->stats.grants++;
    if (segment->grants[position]++ == 0) {
        segment->live++;
        holder->grants->stats.slots_live++;
        holder->grants->stats.slots_dead--;
    }
    return 0;
}

/* Ends count grants on one slot; true when they were the last of the segment. */
static bool end_grants(MshGrants *grants, Segment *segment, uint32_t position, uint32_t count)
{
    assert(segment->grants[position] >= count);
    grants->stats.grants -= count;
    segment->grants[position] -= count;
    if (segment->grants[position] > 0)
        return false;
    grants->stats.slots_live--;
    grants->stats.slots_dead++;
    return --segment->live == 0;
}

int msh_holder_give_back(MshHolder *holder, MshSlot slot)
{
    uint32_t number = msh_slot_segment(slot), position = msh_slot_position(slot);
    Held *held = held_in(holder, number);
    if (!held || held->counts[position] == 0)
        return -EINVAL;
    held->counts[position]--;
    holder->total--;
    if (--held->total == 0) {
        free(held);
        holder->held[number] = NULL;
    }
    bool last = end_grants(holder->grants, segment_of(holder->grants, number), position, 1);
    return last ? MSH_E_GRANTS_LAST : 0;
}

MshHolder *msh_holder_free(MshHolder *holder, void (*emptied)(void *opaque, uint32_t segment),
                           void *opaque)
{
    if (!holder)
        return NULL;
    for (uint32_t number = 0; number < holder->capacity; number++) {
        Held *held = holder->held[number];
        if (!held)
            continue;
        Segment *segment = segment_of(holder->grants, number);
        bool last = false;
        for (uint32_t position = 0; position < segment->filled; position++) {
            if (held->counts[position])
                last = end_grants(holder->grants, segment, position, held->counts[position]);
        }
        free(held);
        if (last && emptied)
            emptied(opaque, number);
    }
    free(holder->held);
    free(holder);
    return NULL;
}

uint64_t msh_holder_grants(const MshHolder *holder)
{
    return holder->total;
}

uint32_t msh_holder_grants_in(const MshHolder *holder, uint32_t segment)
{
    Held *held = held_in(holder, segment);
    return held ? held->total : 0;
}

uint64_t msh_holder_cost_bytes(const MshHolder *holder)
{
    double slots = 0;
    for (uint32_t number = 0; number < holder->capacity; number++) {
        const Held *held = holder->held[number];
        if (!held)
            continue;
        const Segment *segment = segment_of(holder->grants, number);
        double live_slots = 0;
        for (uint32_t position = 0; position < segment->filled; position++) {
            if (held->counts[position])
                live_slots += (double)held->counts[position] / segment->grants[position];
        }
        slots += live_slots * segment->filled / segment->live;
    }
    return (uint64_t)(slots * MSH_PAGE_BYTES + 0.5);
}

/* What the holders have in one segment, against what each slot's count says. Returns the live slots. */
static uint32_t audit_segment(const MshGrants *grants, uint32_t number, MshHolder *const *holders,
                              uint32_t holder_count, MshAudit *audit)
{
    static const Segment none;
    const Segment *segment = segment_of(grants, number);
    uint32_t held_grants[MSH_SEGMENT_SLOTS] = {0}, live = 0;

    if (!segment)
        segment = &none;
    for (uint32_t i = 0; i < holder_count; i++) {
        const Held *held = held_in(holders[i], number);
        uint64_t total = 0;
        for (uint32_t position = 0; held && position < MSH_SEGMENT_SLOTS; position++) {
            held_grants[position] += held->counts[position];
            total += held->counts[position];
        }
        if (held)
            msh_audit_compare(audit, "grants of a member in a segment", held->total, total);
    }
    for (uint32_t position = 0; position < MSH_SEGMENT_SLOTS; position++) {
        uint32_t counted = segment->grants[position];
        if (counted != held_grants[position])
            msh_audit_add(audit, "slot %u of segment %u: %u grants counted, members hold %u",
                          position, number, counted, held_grants[position]);
        if (counted && position >= segment->filled)
            msh_audit_add(audit, "slot %u of segment %u: has grants, was never filled", position,
                          number);
        live += counted > 0;
        audit->grants += counted;
    }
    audit->slots += segment->filled;
    msh_audit_compare(audit, "live slots of a segment", segment->live, live);
    return live;
}

void msh_grants_audit(const MshGrants *grants, MshHolder *const *holders, uint32_t holder_count,
                      MshAudit *audit)
{
    MshGrantsStats found = {0};
    uint32_t numbers_end = grants->capacity;

    for (uint32_t i = 0; i < holder_count; i++) {
        uint64_t total = 0;
        for (uint32_t number = 0; number < holders[i]->capacity; number++)
            total += msh_holder_grants_in(holders[i], number);
        msh_audit_compare(audit, "grants of a member", holders[i]->total, total);
        if (holders[i]->capacity > numbers_end)
            numbers_end = holders[i]->capacity;
    }
    uint64_t grants_before = audit->grants;
    for (uint32_t number = 0; number < numbers_end; number++) {
        uint32_t live = audit_segment(grants, number, holders, holder_count, audit);
        found.segments += segment_of(grants, number) != NULL;
        found.slots_live += live;
        found.slots_dead += msh_grants_filled(grants, number) - live;
    }
    msh_audit_compare(audit, "segments", grants->stats.segments, found.segments);
    msh_audit_compare(audit, "live slots", grants->stats.slots_live, found.slots_live);
    msh_audit_compare(audit, "dead slots", grants->stats.slots_dead, found.slots_dead);
    msh_audit_compare(audit, "grants", grants->stats.grants, audit->grants - grants_before);
}
