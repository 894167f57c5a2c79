/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who is told what of which page, who holds grants, and what becomes of slots and segments.
 */
#include "unit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "group_fixture.h"

static void test_second_sighting_asks_and_the_first_gets_a_hint(void **state)
{
    (void)state;
    MshSlot slot = share(a, b, 1), third = {0};
    assert_int_equal(hints_count, 1);
    assert_ptr_equal(hints[0].member, a);
    assert_int_equal(hints[0].frame, 1001);
    assert_int_equal(hints[0].slot, slot.number);
    assert_int_equal(msh_member_grants(a), 1);
    assert_int_equal(msh_member_grants(b), 1);
    assert_int_equal(sight(c, 1, 3, &third), MSH_ANSWER_MATCH);
    assert_int_equal(third.number, slot.number);
    assert_int_equal(stats().grants, 3);
    assert_int_equal(stats().slots_live, 1);
    assert_int_equal(stats().store_bytes, MSH_PAGE_BYTES);
}

static void test_the_slot_holds_the_bytes_provided(void **state)
{
    (void)state;
    MshSlot slot = {0};
    uint8_t got[MSH_PAGE_BYTES];
    for (uint32_t i = 0; i < 10; i++)
        slot = share(a, b, i);
    int fd = msh_member_show(b, msh_slot_segment(slot));
    assert_true(fd >= 0);
    for (uint32_t i = 0; i < 10; i++) {
        page_of(i);
        assert_int_equal(pread(fd, got, sizeof(got), i * MSH_PAGE_BYTES), sizeof(got));
        assert_memory_equal(got, page, sizeof(got));
    }
    close(fd);
}

static void test_the_same_frame_again_is_no_second_sighting(void **state)
{
    (void)state;
    MshSlot slot;
    assert_int_equal(sight(a, 1, 5, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(a, 1, 5, &slot), MSH_ANSWER_NEW);
    assert_int_equal(provide(a, 1, 5, &slot), MSH_ANSWER_NEW); /* nobody asked */
    assert_int_equal(stats().rejected_provides, 1);
    assert_int_equal(stats().segments, 0);
    assert_int_equal(sight(a, 1, 6, &slot), MSH_ANSWER_PROVIDE); /* within one guest */
    assert_int_equal(provide(a, 1, 6, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(hints_count, 1);
    assert_int_equal(hints[0].frame, 5);
    assert_int_equal(msh_member_grants(a), 2);
}

static void test_a_page_never_sighted_is_not_taken(void **state)
{
    (void)state;
    MshSlot slot;
    assert_int_equal(provide(a, 3, 1, &slot), MSH_ANSWER_NEW);
    assert_int_equal(msh_group_provide(a, 0, msh_frame(1), page, &slot), MSH_ANSWER_NEW);
    assert_int_equal(msh_group_sight(a, 0, msh_frame(1), &slot), MSH_ANSWER_NEW);
    assert_int_equal(msh_group_sight(b, 0, msh_frame(1), &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().rejected_provides, 2);
    assert_int_equal(stats().table_entries, 0);
}

static void test_wrong_bytes_are_rejected_and_leave_no_trace(void **state)
{
    (void)state;
    MshSlot slot;
    sight(a, 1, 1, &slot);
    assert_int_equal(sight(b, 1, 1, &slot), MSH_ANSWER_PROVIDE);
    uint64_t hash = page_of(1);
    page_of(2); /* not these bytes */
    assert_int_equal(msh_group_provide(b, hash, msh_frame(1), page, &slot), MSH_ANSWER_NEW);
    assert_int_equal(stats().rejected_provides, 1);
    assert_int_equal(stats().store_bytes, 0);
    assert_int_equal(hints_count, 0);
    assert_int_equal(provide(b, 1, 1, &slot), MSH_ANSWER_MATCH); /* the right ones, later */
    assert_int_equal(msh_slot_position(slot), 0);
}

static void test_two_asked_providers_make_one_slot(void **state)
{
    (void)state;
    MshSlot of_b, of_c;
    sight(a, 1, 1, &of_b);
    assert_int_equal(sight(b, 1, 2, &of_b), MSH_ANSWER_PROVIDE);
    assert_int_equal(sight(c, 1, 3, &of_c), MSH_ANSWER_PROVIDE);
    assert_int_equal(provide(b, 1, 2, &of_b), MSH_ANSWER_MATCH);
    assert_int_equal(provide(c, 1, 3, &of_c), MSH_ANSWER_MATCH);
    assert_int_equal(of_b.number, of_c.number);
    assert_int_equal(stats().store_bytes, MSH_PAGE_BYTES);
    assert_int_equal(hints_count, 1);
}

static void test_a_hint_not_passed_on_takes_its_grant_back(void **state)
{
    (void)state;
    pass_hints_on = false;
    share(a, b, 1);
    assert_int_equal(hints_count, 1);
    assert_int_equal(msh_member_grants(a), 0);
    assert_int_equal(stats().grants, 1);
}

static void test_no_hint_to_one_that_left(void **state)
{
    (void)state;
    MshSlot slot;
    sight(a, 1, 1, &slot);
    assert_int_equal(sight(b, 1, 2, &slot), MSH_ANSWER_PROVIDE);
    a = msh_group_leave(a);
    assert_int_equal(provide(b, 1, 2, &slot), MSH_ANSWER_NEW); /* only b has it now */
    assert_int_equal(sight(b, 1, 2, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(b, 1, 2, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(c, 1, 3, &slot), MSH_ANSWER_PROVIDE);
    assert_int_equal(provide(c, 1, 3, &slot), MSH_ANSWER_MATCH);
    assert_int_equal(hints_count, 1);
    assert_ptr_equal(hints[0].member, b);
}

static void test_release_checks_who_holds_what(void **state)
{
    (void)state;
    MshSlot slot = share(a, b, 1);
    share(a, b, 2); /* keeps the segment */
    assert_int_equal(msh_group_release(c, slot), -EINVAL);
    assert_int_equal(msh_group_release(a, msh_slot(0, 2)), -EINVAL);
    assert_int_equal(msh_group_release(a, (MshSlot){UINT32_MAX}), -EINVAL);
    assert_int_equal(msh_group_release(a, slot), 0);
    assert_int_equal(msh_group_release(a, slot), -EINVAL);
    assert_int_equal(msh_group_release(b, slot), 0);
    assert_int_equal(stats().bad_releases, 4);
    assert_int_equal(stats().releases, 2);
    assert_int_equal(stats().slots_dead, 1);
}

static void test_a_dead_slot_is_found_again_while_its_segment_lives(void **state)
{
    (void)state;
    MshSlot slot = share(a, b, 1), again;
    share(a, b, 2);
    msh_group_release(a, slot);
    msh_group_release(b, slot);
    assert_int_equal(sight(c, 1, 9, &again), MSH_ANSWER_MATCH);
    assert_int_equal(again.number, slot.number);
    assert_int_equal(stats().slots_dead, 0);
}

static void test_I6_leaving_returns_everything(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 100; i++)
        share(a, b, i);
    close(msh_member_show(a, 0));
    close(msh_member_show(b, 0));
    a = msh_group_leave(a);
    assert_int_equal(stats().grants, 100);
    assert_int_equal(stats().members, 2);
    assert_int_equal(retirements_count, 0);
    b = msh_group_leave(b);
    assert_int_equal(stats().grants, 0);
    assert_int_equal(stats().segments, 0);
    assert_int_equal(stats().store_bytes, 0);
    assert_int_equal(retirements_count, 0); /* nobody is left who was shown it */
}

static void test_I4_a_number_comes_back_only_when_forgotten_and_swept(void **state)
{
    (void)state;
    MshSlot slot = share(a, b, 1), other;
    close(msh_member_show(a, 0));
    assert_true(msh_member_was_shown(a, 0));
    assert_false(msh_member_was_shown(b, 0));
    assert_int_equal(msh_member_forgot(a, 0), -EINVAL); /* not retired */
    msh_group_release(a, slot);
    msh_group_release(b, slot);
    assert_int_equal(retirements_count, 1);
    assert_ptr_equal(retirements[0].member, a);
    assert_int_equal(msh_member_show(a, 0), -ENOENT);
    assert_int_equal(msh_member_forgot(b, 0), -EINVAL); /* never shown */
    assert_int_equal(msh_group_release(a, slot), -EINVAL);

    assert_int_equal(sight(c, 1, 1, &other), MSH_ANSWER_NEW); /* the table has forgotten */
    other = share(a, b, 2);
    assert_int_equal(msh_slot_segment(other), 1);
    assert_int_equal(msh_member_forgot(a, 0), 0);
    assert_int_equal(msh_member_forgot(a, 0), -EINVAL);
    assert_false(msh_member_was_shown(a, 0));
    msh_group_release(a, other);
    msh_group_release(b, other);
    other = share(a, b, 3);
    assert_int_equal(msh_slot_segment(other), 0);
    assert_int_equal(sight(c, 2, 1, &other), MSH_ANSWER_NEW);
}

/* Nobody was shown the segment; but the table is large, so that it is not swept for a slot or two. */
static void test_I4_a_number_that_nobody_knows_comes_back_when_swept(void **state)
{
    (void)state;
    MshSlot slot, other;
    bool came_back = false;
    for (uint32_t i = 100; i < 180; i++)
        assert_int_equal(sight(c, i, i, &slot), MSH_ANSWER_NEW);
    slot = share(a, b, 1);
    msh_group_release(a, slot);
    msh_group_release(b, slot);
    other = share(a, b, 2);
    assert_int_not_equal(msh_slot_segment(other), msh_slot_segment(slot));
    assert_int_equal(sight(c, 1, 1, &other), MSH_ANSWER_NEW); /* no slot of that name holds it */
    for (uint32_t i = 3; i < 100 && !came_back; i++) {
        msh_group_release(a, other); /* the last of its segment */
        msh_group_release(b, other);
        other = share(a, b, i);
        came_back = msh_slot_segment(other) == msh_slot_segment(slot);
    }
    assert_true(came_back);
}

static void test_I4_leaving_forgets_for_the_member(void **state)
{
    (void)state;
    MshSlot slot = share(a, b, 1);
    close(msh_member_show(a, 0));
    msh_group_release(a, slot);
    msh_group_release(b, slot);
    a = msh_group_leave(a);
    slot = share(b, c, 2);
    assert_int_equal(msh_slot_segment(slot), 0);
}

static void test_many_retirements_keep_table_and_store_in_step(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 300; round++) {
        MshSlot keep = share(a, b, round % 100), slot = share(b, c, 100 + round % 100);
        assert_int_equal(msh_group_release(a, keep), 0);
        assert_int_equal(msh_group_release(b, keep), 0);
        assert_int_equal(msh_group_release(b, slot), 0);
        assert_int_equal(msh_group_release(c, slot), 0);
        assert_int_equal(stats().segments, 0);
        assert_int_equal(stats().grants, 0);
    }
    assert_true(stats().table_entries < 400);
}

static void test_showing_needs_a_grant_and_gives_a_readonly_descriptor(void **state)
{
    (void)state;
    share(a, b, 1);
    assert_int_equal(msh_member_show(c, 0), -EACCES);
    assert_int_equal(msh_member_show(a, 1), -ENOENT);
    assert_int_equal(msh_member_show(a, UINT32_MAX), -ENOENT);
    int fd = msh_member_show(a, 0), twice = msh_member_show(a, 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_true(twice >= 0 && twice != fd);
    close(fd);
    close(twice);
}

static void test_I5_two_groups_share_nothing(void **state)
{
    (void)state;
    MshGroup *other = make_group("other", &(MshGroupLimits){0});
    MshMember *stranger;
    MshSlot slot = share(a, b, 1);
    assert_int_equal(msh_group_join(other, NULL, &stranger), 0);
    assert_memory_not_equal(msh_group_secret(group), msh_group_secret(other), MSH_SECRET_BYTES);
    hints_count = 0;

    /* With the very hash of the other group: no match, no hint, no descriptor, no release. */
    uint64_t hash = page_of(1);
    assert_int_equal(msh_group_sight(stranger, hash, msh_frame(1), &slot), MSH_ANSWER_NEW);
    assert_int_equal(msh_group_sight(stranger, hash, msh_frame(2), &slot), MSH_ANSWER_PROVIDE);
    assert_int_equal(msh_member_show(stranger, 0), -ENOENT);
    assert_int_equal(msh_group_release(stranger, slot), -EINVAL);
    assert_int_equal(hints_count, 0);

    /* The same page in both: two files. */
    uint64_t own_hash = msh_fingerprint(msh_group_secret(other), page);
    msh_group_sight(stranger, own_hash, msh_frame(1), &slot);
    msh_group_sight(stranger, own_hash, msh_frame(2), &slot);
    assert_int_equal(msh_group_provide(stranger, own_hash, msh_frame(2), page, &slot),
                     MSH_ANSWER_MATCH);
    int ours = msh_member_show(a, 0), theirs = msh_member_show(stranger, 0);
    struct stat of_ours, of_theirs;
    assert_int_equal(fstat(ours, &of_ours), 0);
    assert_int_equal(fstat(theirs, &of_theirs), 0);
    assert_true(of_ours.st_ino != of_theirs.st_ino);
    close(ours);
    close(theirs);
    for (uint32_t i = 0; i < hints_count; i++)
        assert_ptr_equal(hints[i].member, stranger);
    msh_group_leave(stranger);
    msh_group_free(other);
}

static void test_costs_add_up_to_the_store(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 30; i++) {
        MshSlot slot = share(i % 2 ? a : c, b, i);
        if (i % 3 == 0)
            assert_int_equal(sight(i % 2 ? c : a, i, i, &slot), MSH_ANSWER_MATCH);
        if (i % 5 == 0) {
            msh_group_release(a, slot);
            msh_group_release(b, slot);
            msh_group_release(c, slot);
        }
    }
    uint64_t sum = msh_member_cost_bytes(a) + msh_member_cost_bytes(b) + msh_member_cost_bytes(c);
    assert_in_range(sum, stats().store_bytes - 3, stats().store_bytes + 3);
    assert_true(stats().slots_dead > 0);
}

static void test_bad_names_are_refused(void **state)
{
    (void)state;
    MshError error = {0};
    MshGroup *none = NULL;
    assert_int_equal(
        msh_group_new("../x", &(MshGroupLimits){0}, &(MshGroupEvents){0}, &none, &error), -EINVAL);
    assert_null(none);
    assert_non_null(strstr(error.text, "group name"));
    assert_string_equal(msh_group_name(group), "unit");
    assert_string_equal(msh_member_opaque(b), "b");
    assert_null(msh_group_leave(NULL));
    assert_null(msh_group_free(NULL));
}

static void test_an_id_comes_back_without_its_sightings(void **state)
{
    (void)state;
    MshSlot slot;
    sight(a, 1, 1, &slot); /* the first to join, and leave: next in line after all other ids */
    a = msh_group_leave(a);
    for (uint32_t id = 3; id <= UINT16_MAX; id++) {
        assert_int_equal(msh_group_join(group, NULL, &a), 0);
        a = msh_group_leave(a);
    }
    assert_int_equal(msh_group_join(group, NULL, &a), 0);
    assert_int_equal(sight(b, 1, 1, &slot), MSH_ANSWER_NEW);
    assert_int_equal(sight(a, 1, 1, &slot), MSH_ANSWER_PROVIDE);
}

/* A process that reconnects is a new member; what it sighted before must not make a second sighting. */
static void test_a_closed_member_counts_as_a_sharer_only(void **state)
{
    (void)state;
    MshSlot slot, again;
    sight(a, 1, 1, &slot);
    sight(b, 1, 1, &slot);
    assert_int_equal(msh_group_provide(b, page_of(1), msh_frame(1), page, &slot), MSH_ANSWER_MATCH);
    uint64_t held = msh_member_grants(a);
    sight(a, 2, 2, &again);
    msh_member_close(a);
    assert_int_equal(sight(c, 2, 2, &again), MSH_ANSWER_NEW);
    assert_int_equal(msh_member_grants(a), held);
    assert_int_equal(sight(c, 1, 1, &again), MSH_ANSWER_MATCH);
    assert_int_equal(again.number, slot.number);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start_unlimited, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_second_sighting_asks_and_the_first_gets_a_hint),
        TEST(test_the_slot_holds_the_bytes_provided),
        TEST(test_the_same_frame_again_is_no_second_sighting),
        TEST(test_a_page_never_sighted_is_not_taken),
        TEST(test_wrong_bytes_are_rejected_and_leave_no_trace),
        TEST(test_two_asked_providers_make_one_slot),
        TEST(test_a_hint_not_passed_on_takes_its_grant_back),
        TEST(test_no_hint_to_one_that_left),
        TEST(test_release_checks_who_holds_what),
        TEST(test_a_dead_slot_is_found_again_while_its_segment_lives),
        TEST(test_I6_leaving_returns_everything),
        TEST(test_I4_a_number_comes_back_only_when_forgotten_and_swept),
        TEST(test_I4_a_number_that_nobody_knows_comes_back_when_swept),
        TEST(test_I4_leaving_forgets_for_the_member),
        TEST(test_many_retirements_keep_table_and_store_in_step),
        TEST(test_showing_needs_a_grant_and_gives_a_readonly_descriptor),
        TEST(test_I5_two_groups_share_nothing),
        TEST(test_costs_add_up_to_the_store),
        TEST(test_bad_names_are_refused),
        TEST(test_an_id_comes_back_without_its_sightings),
        TEST(test_a_closed_member_counts_as_a_sharer_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
