/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether what a group counts is true. Table, grants and shelf look each after themselves (core/audit.h); here
 * is what lies between them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "fingerprint.h"
#include "state.h"

enum { AUDIT_HASHES = MSH_SEGMENT_SLOTS }; /* of slots, at most */

typedef struct SlotAudit {
    const MshGroup *group;
    MshAudit *audit;
    uint64_t seen, stride, offset; /* the slots whose turn it is to be hashed */
} SlotAudit;

static void audit_bytes(SlotAudit *of, uint64_t hash, MshSlot slot)
{
    uint32_t segment = msh_slot_segment(slot), position = msh_slot_position(slot);
    uint8_t page[MSH_PAGE_BYTES];
    int r = msh_shelf_read(of->group->shelf, slot, page);

    of->audit->hashed++;
    if (r < 0)
        msh_audit_add(of->audit, "slot %u of segment %u: cannot be read: %s", position, segment,
                      strerror(-r));
    else if (msh_fingerprint(of->group->secret, page) != hash)
        msh_audit_add(of->audit, "slot %u of segment %u: its bytes are not those that were shared",
                      position, segment);
}

/* One slot that the table names. */
static void audit_slot(void *opaque, uint64_t hash, MshSlot slot)
{
    SlotAudit *of = opaque;
    uint32_t segment = msh_slot_segment(slot), position = msh_slot_position(slot);

    if (msh_shelf_retired(of->group->shelf, segment))
        return; /* until the next sweep */
    if (position >= msh_grants_filled(of->group->grants, segment))
        msh_audit_add(of->audit, "slot %u of segment %u: is in the table, was never filled",
                      position, segment);
    else if (of->seen++ % of->stride == of->offset)
        audit_bytes(of, hash, slot);
}

/* What is counted of members, against the members. Returns how many of the holders it has filled in: all that
 * are counted, if there are so many. */
static uint32_t audit_members(const MshGroup *group, MshHolder **holders, MshAudit *audit)
{
    uint64_t members = 0, frames = 0;
    uint32_t filled = 0;

    for (uint32_t id = 0; id < group->ids_end; id++) {
        const MshMember *member = group->members[id];
        if (!member)
            continue;
        if (filled < group->stats.members)
            holders[filled++] = member->holder;
        members++;
        frames += member->frames;
    }
    msh_audit_compare(audit, "members", group->stats.members, members);
    msh_audit_compare(audit, "frames of members", group->frames, frames);
    for (uint32_t segment = 0; segment < msh_shelf_numbers_end(group->shelf); segment++) {
        uint64_t knowers = 0;
        for (uint32_t id = 0; id < group->ids_end; id++)
            knowers += group->members[id] && msh_member_was_shown(group->members[id], segment);
        msh_audit_compare(audit, "members that were shown a segment",
                          msh_shelf_knowers(group->shelf, segment), knowers);
    }
    return filled;
}

int msh_group_audit(const MshGroup *group, MshAudit *audit)
{
    SlotAudit of = {.group = group, .audit = audit};
    MshHolder **holders = calloc(group->stats.members + 1, sizeof(MshHolder *));

    if (!holders)
        return -ENOMEM;
    of.stride = msh_table_slots(group->table) / (AUDIT_HASHES + 1) + 1;
    if (getrandom(&of.offset, sizeof(of.offset), 0) < 0)
        of.offset = 0;
    of.offset %= of.stride;
    uint32_t holder_count = audit_members(group, holders, audit);
    msh_grants_audit(group->grants, holders, holder_count, audit);
    free(holders);
    msh_shelf_audit(group->shelf, audit);
    msh_table_audit(group->table, audit_slot, &of, audit);
    return 0;
}
