/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which segments are to be emptied, and when it is too many at a time.
 */
#include "unit.h"

#include "shelf.h"

enum { SEGMENTS = 8, SLOTS = 1024 };

static MshGrants *grants;
static MshShelf *shelf;
static MshHolder *holder;

static MshSlot put(void)
{
    static const uint8_t page[MSH_PAGE_BYTES] = {1};
    const void *staged;
    MshSlot slot;
    assert_int_equal(msh_shelf_stage(shelf, page, &staged), 0);
    assert_int_equal(msh_shelf_commit(shelf, &slot), 0);
    assert_int_equal(msh_holder_take(holder, slot), 0);
    return slot;
}

/* SEGMENTS full segments of which every slot is live, and one that is begun. */
static int start(void **state)
{
    (void)state;
    assert_int_equal(msh_grants_new(&grants), 0);
    assert_int_equal(msh_shelf_new("unit", grants, &shelf), 0);
    assert_int_equal(msh_holder_new(grants, &holder), 0);
    for (uint32_t i = 0; i <= SEGMENTS * SLOTS; i++)
        assert_int_equal(msh_slot_segment(put()), i / SLOTS);
    return 0;
}

static void retire(void *opaque, uint32_t segment)
{
    (void)opaque;
    msh_shelf_retire(shelf, segment);
}

static int stop(void **state)
{
    (void)state;
    holder = msh_holder_free(holder, retire, NULL);
    shelf = msh_shelf_free(shelf);
    grants = msh_grants_free(grants);
    return 0;
}

static void let_die(uint32_t segment, uint32_t first, uint32_t end)
{
    for (uint32_t at = first; at < end; at++)
        if (msh_holder_give_back(holder, msh_slot(segment, at)) == MSH_E_GRANTS_LAST)
            msh_shelf_retire(shelf, segment);
}

static void test_the_segment_of_which_most_is_dead_comes_first(void **state)
{
    (void)state;
    let_die(2, 0, 300);
    let_die(5, 0, 200);
    assert_int_equal(msh_shelf_deadest(shelf), MSH_SHELF_NONE); /* less than a tenth of all */
    let_die(2, 300, 700);
    let_die(5, 200, 600);
    assert_int_equal(msh_shelf_deadest(shelf), 2);
    msh_shelf_empty(shelf, 2, 0);
    assert_int_equal(msh_shelf_deadest(shelf), MSH_SHELF_NONE); /* of what is left */
    let_die(5, 600, 1000);
    assert_int_equal(msh_shelf_deadest(shelf), 5);
}

/* Where contents die soon, what moves out of one segment dies in the next. */
static void test_a_quarter_of_the_store_may_be_emptied_at_a_time(void **state)
{
    (void)state;
    msh_shelf_empty(shelf, 0, 0);
    msh_shelf_empty(shelf, 1, 0);
    assert_false(msh_shelf_is_crowded(shelf, 0));
    msh_shelf_empty(shelf, 2, 0);
    assert_true(msh_shelf_is_crowded(shelf, 0));
    let_die(0, 0, SLOTS - 1);
    assert_true(msh_shelf_is_crowded(shelf, 0)); /* its memory is held by the last of its pages */
    let_die(0, SLOTS - 1, SLOTS);
    let_die(1, 0, SLOTS);
    assert_false(msh_shelf_is_crowded(shelf, 0));
}

/* A guest that is stopped gives nothing back. */
static void test_segments_where_nothing_ends_do_not_count(void **state)
{
    (void)state;
    const uint64_t all = SEGMENTS * SLOTS + 1;
    for (uint32_t segment = 0; segment < 3; segment++)
        msh_shelf_empty(shelf, segment, 1);
    assert_true(msh_shelf_is_crowded(shelf, 1 + all));
    assert_false(msh_shelf_is_crowded(shelf, 2 + all));
    for (uint32_t segment = 0; segment < 3; segment++)
        msh_shelf_note_release(shelf, segment, 2 + all);
    assert_true(msh_shelf_is_crowded(shelf, 2 + all));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_the_segment_of_which_most_is_dead_comes_first),
        TEST(test_a_quarter_of_the_store_may_be_emptied_at_a_time),
        TEST(test_segments_where_nothing_ends_do_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
