/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What tests of groups share: a group with members a, b and c, what it has told them, and pages to
 * show it. Each test program includes it once and has its own.
 */
#ifndef MSH_TEST_GROUP_FIXTURE_H
#define MSH_TEST_GROUP_FIXTURE_H

#include "unit.h"

#include "fingerprint.h"
#include "group.h"

enum { EVENTS_MAX = 64 };

typedef struct Event {
    MshMember *member;
    uint32_t frame, slot, segment;
} Event;

static Event hints[EVENTS_MAX], retirements[EVENTS_MAX], emptyings[EVENTS_MAX];
static uint32_t hints_count, retirements_count, emptyings_count;
static bool pass_hints_on;

static MshGroup *group;
static MshMember *a, *b, *c;
static _Alignas(4096) uint8_t page[MSH_PAGE_BYTES];

static bool on_hint(void *opaque, MshMember *member, MshFrame frame, MshSlot slot)
{
    (void)opaque;
    hints[hints_count++ % EVENTS_MAX] =
        (Event){.member = member, .frame = frame.number, .slot = slot.number};
    return pass_hints_on;
}

static void on_retired(void *opaque, MshMember *member, uint32_t segment)
{
    (void)opaque;
    retirements[retirements_count++ % EVENTS_MAX] = (Event){.member = member, .segment = segment};
}

static void on_emptying(void *opaque, MshMember *member, uint32_t segment)
{
    (void)opaque;
    emptyings[emptyings_count++ % EVENTS_MAX] = (Event){.member = member, .segment = segment};
}

static inline MshGroup *make_group(const char *name, const MshGroupLimits *limits)
{
    static const MshGroupEvents events = {
        .hint = on_hint, .retired = on_retired, .emptying = on_emptying};
    MshError error = {0};
    MshGroup *made;
    if (msh_group_new(name, limits, &events, &made, &error) < 0)
        fail_msg("%s", error.text);
    return made;
}

static inline void start(const MshGroupLimits *limits)
{
    group = make_group("unit", limits);
    assert_int_equal(msh_group_join(group, "a", &a), 0);
    assert_int_equal(msh_group_join(group, "b", &b), 0);
    assert_int_equal(msh_group_join(group, "c", &c), 0);
    hints_count = retirements_count = emptyings_count = 0;
    pass_hints_on = true;
}

static inline int start_unlimited(void **state)
{
    (void)state;
    start(&(MshGroupLimits){0});
    return 0;
}

static inline int stop(void **state)
{
    (void)state;
    a = msh_group_leave(a);
    b = msh_group_leave(b);
    c = msh_group_leave(c);
    group = msh_group_free(group);
    return 0;
}

static inline MshGroupStats stats(void)
{
    MshGroupStats now;
    msh_group_stats(group, &now);
    return now;
}

/* Different pages have different hashes here, in the weak build as well: pages that collide are
 * passed over. */
static inline uint64_t page_of(uint32_t number)
{
    static uint64_t hash_of_number[256];
    static uint32_t seed_of_number[256];
    static const MshGroup *of_group;
    static uint8_t of_secret[MSH_SECRET_BYTES];
    if (of_group != group || memcmp(of_secret, msh_group_secret(group), MSH_SECRET_BYTES) != 0) {
        of_group = group;
        memcpy(of_secret, msh_group_secret(group), MSH_SECRET_BYTES);
        uint32_t seed = 1;
        for (uint32_t i = 0; i < 200; i++) {
            bool fresh;
            do {
                memset(page, (int)(seed & 0xff), sizeof(page));
                memcpy(page, &seed, sizeof(seed));
                hash_of_number[i] = msh_fingerprint(msh_group_secret(group), page);
                seed_of_number[i] = seed++;
                fresh = true;
                for (uint32_t j = 0; j < i; j++)
                    fresh &= hash_of_number[j] != hash_of_number[i];
            } while (!fresh);
        }
    }
    assert_true(number < 200);
    memset(page, (int)(seed_of_number[number] & 0xff), sizeof(page));
    memcpy(page, &seed_of_number[number], sizeof(uint32_t));
    return hash_of_number[number];
}

static inline MshAnswer sight(MshMember *member, uint32_t number, uint32_t frame, MshSlot *ret_slot)
{
    return msh_group_sight(member, page_of(number), msh_frame(frame), ret_slot);
}

static inline MshAnswer provide(MshMember *member, uint32_t number, uint32_t frame,
                                MshSlot *ret_slot)
{
    uint64_t hash = page_of(number);
    return msh_group_provide(member, hash, msh_frame(frame), page, ret_slot);
}

/* first and second share the page: second holds a grant, and first one by a hint. */
static inline MshSlot share(MshMember *first, MshMember *second, uint32_t number)
{
    MshSlot slot = {UINT32_MAX};
    assert_int_equal(sight(first, number, 1000 + number, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(second, number, 2000 + number, &slot), MSH_ANSWER_PROVIDE);
    assert_int_equal(slot.number, UINT32_MAX);
    assert_int_equal(provide(second, number, 2000 + number, &slot), MSH_ANSWER_MATCH);
    return slot;
}

#endif
