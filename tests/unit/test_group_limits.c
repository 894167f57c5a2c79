/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A store, a member and a table that hold no more.
 */
#include "unit.h"

#include "group_fixture.h"

static void test_a_full_store_is_an_answer(void **state)
{
    (void)state;
    MshSlot slot, kept = share(a, b, 0);
    share(a, b, 1);
    sight(a, 2, 1, &slot);
    sight(b, 2, 2, &slot);
    assert_int_equal(provide(b, 2, 2, &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().refused_full, 1);
    assert_int_equal(stats().store_bytes, 2 * MSH_PAGE_BYTES);
    assert_int_equal(sight(c, 0, 1, &slot), MSH_ANSWER_MATCH); /* what is there still matches */
    assert_int_equal(slot.number, kept.number);
}

static void test_a_full_member_is_an_answer(void **state)
{
    (void)state;
    MshSlot slot;
    share(a, b, 0);
    share(a, b, 1);
    sight(c, 2, 1, &slot);
    assert_int_equal(sight(b, 2, 2, &slot), MSH_ANSWER_NEW); /* b may hold no more */
    assert_int_equal(provide(b, 2, 2, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(b, 0, 3, &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().refused_full, 3);
    assert_int_equal(msh_member_grants(b), 2);
    /* a, full as well, is not hinted */
    sight(a, 3, 1, &slot);
    assert_int_equal(sight(c, 3, 2, &slot), MSH_ANSWER_PROVIDE);
    hints_count = 0;
    assert_int_equal(provide(c, 3, 2, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(hints_count, 0);
    assert_int_equal(msh_member_grants(a), 2);
}

static void test_a_full_table_is_an_answer(void **state)
{
    (void)state;
    MshSlot slot;
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(sight(a, i, i, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(a, 10, 10, &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().table_entries, 10);
    assert_int_equal(stats().refused_full, 1);
    assert_int_equal(sight(b, 3, 1, &slot), MSH_ANSWER_PROVIDE); /* those it has still work */
    assert_int_equal(provide(b, 3, 1, &slot), MSH_ANSWER_MATCH);
}

static int start_small_store(void **state)
{
    (void)state;
    start(&(MshGroupLimits){.store_bytes = 2 * MSH_PAGE_BYTES + 1});
    return 0;
}

static int start_small_members(void **state)
{
    (void)state;
    start(&(MshGroupLimits){.member_slots = 2});
    return 0;
}

static int start_small_table(void **state)
{
    (void)state;
    start(&(MshGroupLimits){.table_entries = 10});
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_full_store_is_an_answer, start_small_store, stop),
        cmocka_unit_test_setup_teardown(test_a_full_member_is_an_answer, start_small_members, stop),
        cmocka_unit_test_setup_teardown(test_a_full_table_is_an_answer, start_small_table, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
