/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shared-page table of a group: from a page's hash to who saw it first, or to its slot.
 *
 * What holds:
 *   - 16 bytes an entry, one entry a hash, open addressing; hash 0 is no hash and never in it.
 *   - A slot stays until it is dropped with its segment. Sightings age: when the table wants to
 * grow, a sweep first drops those of pages that did not come by again while every page had its
 * chance to, in one whole epoch (second chance). Sweeps are rarer than looks at the table by the
 * number of its entries, so that their cost spreads, whatever members send.
 *   - Positions depend on a seed that members do not know: they send hashes of their own choice,
 * and could otherwise make every look-up walk the whole table.
 *
 * Pure. One thread: the one that owns the group.
 */
#ifndef MSH_TABLE_H
#define MSH_TABLE_H

#include "audit.h"
#include "memshare/units.h"

typedef struct MshTable MshTable;

typedef struct MshSighter { /* whose sighting, and where */
    uint16_t member;
    MshFrame frame;
} MshSighter;

typedef enum MshFinding {
    MSH_FINDING_NONE = 0,   /* sight: there was none; now this one is the first */
    MSH_FINDING_REPEAT = 1, /* sight: the first sighting was this very one */
    MSH_FINDING_SIGHTING = 2,
    MSH_FINDING_SLOT = 3,
    MSH_FINDING_FULL = 4, /* sight: there was none, and it could not be added */
} MshFinding;

typedef struct MshFound {
    MshSighter first; /* SIGHTING */
    MshSlot slot;     /* SLOT */
} MshFound;

/* limit_entries 0: as many as memory holds. */
int msh_table_new(uint64_t limit_entries, uint64_t seed, MshTable **ret_table);
MshTable *msh_table_free(MshTable *table);

/* Has the processor fetch the hash's entry. */
void msh_table_prefetch(const MshTable *table, uint64_t hash);

/* Never NONE by default: hash 0 is FULL. Counts as a new look at the page: keeps its entry. */
MshFinding msh_table_sight(MshTable *table, uint64_t hash, MshSighter sighting,
                           MshFound *ret_found);
/* NONE, SIGHTING or SLOT; changes nothing. */
MshFinding msh_table_find(const MshTable *table, uint64_t hash, MshFound *ret_found);

/* Rewrites the entry of a hash that is in the table; -ENOENT when it is not. */
int msh_table_set_sighting(MshTable *table, uint64_t hash, MshSighter sighting);
int msh_table_set_slot(MshTable *table, uint64_t hash, MshSlot slot);

/* Each walks the whole table. drop_slots drops those of the segments that gone says so of. */
void msh_table_drop_slots(MshTable *table, bool (*gone)(const void *opaque, uint32_t segment),
                          const void *opaque);
void msh_table_drop_member(MshTable *table, uint16_t member);

uint64_t msh_table_entries(const MshTable *table);
uint64_t msh_table_bytes(const MshTable *table);
/* How many sightings can be true at one time: one for each page of each member. While there are no more
 * than twice as many none is dropped by age, and the table grows. */
void msh_table_expect(MshTable *table, uint64_t sightings);
/* Sightings dropped by age, ever: who made them may make them again. */
uint64_t msh_table_aged(const MshTable *table);

/* Counts anew, and looks whether each entry can be found. visit is called for each slot in it. Walks the whole
 * table. */
void msh_table_audit(const MshTable *table,
                     void (*visit)(void *opaque, uint64_t hash, MshSlot slot), void *opaque,
                     MshAudit *audit);
/* How many of the entries are slots. */
uint64_t msh_table_slots(const MshTable *table);

#endif
