/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Linear probing without tombstones: a removal shifts the rest of its cluster back, so a look-up
 * ends at the first empty entry for ever.
 */
#include "table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct Entry {
    uint64_t hash;   /* 0: empty */
    uint32_t number; /* frame or slot */
    uint16_t member;
    uint8_t is_slot;
    uint8_t epoch; /* of the last look at it; sightings only */
} Entry;

static_assert(sizeof(Entry) == 16, "the table's promise");

enum { FIRST_CAPACITY_BITS = 10 };

struct MshTable {
    Entry *entries;
    uint32_t capacity_bits;
    uint64_t used, slots;
    uint64_t limit;
    uint64_t multiplier;
    uint64_t looks;       /* at pages without a slot, in this epoch */
    uint64_t swept_looks; /* the same, since the last sweep */
    uint64_t expected;    /* sightings that can be true at one time */
    uint64_t aged;        /* sightings dropped by age, ever */
    uint8_t epoch, swept_epoch;
};

static uint64_t capacity(const MshTable *table)
{
    return 1ull << table->capacity_bits;
}

/* Where a hash's cluster may start. A secret odd multiplier, the high bits: nobody who does not
 * know it can line up hashes. */
static uint64_t home(const MshTable *table, uint64_t hash)
{
    return (hash * table->multiplier) >> (64 - table->capacity_bits);
}

static uint64_t next(const MshTable *table, uint64_t index)
{
    return (index + 1) & (capacity(table) - 1);
}

/* The entry of that hash, or the empty one where it would go. Ends, for the load stays below 1. */
static uint64_t probe(const MshTable *table, uint64_t hash)
{
    uint64_t index = home(table, hash);
    while (table->entries[index].hash != 0 && table->entries[index].hash != hash)
        index = next(table, index);
    return index;
}

/* Zeroed. All of it will be used, in no order: a large one is asked for in huge pages, for page by page the
 * faults of a table that grows take as long as all looks at it. */
static Entry *new_entries(uint64_t count)
{
    size_t length_bytes = count * sizeof(Entry);
    if (length_bytes < MSH_HUGE_PAGE_BYTES)
        return calloc(count, sizeof(Entry));
    Entry *entries = aligned_alloc(MSH_HUGE_PAGE_BYTES, length_bytes);
    if (entries) {
        madvise(entries, length_bytes, MADV_HUGEPAGE);
        memset(entries, 0, length_bytes);
    }
    return entries;
}

int msh_table_new(uint64_t limit_entries, uint64_t seed, MshTable **ret_table)
{
    MshTable *table = calloc(1, sizeof(*table));
    if (!table)
        return -ENOMEM;
    table->capacity_bits = FIRST_CAPACITY_BITS;
    table->limit = limit_entries ? limit_entries : UINT64_MAX;
    table->multiplier = seed | 1;
    table->entries = new_entries(capacity(table));
    if (!table->entries) {
        free(table);
        return -ENOMEM;
    }
    *ret_table = table;
    return 0;
}

MshTable *msh_table_free(MshTable *table)
{
    if (table) {
        free(table->entries);
        free(table);
    }
    return NULL;
}

/* Empties index and moves back what its going makes reachable from further front. */
static void remove_at(MshTable *table, uint64_t index)
{
    uint64_t mask = capacity(table) - 1;
    uint64_t hole = index;

    table->slots -= table->entries[index].is_slot;
    for (uint64_t i = next(table, hole); table->entries[i].hash != 0; i = next(table, i)) {
        uint64_t wanted = home(table, table->entries[i].hash);
        if (((i - wanted) & mask) >= ((i - hole) & mask)) { /* the hole is on its way from home */
            table->entries[hole] = table->entries[i];
            hole = i;
        }
    }
    table->entries[hole] = (Entry){0};
    table->used--;
}

/* Removes each entry for which drop says so; drop sees each entry exactly once. That is why the
 * walk starts behind an empty entry: no removal then brings one back that was seen. */
static void sweep(MshTable *table, bool (*drop)(Entry *entry, const void *what), const void *what)
{
    uint64_t start = 0;
    while (table->entries[start].hash != 0)
        start++;
    for (uint64_t done = 1; done < capacity(table);) {
        uint64_t index = (start + done) & (capacity(table) - 1);
        Entry *entry = &table->entries[index];
        if (entry->hash != 0 && drop(entry, what))
            remove_at(table, index); /* another may stand here now */
        else
            done++;
    }
}

/* Epochs are counted modulo 256: what is dropped late for that was no use, and does no harm. */
static bool drop_aged(Entry *entry, const void *of)
{
    const MshTable *table = of;
    return !entry->is_slot && (uint8_t)(table->epoch - entry->epoch) > 1;
}

typedef struct Gone {
    bool (*of_segment)(const void *opaque, uint32_t segment);
    const void *opaque;
} Gone;

static bool drop_if_gone(Entry *entry, const void *what)
{
    const Gone *gone = what;
    return entry->is_slot &&
           gone->of_segment(gone->opaque, msh_slot_segment((MshSlot){entry->number}));
}

static bool drop_of_member(Entry *entry, const void *member)
{
    return !entry->is_slot && entry->member == *(const uint16_t *)member;
}

void msh_table_drop_slots(MshTable *table, bool (*gone)(const void *opaque, uint32_t segment),
                          const void *opaque)
{
    sweep(table, drop_if_gone, &(Gone){gone, opaque});
}

void msh_table_drop_member(MshTable *table, uint16_t member)
{
    sweep(table, drop_of_member, &member);
}

static bool grow(MshTable *table)
{
    Entry *old = table->entries;
    uint64_t old_capacity = capacity(table);

    Entry *entries = new_entries(old_capacity * 2);
    if (!entries)
        return false;
    table->entries = entries;
    table->capacity_bits++;
    for (uint64_t i = 0; i < old_capacity; i++) {
        if (old[i].hash != 0)
            entries[probe(table, old[i].hash)] = old[i];
    }
    free(old);
    return true;
}

/* An epoch is one and a half times as many looks as there are sightings: all members' pages came by
 * in it, if they are still what they were. A pass over pages all new has only as many looks as
 * sightings, and so stays within one. */
static void count_look(MshTable *table)
{
    uint64_t sightings = table->used - table->slots;
    table->swept_looks++;
    if (++table->looks > sightings + sightings / 2) {
        table->epoch++;
        table->looks = 0;
    }
}

/* Room for one more entry, by ageing, then by growing. Growing at 5/8, not 1/2, as what came since
 * the last sweep stays: it alone could fill half of the larger table again, and so on for ever. */
static bool make_room(MshTable *table)
{
    uint64_t soft_limit = capacity(table) / 4 * 3;
    if (table->used < soft_limit && table->used < table->limit)
        return true;
    /* As long as all sightings may be true, who made them counts on them. */
    bool is_crowded = table->used - table->slots > 2 * table->expected || table->used >= table->limit;
    if (is_crowded && table->epoch != table->swept_epoch && table->swept_looks >= table->used) {
        uint64_t before = table->used;
        sweep(table, drop_aged, table);
        table->aged += before - table->used;
        table->swept_epoch = table->epoch;
        table->swept_looks = 0;
    }
    if (table->used >= table->limit)
        return false;
    if (table->used <= capacity(table) / 8 * 5 || grow(table))
        return true;
    return table->used < soft_limit; /* no memory, but the sweep made a little room */
}

void msh_table_prefetch(const MshTable *table, uint64_t hash)
{
    __builtin_prefetch(&table->entries[home(table, hash)]);
}

MshFinding msh_table_sight(MshTable *table, uint64_t hash, MshSighter sighting, MshFound *ret_found)
{
    if (hash == 0)
        return MSH_FINDING_FULL;
    Entry *entry = &table->entries[probe(table, hash)];
    if (entry->hash == hash && entry->is_slot) {
        ret_found->slot = (MshSlot){entry->number};
        return MSH_FINDING_SLOT;
    }
    count_look(table);
    if (entry->hash == hash) {
        entry->epoch = table->epoch;
        if (entry->member == sighting.member && entry->number == sighting.frame.number)
            return MSH_FINDING_REPEAT;
        ret_found->first = (MshSighter){entry->member, msh_frame(entry->number)};
        return MSH_FINDING_SIGHTING;
    }
    if (!make_room(table))
        return MSH_FINDING_FULL;
    table->entries[probe(table, hash)] = (Entry){
        .hash = hash,
        .number = sighting.frame.number,
        .member = sighting.member,
        .epoch = table->epoch,
    };
    table->used++;
    return MSH_FINDING_NONE;
}

MshFinding msh_table_find(const MshTable *table, uint64_t hash, MshFound *ret_found)
{
    const Entry *entry = &table->entries[probe(table, hash)];
    if (entry->hash == 0)
        return MSH_FINDING_NONE;
    if (entry->is_slot) {
        ret_found->slot = (MshSlot){entry->number};
        return MSH_FINDING_SLOT;
    }
    ret_found->first = (MshSighter){entry->member, msh_frame(entry->number)};
    return MSH_FINDING_SIGHTING;
}

static int rewrite(MshTable *table, uint64_t hash, Entry value)
{
    Entry *entry = &table->entries[probe(table, hash)];
    if (entry->hash == 0)
        return -ENOENT;
    table->slots += value.is_slot;
    table->slots -= entry->is_slot;
    value.hash = hash;
    value.epoch = table->epoch;
    *entry = value;
    return 0;
}

int msh_table_set_sighting(MshTable *table, uint64_t hash, MshSighter sighting)
{
    return rewrite(table, hash,
                   (Entry){.number = sighting.frame.number, .member = sighting.member});
}

int msh_table_set_slot(MshTable *table, uint64_t hash, MshSlot slot)
{
    return rewrite(table, hash, (Entry){.number = slot.number, .is_slot = 1});
}

uint64_t msh_table_entries(const MshTable *table)
{
    return table->used;
}

uint64_t msh_table_bytes(const MshTable *table)
{
    return capacity(table) * sizeof(Entry);
}

uint64_t msh_table_aged(const MshTable *table)
{
    return table->aged;
}

void msh_table_expect(MshTable *table, uint64_t sightings)
{
    table->expected = sightings;
}

uint64_t msh_table_slots(const MshTable *table)
{
    return table->slots;
}

void msh_table_audit(const MshTable *table,
                     void (*visit)(void *opaque, uint64_t hash, MshSlot slot), void *opaque,
                     MshAudit *audit)
{
    uint64_t used = 0, slots = 0, lost = 0;

    for (uint64_t index = 0; index < capacity(table); index++) {
        const Entry *entry = &table->entries[index];
        if (entry->hash == 0)
            continue;
        used++;
        slots += entry->is_slot;
        lost += probe(table, entry->hash) != index; /* cut off, or there twice */
        if (entry->is_slot)
            visit(opaque, entry->hash, (MshSlot){entry->number});
    }
    audit->entries += used;
    msh_audit_compare(audit, "entries of the table", table->used, used);
    msh_audit_compare(audit, "slots in the table", table->slots, slots);
    msh_audit_compare(audit, "entries of the table that no look-up finds", 0, lost);
}
