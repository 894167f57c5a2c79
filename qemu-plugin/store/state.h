/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a group and its members hold. For group.c, which alone changes it, and audit.c, which looks.
 */
#ifndef MSH_STORE_STATE_H
#define MSH_STORE_STATE_H

#include "grants.h"
#include "group.h"
#include "shelf.h"
#include "table.h"

struct MshGroup {
    char name[MSH_NAME_BYTES];
    uint8_t secret[MSH_SECRET_BYTES];
    MshGroupLimits limits;
    MshGroupEvents events;
    MshTable *table;
    MshGrants *grants;

    MshShelf *shelf;

    MshMember **members; /* by id */
    uint32_t ids_end;    /* no member has or had an id from here on */
    uint16_t next_id;

    bool is_choked;    /* too much of the store is dead: nothing new comes in */
    uint32_t relieved; /* so often it was no more */
    bool is_crowded;   /* so much has to move that nothing more is emptied */

    uint64_t frames; /* of all members */
    MshGroupStats stats; /* the counters; msh_group_stats adds the gauges */
};

struct MshMember {
    MshGroup *group;
    uint16_t id;
    void *opaque;
    MshHolder *holder;
    uint32_t untold; /* matches and hints that it could not be told */
    uint64_t frames; /* it has sighted no frame from here on */
    bool is_closed;
    bool *shown; /* by segment number */
    uint32_t shown_count;
};

#endif
