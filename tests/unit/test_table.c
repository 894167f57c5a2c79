/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "table.h"

static MshTable *table;
static MshFound found;

static MshFinding sight(uint64_t hash, uint16_t member, uint32_t frame)
{
    return msh_table_sight(table, hash, (MshSighter){member, msh_frame(frame)}, &found);
}

static void new_table(uint64_t limit_entries)
{
    assert_int_equal(msh_table_new(limit_entries, 0x9e3779b97f4a7c15, &table), 0);
}

static int free_table(void **state)
{
    (void)state;
    table = msh_table_free(table);
    return 0;
}

static void test_from_first_sighting_to_slot(void **state)
{
    (void)state;
    new_table(0);
    assert_int_equal(sight(5, 1, 10), MSH_FINDING_NONE);
    assert_int_equal(sight(5, 1, 10), MSH_FINDING_REPEAT);
    assert_int_equal(sight(5, 1, 11), MSH_FINDING_SIGHTING);
    assert_int_equal(sight(5, 2, 10), MSH_FINDING_SIGHTING);
    assert_int_equal(found.first.member, 1);
    assert_int_equal(found.first.frame.number, 10);
    assert_int_equal(msh_table_set_slot(table, 5, (MshSlot){99}), 0);
    assert_int_equal(sight(5, 1, 10), MSH_FINDING_SLOT);
    assert_int_equal(found.slot.number, 99);
    assert_int_equal(msh_table_find(table, 6, &found), MSH_FINDING_NONE);
    assert_int_equal(msh_table_set_slot(table, 6, (MshSlot){1}), -ENOENT);
    assert_int_equal(msh_table_set_sighting(table, 6, (MshSighter){0}), -ENOENT);
    assert_int_equal(msh_table_entries(table), 1);
}

static void test_hash_zero_is_never_in_it(void **state)
{
    (void)state;
    new_table(0);
    assert_int_equal(sight(0, 1, 1), MSH_FINDING_FULL);
    assert_int_equal(msh_table_find(table, 0, &found), MSH_FINDING_NONE);
    assert_int_equal(msh_table_set_slot(table, 0, (MshSlot){1}), -ENOENT);
    assert_int_equal(msh_table_entries(table), 0);
}

static void test_a_first_pass_forgets_nothing_however_large(void **state)
{
    (void)state;
    new_table(0);
    for (uint64_t hash = 1; hash <= 100000; hash++)
        assert_int_equal(sight(hash, 1, (uint32_t)hash), MSH_FINDING_NONE);
    assert_int_equal(msh_table_entries(table), 100000);
    for (uint64_t hash = 1; hash <= 100000; hash++) {
        assert_int_equal(sight(hash, 2, 0), MSH_FINDING_SIGHTING);
        assert_int_equal(found.first.frame.number, hash);
    }
    assert_true(msh_table_bytes(table) <= 100000 * 16 * 3);
}

static void test_what_is_not_seen_again_ages_away(void **state)
{
    (void)state;
    new_table(0);
    uint64_t passing = 1000000;
    for (uint64_t hash = 1; hash <= 500; hash++)
        sight(hash, 1, 1);
    sight(501, 1, 1);
    msh_table_set_slot(table, 501, (MshSlot){1});
    for (uint32_t pass = 0; pass < 200; pass++) {
        for (uint64_t hash = 1; hash <= 500; hash++)
            assert_int_equal(sight(hash, 1, 1), MSH_FINDING_REPEAT); /* the regulars stay */
        for (uint32_t i = 0; i < 100; i++)
            sight(passing++, 1, 1);
    }
    assert_true(msh_table_bytes(table) <= 4096 * 16); /* 20,000 others came by once */
    assert_int_equal(msh_table_find(table, 501, &found), MSH_FINDING_SLOT);
}

static void test_at_the_limit_it_answers_full_and_still_ages(void **state)
{
    (void)state;
    new_table(600);
    for (uint64_t hash = 1; hash <= 600; hash++)
        assert_int_equal(sight(hash, 1, 1), MSH_FINDING_NONE);
    assert_int_equal(sight(601, 1, 1), MSH_FINDING_FULL);
    assert_int_equal(sight(600, 2, 1), MSH_FINDING_SIGHTING);
    assert_int_equal(msh_table_bytes(table), 1024 * 16);
    uint32_t refused = 0;
    for (uint64_t hash = 1001; refused < 5000 && sight(hash, 1, 1) == MSH_FINDING_FULL; hash++)
        refused++;
    assert_true(refused > 0 && refused < 5000); /* the first 600 went away in the end */
    assert_true(msh_table_entries(table) <= 600);
}

static void test_hashes_lined_up_by_a_member_stay_cheap(void **state)
{
    (void)state;
    /* Multiples of a high power of two: all in one cluster when the low bits were the position, and
     * 300,000 of them then take 10^11 steps and the test's time-out. */
    new_table(0);
    for (uint64_t i = 1; i <= 300000; i++)
        assert_int_equal(sight(i << 40, 1, (uint32_t)i), MSH_FINDING_NONE);
    for (uint64_t i = 1; i <= 300000; i++)
        assert_int_equal(msh_table_find(table, i << 40, &found), MSH_FINDING_SIGHTING);
}

static bool is_odd(const void *unused, uint32_t segment)
{
    (void)unused;
    return segment % 2 == 1;
}

static void test_dropping_segments_and_members_keeps_all_others(void **state)
{
    (void)state;
    new_table(0);
    for (uint32_t i = 1; i <= 700; i++) { /* 68% load: long clusters, some across the end */
        sight(i, (uint16_t)(i % 3), i);
        if (i % 2)
            msh_table_set_slot(table, i, msh_slot(i % 5, i));
    }
    msh_table_drop_slots(table, is_odd, NULL);
    msh_table_drop_member(table, 2);
    uint64_t left = 0;
    for (uint32_t i = 1; i <= 700; i++) {
        MshFinding expected = i % 2 ? (i % 5 % 2 ? MSH_FINDING_NONE : MSH_FINDING_SLOT)
                                    : (i % 3 == 2 ? MSH_FINDING_NONE : MSH_FINDING_SIGHTING);
        assert_int_equal(msh_table_find(table, i, &found), expected);
        left += expected != MSH_FINDING_NONE;
    }
    assert_int_equal(msh_table_entries(table), left);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, free_table)
    const struct CMUnitTest tests[] = {
        TEST(test_from_first_sighting_to_slot),
        TEST(test_hash_zero_is_never_in_it),
        TEST(test_a_first_pass_forgets_nothing_however_large),
        TEST(test_what_is_not_seen_again_ages_away),
        TEST(test_at_the_limit_it_answers_full_and_still_ages),
        TEST(test_hashes_lined_up_by_a_member_stay_cheap),
        TEST(test_dropping_segments_and_members_keeps_all_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
