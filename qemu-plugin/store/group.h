/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A group: the shared-page table, the segments and the grants of guests that may share with each
 * other. It answers sightings. The broker holds one for each group it serves; an engine without a
 * broker holds one of its own. Nothing of one group is reachable from another (I5).
 *
 * What holds:
 *   - A page joins the store on its second sighting; the first leaves only its hash and who saw it.
 *   - Provided bytes are copied aside first, and the copy is hashed and stored: a provider that
 *     rewrites its page meanwhile gains nothing.
 *   - A grant is counted before the answer that tells of it is returned. A wrong count wastes
 *     memory and cannot corrupt: slots are immutable (I3).
 *   - A segment that is not filled any more and has less than half of its slots live is emptied, and so is
 *     the one with most dead slots when more than a tenth of all is dead and there is room to move it: no
 *     grant is given in it any more, and what is live there is asked for once more, of whoever
 *     sights it first, to get a slot elsewhere. Grants held there stay good.
 *   - When a segment has no grant left it is retired: no new match names it, and the group's own
 *     mapping and descriptor go. Its slots are never used again (I4). Its number is used again only
 *     after every member that was shown it has forgotten it.
 *
 * One thread owns a group and its members.
 */
#ifndef MSH_GROUP_H
#define MSH_GROUP_H

#include "audit.h"
#include "memshare/error.h"
#include "memshare/protocol.h"
#include "memshare/units.h"

typedef struct MshGroup MshGroup;
typedef struct MshMember MshMember;

typedef struct MshGroupLimits {
    uint64_t store_bytes;   /* of all segments that are not retired; 0: no limit */
    uint64_t table_entries; /* 0: no limit */
    uint64_t member_slots;  /* grants a member may hold; 0: no limit */
} MshGroupLimits;

/* What the group tells its owner on its own account, from within the verbs below. No verb may be
 * called back from here, except msh_member_show, msh_member_forgot and msh_group_release of the
 * slot hinted. */
typedef struct MshGroupEvents {
    /* A page that member sighted earlier has a slot now, and the grant is counted. Returns false
     * when it cannot be passed on; the grant is then taken back. */
    bool (*hint)(void *opaque, MshMember *member, MshFrame frame, MshSlot slot);
    /* The segment is retired; every member that was shown it should forget it. */
    void (*retired)(void *opaque, MshMember *member, uint32_t segment);
    /* The segment is being emptied; every member that was shown it should sight what it has there
     * again, and release it for what it is granted. Once, and before retired. */
    void (*emptying)(void *opaque, MshMember *member, uint32_t segment);
    void *opaque;
} MshGroupEvents;

typedef enum MshAnswer {
    MSH_ANSWER_NEW = 0,
    MSH_ANSWER_PROVIDE = 1,
    MSH_ANSWER_MATCH = 2,
} MshAnswer;

typedef struct MshGroupStats {
    uint64_t members;
    uint64_t segments, store_bytes;  /* not retired; up to the frontiers */
    uint64_t slots_live, slots_dead; /* with and without grants, in segments not retired */
    uint64_t grants;
    uint64_t table_entries, table_bytes;
    uint64_t sightings, provides, rejected_provides, matches, releases, bad_releases, refused_full;
} MshGroupStats;

int msh_group_new(const char *name, const MshGroupLimits *limits, const MshGroupEvents *events,
                  MshGroup **ret_group, MshError *error);
MshGroup *msh_group_free(MshGroup *group); /* members must have left */

const char *msh_group_name(const MshGroup *group);
const uint8_t *msh_group_secret(const MshGroup *group); /* MSH_SECRET_BYTES */
void msh_group_stats(const MshGroup *group, MshGroupStats *ret_stats);
/* Adds up anew all that is counted, and compares; looks whether what the table names is there, and whether slots
 * still have the bytes of their hash: all of them up to 64 MiB, of more a sample, another one each
 * time. Changes nothing. O(slots * members + entries), as msh_group_join and all members' costs.
 * -ENOMEM. */
int msh_group_audit(const MshGroup *group, MshAudit *audit);

/* opaque is the owner's, for msh_member_opaque. */
int msh_group_join(MshGroup *group, void *opaque, MshMember **ret_member);
/* Returns all its grants and forgets all it was shown (I6). NULL is fine. */
MshMember *msh_group_leave(MshMember *member);
/* Its owner cannot reach it any more, but it lives and may map its slots: its grants stay, its sightings
 * count for nothing, and it gets no hints. */
void msh_member_close(MshMember *member);
void *msh_member_opaque(const MshMember *member);

/* This hash will be sighted or provided soon: worth a call some time ahead, as the table is far larger than a
 * processor's caches. */
void msh_group_expect(const MshMember *member, uint64_t hash);

/* One sighting. PROVIDE: send the page's bytes with msh_group_provide. MATCH: *ret_slot, granted.
 * A sighting repeated by the same member at the same frame is not a second one. */
MshAnswer msh_group_sight(MshMember *member, uint64_t hash, MshFrame frame, MshSlot *ret_slot);

/* The bytes of a page asked for. MATCH: *ret_slot, granted to this member, and a hint went to the
 * first sighter. NEW: they do not have that hash, nobody else has sighted it, or there is no room.
 */
MshAnswer msh_group_provide(MshMember *member, uint64_t hash, MshFrame frame, const void *page,
                            MshSlot *ret_slot);

/* One grant ends. -EINVAL: it held none on that slot (counted; nothing else happens). */
int msh_group_release(MshMember *member, MshSlot slot);
/* The same, of a MATCH that the member cannot be told: it should sight the page again. */
void msh_group_withdraw(MshMember *member, MshSlot slot);

/* The member's fair part of the store: each slot's page split among its grants, dead slots split in
 * the same proportion. Bytes. O(slots). */
uint64_t msh_member_cost_bytes(const MshMember *member);
uint64_t msh_member_grants(const MshMember *member);
/* Changes when a sighting of this member may be forgotten, or a match or hint was not passed on to it: it
 * should sight its pages again. */
uint32_t msh_member_missed(const MshMember *member);

/* Segments are shown to a member once, before the first answer that names them is passed on. */
bool msh_member_was_shown(const MshMember *member, uint32_t segment);
/* A new read-only descriptor of the segment, counted as shown; or -errno (-ENOENT: no such segment;
 * -EACCES: the member has no grant in it). */
int msh_member_show(MshMember *member, uint32_t segment);
/* The member has closed a retired segment. -EINVAL: it was not shown it, or it is not retired. */
int msh_member_forgot(MshMember *member, uint32_t segment);

#endif
