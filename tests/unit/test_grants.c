/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "grants.h"

static MshGrants *grants;
static MshHolder *a, *b;
static uint32_t emptied[8], emptied_count;

static int start(void **state)
{
    (void)state;
    emptied_count = 0;
    return msh_grants_new(&grants) | msh_holder_new(grants, &a) | msh_holder_new(grants, &b);
}

static int stop(void **state)
{
    (void)state;
    a = msh_holder_free(a, NULL, NULL);
    b = msh_holder_free(b, NULL, NULL);
    grants = msh_grants_free(grants);
    return 0;
}

static void on_emptied(void *opaque, uint32_t segment)
{
    assert_ptr_equal(opaque, grants);
    assert_int_equal(msh_grants_remove_segment(grants, segment), 0);
    emptied[emptied_count++] = segment;
}

static MshGrantsStats stats(void)
{
    MshGrantsStats now;
    msh_grants_stats(grants, &now);
    return now;
}

static MshSlot filled(uint32_t segment)
{
    MshSlot slot;
    assert_int_equal(msh_grants_fill(grants, segment, &slot), 0);
    return slot;
}

static void test_I4_slots_fill_in_order_and_once(void **state)
{
    (void)state;
    MshSlot slot = {5};
    assert_int_equal(msh_grants_fill(grants, 3, &slot), -ENOENT);
    assert_int_equal(msh_grants_add_segment(grants, 3), 0);
    assert_int_equal(msh_grants_add_segment(grants, 3), -EEXIST);
    assert_int_equal(msh_grants_add_segment(grants, MSH_SEGMENTS_MAX), -ERANGE);
    assert_int_equal(slot.number, 5);
    for (uint32_t i = 0; i < MSH_SEGMENT_SLOTS; i++)
        assert_int_equal(filled(3).number, msh_slot(3, i).number);
    assert_int_equal(msh_grants_fill(grants, 3, &slot), -ENOSPC);
    assert_int_equal(stats().slots_dead, MSH_SEGMENT_SLOTS);
}

static void test_only_filled_slots_are_granted(void **state)
{
    (void)state;
    assert_int_equal(msh_holder_take(a, (MshSlot){UINT32_MAX}), -ENOENT);
    msh_grants_add_segment(grants, 0);
    MshSlot slot = filled(0);
    assert_int_equal(msh_holder_take(a, msh_slot(0, 1)), -ENOENT);
    assert_int_equal(msh_holder_take(a, msh_slot(1, 0)), -ENOENT);
    assert_int_equal(msh_holder_take(a, slot), 0);
    assert_int_equal(msh_grants_remove_segment(grants, 0), -EBUSY);
    assert_int_equal(msh_grants_remove_segment(grants, 1), -ENOENT);
}

static void test_only_what_is_held_is_given_back(void **state)
{
    (void)state;
    msh_grants_add_segment(grants, 0);
    MshSlot slot = filled(0);
    msh_holder_take(a, slot);
    msh_holder_take(a, slot);
    msh_holder_take(b, slot);
    assert_int_equal(msh_holder_grants_in(a, 0), 2);
    assert_int_equal(msh_holder_give_back(a, msh_slot(0, 1)), -EINVAL);
    assert_int_equal(msh_holder_give_back(a, (MshSlot){UINT32_MAX}), -EINVAL);
    assert_int_equal(msh_holder_give_back(a, slot), 0);
    assert_int_equal(msh_holder_give_back(a, slot), 0);
    assert_int_equal(msh_holder_give_back(a, slot), -EINVAL);
    assert_int_equal(msh_holder_give_back(b, slot), MSH_E_GRANTS_LAST);
    assert_int_equal(stats().grants, 0);
    assert_int_equal(stats().slots_dead, 1);
}

static void test_filled_and_live_are_told_by_segment(void **state)
{
    (void)state;
    msh_grants_add_segment(grants, 0);
    msh_grants_add_segment(grants, 1);
    MshSlot slot = filled(0), other = filled(0);
    msh_holder_take(a, slot);
    msh_holder_take(b, slot);
    assert_int_equal(msh_grants_filled(grants, 0), 2);
    assert_int_equal(msh_grants_live(grants, 0), 1);
    assert_true(msh_grants_slot_is_live(grants, slot));
    assert_false(msh_grants_slot_is_live(grants, other));
    assert_int_equal(msh_grants_filled(grants, 1), 0);
    assert_int_equal(msh_grants_filled(grants, 77), 0);
    assert_int_equal(msh_grants_live(grants, 77), 0);
    assert_false(msh_grants_slot_is_live(grants, (MshSlot){UINT32_MAX}));
    msh_holder_give_back(a, slot);
    assert_int_equal(msh_grants_live(grants, 0), 1);
    msh_holder_give_back(b, slot);
    assert_int_equal(msh_grants_live(grants, 0), 0);
    assert_false(msh_grants_slot_is_live(grants, slot));
}

static void test_a_full_count_refuses_and_stays(void **state)
{
    (void)state;
    msh_grants_add_segment(grants, 0);
    MshSlot slot = filled(0);
    for (uint32_t i = 0; i < MSH_GRANTS_PER_SLOT_MAX; i++)
        assert_int_equal(msh_holder_take(a, slot), 0);
    assert_int_equal(msh_holder_take(a, slot), -EOVERFLOW);
    assert_int_equal(msh_holder_take(b, slot), 0);
    assert_int_equal(stats().grants, MSH_GRANTS_PER_SLOT_MAX + 1);
    assert_int_equal(msh_holder_give_back(a, slot), 0);
    assert_int_equal(msh_holder_take(a, slot), 0);
}

static void test_I6_a_holder_that_goes_gives_all_back(void **state)
{
    (void)state;
    for (uint32_t segment = 0; segment < 4; segment++) {
        msh_grants_add_segment(grants, segment);
        for (uint32_t i = 0; i < 10; i++)
            msh_holder_take(a, filled(segment));
    }
    msh_holder_take(b, msh_slot(2, 5));
    a = msh_holder_free(a, on_emptied, grants);
    assert_int_equal(emptied_count, 3);
    assert_int_equal(emptied[0] + emptied[1] + emptied[2], 0 + 1 + 3);
    assert_int_equal(stats().grants, 1);
    assert_int_equal(stats().slots_live, 1);
    assert_int_equal(stats().slots_dead, 9);
}

static void test_a_page_is_split_and_dead_slots_too(void **state)
{
    (void)state;
    msh_grants_add_segment(grants, 0);
    MshSlot first = filled(0), second = filled(0);
    filled(0);
    filled(0); /* two dead */
    msh_holder_take(a, first);
    msh_holder_take(a, first);
    msh_holder_take(a, first);
    msh_holder_take(b, first);
    msh_holder_take(b, second);
    assert_int_equal(msh_holder_cost_bytes(a), 2 * 4096 * 3 / 4);
    assert_int_equal(msh_holder_cost_bytes(b), 2 * (4096 + 4096 / 4));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_I4_slots_fill_in_order_and_once),
        TEST(test_only_filled_slots_are_granted),
        TEST(test_only_what_is_held_is_given_back),
        TEST(test_filled_and_live_are_told_by_segment),
        TEST(test_a_full_count_refuses_and_stays),
        TEST(test_I6_a_holder_that_goes_gives_all_back),
        TEST(test_a_page_is_split_and_dead_slots_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
