/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A group. The table proposes, the grants count, the shelf holds the bytes; here they are kept in
 * step.
 *
 * Two kinds of table entries outlive what they name: sightings of members that left, and slots of
 * segments that were retired. Whoever finds one takes it for absent; nothing of that name comes
 * back before the table was swept.
 */
#include "group.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "codec.h"
#include "fingerprint.h"
#include "state.h"

enum { MEMBER_IDS = 1 << 16 };

/*
 * Life cycle
 */

static int fill_random(void *bytes, size_t length_bytes)
{
    /* Up to 256 bytes come whole, however early after boot and whatever signals arrive. */
    static_assert(MSH_SECRET_BYTES <= 256, "getrandom(2)");
    return getrandom(bytes, length_bytes, 0) == (ssize_t)length_bytes ? 0 : -EIO;
}

static int group_make(MshGroup *group)
{
    uint64_t table_seed;
    int r = fill_random(group->secret, sizeof(group->secret)); /* I5 */
    if (r == 0)
        r = fill_random(&table_seed, sizeof(table_seed));
    if (r == 0)
        r = msh_table_new(group->limits.table_entries, table_seed, &group->table);
    if (r == 0)
        r = msh_grants_new(&group->grants);
    if (r == 0)
        r = msh_shelf_new(group->name, group->grants, &group->shelf);
    if (r == 0 && !(group->members = calloc(MEMBER_IDS, sizeof(MshMember *))))
        r = -ENOMEM;
    return r;
}

int msh_group_new(const char *name, const MshGroupLimits *limits, const MshGroupEvents *events,
                  MshGroup **ret_group, MshError *error)
{
    int r = msh_group_name_check(name, error);
    if (r < 0)
        return r;
    MshGroup *group = calloc(1, sizeof(*group));
    if (!group)
        return msh_error_set(error, -ENOMEM, "group %s: no memory", name);
    snprintf(group->name, sizeof(group->name), "%s", name);
    group->limits = *limits;
    group->events = *events;
    r = group_make(group);
    if (r < 0) {
        msh_group_free(group);
        return msh_error_set(error, r, "group %s: %s", name, strerror(-r));
    }
    *ret_group = group;
    return 0;
}

MshGroup *msh_group_free(MshGroup *group)
{
    if (!group)
        return NULL;
    assert(group->stats.members == 0);
    msh_shelf_free(group->shelf);
    free(group->members);
    msh_grants_free(group->grants);
    msh_table_free(group->table);
    explicit_bzero(group->secret, sizeof(group->secret));
    free(group);
    return NULL;
}

const char *msh_group_name(const MshGroup *group)
{
    return group->name;
}

const uint8_t *msh_group_secret(const MshGroup *group)
{
    return group->secret;
}

static uint64_t store_bytes(const MshGroup *group)
{
    MshGrantsStats grants;
    msh_grants_stats(group->grants, &grants);
    return msh_pages_to_bytes(grants.slots_live + grants.slots_dead);
}

void msh_group_stats(const MshGroup *group, MshGroupStats *ret_stats)
{
    MshGrantsStats grants;
    msh_grants_stats(group->grants, &grants);
    *ret_stats = group->stats;
    ret_stats->segments = grants.segments;
    ret_stats->store_bytes = store_bytes(group);
    ret_stats->slots_live = grants.slots_live;
    ret_stats->slots_dead = grants.slots_dead;
    ret_stats->grants = grants.grants;
    ret_stats->table_entries = msh_table_entries(group->table);
    ret_stats->table_bytes = msh_table_bytes(group->table);
}

/*
 * Store
 */

static bool segment_is_gone(const void *shelf, uint32_t segment)
{
    return !msh_shelf_keeps(shelf, segment);
}

/* To every member that was shown the segment. */
static void tell_knowers(MshGroup *group, uint32_t segment,
                         void (*event)(void *opaque, MshMember *member, uint32_t segment))
{
    for (uint32_t id = 0; event && id < group->ids_end; id++) {
        if (msh_shelf_knowers(group->shelf, segment) == 0)
            return;
        MshMember *member = group->members[id];
        if (member && msh_member_was_shown(member, segment))
            event(group->events.opaque, member, segment);
    }
}

/* Notes, and returns, whether so much of the store is dead, as a whole and beside what sharing saves, that nothing new may
 * come in until that is gone: where contents die sooner than segments are emptied it would grow past all that it saves.
 * Who was refused asks again afterwards. */
static bool note_choke(MshGroup *group)
{
    enum { CHOKED_SHARE = 4, RELIEVED_SHARE = 6, DEAD_MIN = 2048 };
    MshGrantsStats now;
    msh_grants_stats(group->grants, &now);
    uint64_t filled = now.slots_live + now.slots_dead;
    uint64_t saved = now.grants - now.slots_live;
    bool was_choked = group->is_choked;
    uint64_t share = was_choked ? RELIEVED_SHARE : CHOKED_SHARE;
    group->is_choked = now.slots_dead > DEAD_MIN && now.slots_dead * share > filled &&
                       now.slots_dead * share > saved;
    group->relieved += was_choked && !group->is_choked;
    return group->is_choked;
}

/* The segment has no grant left: nothing may match there again, and its memory may go. */
static void retire(void *opaque, uint32_t segment)
{
    MshGroup *group = opaque;

    msh_shelf_retire(group->shelf, segment);
    note_choke(group);
    if (msh_shelf_wants_sweep(group->shelf, msh_table_entries(group->table))) {
        msh_table_drop_slots(group->table, segment_is_gone, group->shelf);
        msh_shelf_swept(group->shelf);
    }
    tell_knowers(group, segment, group->events.retired);
}

static void note_crowd(MshGroup *group)
{
    group->is_crowded = msh_shelf_is_crowded(group->shelf, group->stats.releases);
}

static void empty(MshGroup *group, uint32_t segment)
{
    msh_shelf_empty(group->shelf, segment, group->stats.releases);
    note_crowd(group);
    tell_knowers(group, segment, group->events.emptying);
}

/* Empties the segment if it is time: once, when a grant there has ended or its filling has. */
static void consider(MshGroup *group, uint32_t segment)
{
    if (!group->is_crowded && msh_shelf_wants_emptying(group->shelf, segment))
        empty(group, segment);
}

/* Dead slots of the store as a whole: all its segments are gone through for it. */
static void consider_all(MshGroup *group)
{
    note_choke(group);
    note_crowd(group);
    uint32_t deadest = group->is_crowded ? MSH_SHELF_NONE : msh_shelf_deadest(group->shelf);
    if (deadest == MSH_SHELF_NONE)
        return;
    /* What could not move for want of room would only be matched no more. */
    uint64_t live_bytes = msh_pages_to_bytes(msh_grants_live(group->grants, deadest));
    if (group->limits.store_bytes && store_bytes(group) + live_bytes > group->limits.store_bytes)
        return;
    empty(group, deadest);
}

enum { MSH_E_WRONG_BYTES = 1 };

static int stage_and_commit(MshGroup *group, uint64_t hash, const void *page, MshSlot *ret_slot)
{
    const void *staged;

    if (group->limits.store_bytes &&
        store_bytes(group) + MSH_PAGE_BYTES > group->limits.store_bytes)
        return -ENOSPC;
    int r = msh_shelf_stage(group->shelf, page, &staged);
    if (r < 0)
        return r;
    /* Our own copy is hashed: what the provider does to its page meanwhile no longer matters. */
    if (msh_fingerprint(group->secret, staged) != hash)
        return MSH_E_WRONG_BYTES;
    return msh_shelf_commit(group->shelf, ret_slot);
}

/* Puts the page into the store. 0 · MSH_E_WRONG_BYTES · -ENOSPC and others: there is no room. */
static int store_page(MshGroup *group, uint64_t hash, const void *page, MshSlot *ret_slot)
{
    uint32_t filled_before = msh_shelf_filling(group->shelf);
    int r = stage_and_commit(group, hash, page, ret_slot);
    if (filled_before != msh_shelf_filling(group->shelf))
        consider(group, filled_before); /* it was spared as long as it was filled */
    return r;
}

/* Whether it is a slot of a segment that is being emptied, and somebody shares it: that it has been
 * seen twice is known, so the first who sights it is asked for its bytes, be it for its only page.
 */
static bool is_moving(const MshGroup *group, MshFinding finding, const MshFound *found)
{
    return finding == MSH_FINDING_SLOT &&
           msh_shelf_is_emptying(group->shelf, msh_slot_segment(found->slot)) &&
           msh_grants_slot_is_live(group->grants, found->slot);
}

/* What the table knows, less what is no longer true. In a segment that is being emptied nothing is
 * matched any more. */
static MshFinding still_true(const MshGroup *group, MshFinding finding, const MshFound *found)
{
    if (finding == MSH_FINDING_SLOT &&
        (!msh_shelf_keeps(group->shelf, msh_slot_segment(found->slot)) ||
         msh_shelf_is_emptying(group->shelf, msh_slot_segment(found->slot))))
        return MSH_FINDING_NONE;
    if (finding == MSH_FINDING_SIGHTING) {
        const MshMember *first = group->members[found->first.member];
        if (!first || first->is_closed)
            return MSH_FINDING_NONE;
    }
    return finding;
}

/*
 * Members
 */

int msh_group_join(MshGroup *group, void *opaque, MshMember **ret_member)
{
    if (group->stats.members == MEMBER_IDS)
        return -EUSERS;
    MshMember *member = calloc(1, sizeof(*member));
    if (!member)
        return -ENOMEM;
    int r = msh_holder_new(group->grants, &member->holder);
    if (r < 0) {
        free(member);
        return r;
    }
    /* Round and round: sightings of the dead have mostly aged away before their id comes up again.
     */
    while (group->members[group->next_id])
        group->next_id++;
    if (group->next_id < group->ids_end)
        msh_table_drop_member(group->table, group->next_id);
    else
        group->ids_end = group->next_id + 1u;
    member->group = group;
    member->opaque = opaque;
    member->id = group->next_id++;
    group->members[member->id] = member;
    group->stats.members++;
    *ret_member = member;
    return 0;
}

MshMember *msh_group_leave(MshMember *member)
{
    if (!member)
        return NULL;
    MshGroup *group = member->group;
    /* First out of sight, so that what retires by this is told to the others only. */
    group->members[member->id] = NULL;
    group->stats.members--;
    group->frames -= member->frames;
    msh_table_expect(group->table, group->frames);
    for (uint32_t i = 0; i < member->shown_count; i++) {
        if (member->shown[i])
            msh_shelf_forgotten(group->shelf, i);
    }
    msh_holder_free(member->holder, retire, group); /* I6 */
    for (uint32_t i = 0; i < msh_shelf_numbers_end(group->shelf); i++)
        consider(group, i);
    free(member->shown);
    free(member);
    return NULL;
}

void msh_member_close(MshMember *member)
{
    member->is_closed = true;
}

void *msh_member_opaque(const MshMember *member)
{
    return member->opaque;
}

/*
 * Verbs
 */

static bool may_hold_more(const MshMember *member)
{
    uint64_t limit = member->group->limits.member_slots;
    return limit == 0 || msh_holder_grants(member->holder) < limit;
}

static bool grant(MshMember *member, MshSlot slot)
{
    return may_hold_more(member) && msh_holder_take(member->holder, slot) == 0;
}

static MshAnswer answer_full(MshMember *member)
{
    member->group->stats.refused_full++;
    return MSH_ANSWER_NEW;
}

static MshAnswer answer_match(MshMember *member, MshSlot slot, MshSlot *ret_slot)
{
    if (!grant(member, slot))
        return answer_full(member);
    member->group->stats.matches++;
    *ret_slot = slot;
    return MSH_ANSWER_MATCH;
}

void msh_group_expect(const MshMember *member, uint64_t hash)
{
    msh_table_prefetch(member->group->table, hash);
}

MshAnswer msh_group_sight(MshMember *member, uint64_t hash, MshFrame frame, MshSlot *ret_slot)
{
    MshGroup *group = member->group;
    MshSighter sighting = {.member = member->id, .frame = frame};
    MshFound found;

    group->stats.sightings++;
    if (frame.number >= member->frames) {
        group->frames += frame.number + 1ull - member->frames;
        member->frames = frame.number + 1ull;
        msh_table_expect(group->table, group->frames);
    }
    MshFinding finding = msh_table_sight(group->table, hash, sighting, &found);
    if (is_moving(group, finding, &found))
        return may_hold_more(member) ? MSH_ANSWER_PROVIDE : answer_full(member);
    switch (still_true(group, finding, &found)) {
    case MSH_FINDING_SLOT:
        return answer_match(member, found.slot, ret_slot);
    case MSH_FINDING_SIGHTING:
        return may_hold_more(member) && !note_choke(group) ? MSH_ANSWER_PROVIDE : answer_full(member);
    case MSH_FINDING_FULL:
        return answer_full(member);
    case MSH_FINDING_NONE:
        if (finding != MSH_FINDING_NONE)
            msh_table_set_sighting(group->table, hash, sighting);
        return MSH_ANSWER_NEW;
    default:
        return MSH_ANSWER_NEW;
    }
}

static void hint(MshGroup *group, MshSighter first, MshSlot slot)
{
    MshMember *member = group->members[first.member];
    if (!group->events.hint || !grant(member, slot))
        return;
    if (group->events.hint(group->events.opaque, member, first.frame, slot))
        return;
    msh_holder_give_back(member->holder, slot); /* never the last: the provider holds one */
    member->untold++;
}

MshAnswer msh_group_provide(MshMember *member, uint64_t hash, MshFrame frame, const void *page,
                            MshSlot *ret_slot)
{
    MshGroup *group = member->group;
    MshFound found;
    MshSlot slot;

    group->stats.provides++;
    MshFinding finding = msh_table_find(group->table, hash, &found);
    bool moves = is_moving(group, finding, &found);
    finding = still_true(group, finding, &found);
    if (finding == MSH_FINDING_SLOT) /* another was asked for it as well, and was faster */
        return answer_match(member, found.slot, ret_slot);
    if (!moves && (finding == MSH_FINDING_NONE || (found.first.member == member->id &&
                                                   found.first.frame.number == frame.number))) {
        group->stats.rejected_provides++; /* nobody asks for a page that was seen once */
        return MSH_ANSWER_NEW;
    }
    if (!may_hold_more(member))
        return answer_full(member);
    int r = store_page(group, hash, page, &slot);
    if (r == MSH_E_WRONG_BYTES) {
        group->stats.rejected_provides++;
        return MSH_ANSWER_NEW;
    }
    if (r < 0)
        return answer_full(member);
    msh_table_set_slot(group->table, hash, slot);
    MshAnswer answer = answer_match(member, slot, ret_slot);
    if (answer == MSH_ANSWER_MATCH && !moves)
        hint(group, found.first, slot);
    return answer;
}

int msh_group_release(MshMember *member, MshSlot slot)
{
    enum { RELEASES = 16 };
    int r = msh_holder_give_back(member->holder, slot);
    if (r < 0) {
        member->group->stats.bad_releases++;
        return r;
    }
    member->group->stats.releases++;
    msh_shelf_note_release(member->group->shelf, msh_slot_segment(slot), member->group->stats.releases);
    if (r == MSH_E_GRANTS_LAST)
        retire(member->group, msh_slot_segment(slot));
    else
        consider(member->group, msh_slot_segment(slot));
    /* A segment that is gone makes room for others to be emptied, and may be the last thing that happens for long. */
    if (r == MSH_E_GRANTS_LAST || member->group->stats.releases % RELEASES == 0)
        consider_all(member->group);
    return 0;
}

void msh_group_withdraw(MshMember *member, MshSlot slot)
{
    msh_group_release(member, slot);
    member->untold++;
}

uint64_t msh_member_cost_bytes(const MshMember *member)
{
    return msh_holder_cost_bytes(member->holder);
}

uint32_t msh_member_missed(const MshMember *member)
{
    const MshGroup *group = member->group;
    return (uint32_t)msh_table_aged(group->table) + group->relieved + member->untold;
}

uint64_t msh_member_grants(const MshMember *member)
{
    return msh_holder_grants(member->holder);
}

bool msh_member_was_shown(const MshMember *member, uint32_t segment)
{
    return segment < member->shown_count && member->shown[segment];
}

static int shown_reserve(MshMember *member, uint32_t segment)
{
    if (segment < member->shown_count)
        return 0;
    uint32_t wanted = segment + 1;
    bool *grown = reallocarray(member->shown, wanted, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    memset(grown + member->shown_count, 0, (wanted - member->shown_count) * sizeof(*grown));
    member->shown = grown;
    member->shown_count = wanted;
    return 0;
}

int msh_member_show(MshMember *member, uint32_t segment)
{
    MshShelf *shelf = member->group->shelf;
    if (!msh_shelf_keeps(shelf, segment))
        return -ENOENT;
    if (msh_holder_grants_in(member->holder, segment) == 0)
        return -EACCES; /* not before the first match there */
    int r = shown_reserve(member, segment);
    if (r < 0)
        return r;
    int fd = msh_shelf_open(shelf, segment);
    if (fd >= 0 && !member->shown[segment]) {
        member->shown[segment] = true;
        msh_shelf_shown(shelf, segment);
    }
    return fd;
}

int msh_member_forgot(MshMember *member, uint32_t segment)
{
    MshShelf *shelf = member->group->shelf;
    if (!msh_member_was_shown(member, segment) || !msh_shelf_retired(shelf, segment))
        return -EINVAL;
    member->shown[segment] = false;
    msh_shelf_forgotten(shelf, segment);
    return 0;
}
