/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Slots and grants as numbers: how far each segment is filled, how many grants each slot has, and
 * how many of them each member holds.
 *
 * What holds, after each function:
 *   - A slot's grants are the sum of what the members hold on it.
 *   - live = slots of a segment with grants; dead = its filled slots without.
 *   - Over all members, the costs add up to the filled slots of all segments that have a grant.
 *   - The n-th slot of a segment is filled once, by msh_grants_fill, and never again (I4).
 *
 * Pure. One thread: the one that owns the group.
 */
#ifndef MSH_GRANTS_H
#define MSH_GRANTS_H

#include <stdbool.h>

#include "audit.h"
#include "memshare/units.h"

typedef struct MshGrants MshGrants; /* of a group */
typedef struct MshHolder MshHolder; /* of a member */

enum { MSH_E_GRANTS_LAST = 1 }; /* it was the last grant of its segment */

#define MSH_GRANTS_PER_SLOT_MAX UINT16_MAX /* of one member */

int msh_grants_new(MshGrants **ret_grants);
MshGrants *msh_grants_free(MshGrants *grants); /* holders are gone */

/* -EEXIST · -ERANGE · -ENOMEM */
int msh_grants_add_segment(MshGrants *grants, uint32_t segment);
/* -ENOENT · -EBUSY it has grants */
int msh_grants_remove_segment(MshGrants *grants, uint32_t segment);
/* The segment's next slot is filled. -ENOENT · -ENOSPC */
int msh_grants_fill(MshGrants *grants, uint32_t segment, MshSlot *ret_slot);

typedef struct MshGrantsStats {
    uint64_t segments, slots_live, slots_dead, grants;
} MshGrantsStats;

void msh_grants_stats(const MshGrants *grants, MshGrantsStats *ret_stats);

/* Of one segment; 0: none of that number. */
uint32_t msh_grants_filled(const MshGrants *grants, uint32_t segment);
uint32_t msh_grants_live(const MshGrants *grants, uint32_t segment);
/* Whether anybody holds a grant on the slot. */
bool msh_grants_slot_is_live(const MshGrants *grants, MshSlot slot);

int msh_holder_new(MshGrants *grants, MshHolder **ret_holder);
/* Gives all back first. NULL is fine. emptied, unless NULL, is called for each segment that has no
 * grant left by this; it may remove the segment. */
MshHolder *msh_holder_free(MshHolder *holder, void (*emptied)(void *opaque, uint32_t segment),
                           void *opaque);

/* -ENOENT not a filled slot · -EOVERFLOW the holder's count on it is full · -ENOMEM */
int msh_holder_take(MshHolder *holder, MshSlot slot);
/* 0 · MSH_E_GRANTS_LAST · -EINVAL holds none on it */
int msh_holder_give_back(MshHolder *holder, MshSlot slot);

uint64_t msh_holder_grants(const MshHolder *holder);
uint32_t msh_holder_grants_in(const MshHolder *holder, uint32_t segment);

/* The fair part: each live slot's page split among its grants, a segment's dead slots in proportion
 * to its live ones. O(slots). */
uint64_t msh_holder_cost_bytes(const MshHolder *holder);

/* Adds up anew what is counted here. holders: all there are. O(slots * holders). */
void msh_grants_audit(const MshGrants *grants, MshHolder *const *holders, uint32_t holder_count,
                      MshAudit *audit);

#endif
