/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Segments that are filled no more and mostly dead are emptied.
 */
#include "unit.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "group_fixture.h"

enum { CLOSED_SLOTS = 6 };

static rlim_t room_before;

/* A host that has memory for so many slots, as a limit of the file's size. */
static void begin_room_for(uint32_t pages)
{
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    room_before = limit.rlim_cur;
    limit.rlim_cur = pages * MSH_PAGE_BYTES;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* The slot for which there is no room ends the filling of its segment. */
static void close_segment(uint32_t number)
{
    struct rlimit limit;
    MshSlot slot;
    assert_int_equal(sight(a, number, 3000, &slot), MSH_ANSWER_NEW);
    assert_int_equal(provide(b, number, 3001, &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().refused_full, 1);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = room_before;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* A closed segment 0 of CLOSED_SLOTS slots, pages 0 to 5, each granted to a and b and shown to
 * both. */
static void share_and_close(MshSlot slots[CLOSED_SLOTS])
{
    begin_room_for(CLOSED_SLOTS);
    for (uint32_t i = 0; i < CLOSED_SLOTS; i++)
        slots[i] = share(a, b, i);
    close(msh_member_show(a, 0));
    close(msh_member_show(b, 0));
    close_segment(100);
}

static void release_both(MshSlot slot)
{
    assert_int_equal(msh_group_release(a, slot), 0);
    assert_int_equal(msh_group_release(b, slot), 0);
}

static void test_a_segment_less_than_half_live_is_emptied_once(void **state)
{
    (void)state;
    MshSlot slots[CLOSED_SLOTS];
    share_and_close(slots);
    for (uint32_t i = 0; i < 3; i++)
        release_both(slots[i]);
    assert_int_equal(msh_group_release(a, slots[3]), 0);
    assert_int_equal(emptyings_count, 0); /* half are live */
    assert_int_equal(msh_group_release(b, slots[3]), 0);
    assert_int_equal(emptyings_count, 2);
    assert_ptr_equal(emptyings[0].member, a);
    assert_ptr_equal(emptyings[1].member, b); /* and not c, which was never shown it */
    assert_int_equal(emptyings[0].segment, 0);
    assert_int_equal(emptyings[1].segment, 0);
    release_both(slots[4]);
    assert_int_equal(emptyings_count, 2);
    assert_int_equal(retirements_count, 0);
    assert_int_equal(stats().grants, 2); /* those given stay */
    release_both(slots[5]);
    assert_int_equal(retirements_count, 2);
    assert_int_equal(stats().segments, 0);
}

static void test_the_segment_being_filled_is_spared(void **state)
{
    (void)state;
    MshSlot slots[CLOSED_SLOTS], slot;
    begin_room_for(CLOSED_SLOTS);
    for (uint32_t i = 0; i < CLOSED_SLOTS; i++)
        slots[i] = share(a, b, i);
    close(msh_member_show(a, 0));
    for (uint32_t i = 1; i < CLOSED_SLOTS; i++)
        release_both(slots[i]);
    assert_int_equal(emptyings_count, 0);
    assert_int_equal(sight(c, 0, 1, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(slot.number, slots[0].number);
    close_segment(100); /* until its filling ends */
    assert_int_equal(emptyings_count, 1);
    assert_ptr_equal(emptyings[0].member, a);
}

static void test_I4_nothing_is_granted_in_a_segment_that_is_emptied(void **state)
{
    (void)state;
    MshSlot slots[CLOSED_SLOTS], slot, moved;
    share_and_close(slots);
    for (uint32_t i = 0; i < 4; i++)
        release_both(slots[i]);
    assert_int_equal(emptyings_count, 2);
    hints_count = 0;
    /* Dead: it is as if it had never been seen. */
    assert_int_equal(sight(c, 0, 1, &slot), MSH_ANSWER_NEW);
    assert_int_equal(provide(c, 0, 1, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(c, 0, 2, &slot), MSH_ANSWER_PROVIDE);
    /* Live: the first who sights it is asked, also one that shares it, and the others match. */
    assert_int_equal(sight(a, 4, 1004, &slot), MSH_ANSWER_PROVIDE);
    assert_int_equal(provide(a, 4, 1004, &moved), MSH_ANSWER_MATCH);
    assert_int_equal(msh_slot_segment(moved), 1);
    assert_int_equal(hints_count, 0); /* nobody waits for it */
    assert_int_equal(sight(b, 4, 2004, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(slot.number, moved.number);
    /* The same when two were asked. */
    assert_int_equal(sight(c, 5, 5, &slot), MSH_ANSWER_PROVIDE);
    assert_int_equal(sight(b, 5, 2005, &slot), MSH_ANSWER_PROVIDE);
    assert_int_equal(provide(b, 5, 2005, &moved), MSH_ANSWER_MATCH);
    assert_int_equal(provide(c, 5, 5, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(slot.number, moved.number);
    assert_int_equal(msh_slot_segment(moved), 1);
    release_both(slots[4]);
    assert_int_equal(retirements_count, 0);
    release_both(slots[5]);
    assert_int_equal(retirements_count, 2);
    assert_int_equal(retirements[0].segment, 0);
    assert_int_equal(stats().slots_live, 2);
    assert_int_equal(stats().slots_dead, 0);
    assert_int_equal(sight(c, 4, 6, &slot), MSH_ANSWER_MATCH); /* what moved is found */
}

static void test_wrong_bytes_are_rejected_while_emptying_too(void **state)
{
    (void)state;
    MshSlot slots[CLOSED_SLOTS], slot;
    share_and_close(slots);
    for (uint32_t i = 0; i < 4; i++)
        release_both(slots[i]);
    assert_int_equal(sight(c, 4, 1, &slot), MSH_ANSWER_PROVIDE);
    uint64_t hash = page_of(4);
    page_of(7);
    assert_int_equal(msh_group_provide(c, hash, msh_frame(1), page, &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().rejected_provides, 1);
    assert_int_equal(provide(c, 4, 1, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(msh_slot_segment(slot), 1);
}

static void test_I6_leaving_empties_what_it_leaves_mostly_dead(void **state)
{
    (void)state;
    MshSlot slots[CLOSED_SLOTS];
    share_and_close(slots);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(msh_group_release(b, slots[i]), 0);
    assert_int_equal(emptyings_count, 0);
    a = msh_group_leave(a);
    assert_int_equal(emptyings_count, 1);
    assert_ptr_equal(emptyings[0].member, b);
    assert_int_equal(retirements_count, 0);
    assert_int_equal(msh_group_release(b, slots[4]), 0);
    assert_int_equal(msh_group_release(b, slots[5]), 0);
    assert_int_equal(retirements_count, 1);
}

static void test_a_number_that_comes_back_is_not_emptying(void **state)
{
    (void)state;
    MshSlot slots[CLOSED_SLOTS], slot;
    share_and_close(slots);
    for (uint32_t i = 0; i < CLOSED_SLOTS; i++)
        release_both(slots[i]);
    assert_int_equal(msh_member_forgot(a, 0), 0);
    assert_int_equal(msh_member_forgot(b, 0), 0);
    slot = share(a, b, 50);
    assert_int_equal(msh_slot_segment(slot), 0);
    assert_int_equal(sight(c, 50, 1, &slot), MSH_ANSWER_MATCH);
}

enum { MANY_SLOTS = 100 };

/* A closed segment 0 of MANY_SLOTS slots, each granted to a and b. */
static void share_many_and_close(void)
{
    begin_room_for(MANY_SLOTS);
    for (uint32_t i = 0; i < MANY_SLOTS; i++)
        share(a, b, i);
    close(msh_member_show(a, 0));
    close_segment(150);
}

static void test_the_deadest_segment_is_emptied_when_a_tenth_of_the_store_is_dead(void **state)
{
    (void)state;
    share_many_and_close();
    for (uint32_t i = 0; i < MANY_SLOTS / 10; i++)
        release_both(msh_slot(0, i));
    assert_int_equal(emptyings_count, 0);
    for (uint32_t i = MANY_SLOTS / 10; i < MANY_SLOTS / 5; i++)
        release_both(msh_slot(0, i));
    assert_int_equal(emptyings_count, 1);
    assert_int_equal(emptyings[0].segment, 0);
}

static void test_a_segment_is_not_emptied_where_there_is_no_room_to_move(void **state)
{
    (void)state;
    stop(state);
    start(&(MshGroupLimits){.store_bytes = (MANY_SLOTS + 20) * MSH_PAGE_BYTES});
    share_many_and_close();
    for (uint32_t i = 0; i < MANY_SLOTS / 2; i++)
        release_both(msh_slot(0, i));
    assert_int_equal(emptyings_count, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start_unlimited, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_a_segment_less_than_half_live_is_emptied_once),
        TEST(test_the_segment_being_filled_is_spared),
        TEST(test_the_deadest_segment_is_emptied_when_a_tenth_of_the_store_is_dead),
        TEST(test_a_segment_is_not_emptied_where_there_is_no_room_to_move),
        TEST(test_I4_nothing_is_granted_in_a_segment_that_is_emptied),
        TEST(test_wrong_bytes_are_rejected_while_emptying_too),
        TEST(test_I6_leaving_empties_what_it_leaves_mostly_dead),
        TEST(test_a_number_that_comes_back_is_not_emptying),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
