/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "runs.h"

static void test_a_run_follows_frames_and_slots(void **state)
{
    (void)state;
    const MshCandidate run[] = {{10, 5}, {11, 6}, {12, 7}, {13, 9}, {14, 10}, {16, 11}};
    assert_int_equal(msh_run_length(run, 6, 100), 3);
    assert_int_equal(msh_run_length(run, 6, 2), 2);
    assert_int_equal(msh_run_length(run + 3, 3, 100), 2);
    assert_int_equal(msh_run_length(run + 5, 1, 100), 1);
}

static void test_zeros_make_a_run_of_their_own(void **state)
{
    (void)state;
    const MshCandidate run[] = {
        {1, MSH_SLOT_ZERO}, {2, MSH_SLOT_ZERO}, {3, 0}, {4, 1}, {5, MSH_SLOT_ZERO}};
    assert_int_equal(msh_run_length(run, 5, 100), 2);
    assert_int_equal(msh_run_length(run + 2, 3, 100), 2);
    /* The slot before MSH_SLOT_ZERO is followed by none. */
    const MshCandidate last[] = {{1, MSH_SLOT_ZERO - 1}, {2, MSH_SLOT_ZERO}};
    assert_int_equal(msh_run_length(last, 2, 100), 1);
}

static void test_a_run_ends_with_its_segment(void **state)
{
    (void)state;
    const MshCandidate run[] = {
        {1, MSH_SEGMENT_SLOTS - 2}, {2, MSH_SEGMENT_SLOTS - 1}, {3, MSH_SEGMENT_SLOTS}};
    assert_int_equal(msh_run_length(run, 3, 100), 2);
}

static void test_sorting_is_by_frame_then_slot(void **state)
{
    (void)state;
    MshCandidate mixed[] = {{3, 1}, {1, 9}, {2, 4}, {1, 2}, {UINT32_MAX, 0}, {0, 7}};
    const MshCandidate sorted[] = {{0, 7}, {1, 2}, {1, 9}, {2, 4}, {3, 1}, {UINT32_MAX, 0}};
    msh_candidates_sort(mixed, 6);
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(mixed[i].frame, sorted[i].frame);
        assert_int_equal(mixed[i].slot, sorted[i].slot);
    }
}

/* All that was there is there still: the front with one candidate a frame in order, the rest, which
 * is given back, behind it. */
static void test_one_candidate_a_frame_and_none_is_lost(void **state)
{
    (void)state;
    uint32_t random = 12345;
    for (unsigned round = 0; round < 2000; round++) {
        enum { COUNT = 24, FRAMES = 10, SLOTS = 12 };
        MshCandidate candidates[COUNT];
        unsigned before[FRAMES][SLOTS] = {{0}}, after[FRAMES][SLOTS] = {{0}};
        for (size_t i = 0; i < COUNT; i++) {
            random = random * 1664525u + 1013904223u;
            candidates[i] = (MshCandidate){(random >> 16) % FRAMES, (random >> 8) % SLOTS};
            before[candidates[i].frame][candidates[i].slot]++;
        }
        msh_candidates_sort(candidates, COUNT);
        size_t count = msh_candidates_unique(candidates, COUNT);
        for (size_t i = 1; i < count; i++)
            assert_true(candidates[i - 1].frame < candidates[i].frame);
        bool seen[FRAMES] = {false};
        for (size_t i = 0; i < COUNT; i++) {
            after[candidates[i].frame][candidates[i].slot]++;
            if (i < count)
                seen[candidates[i].frame] = true;
            else
                assert_true(seen[candidates[i].frame]);
        }
        assert_memory_equal(before, after, sizeof before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_run_follows_frames_and_slots),
        cmocka_unit_test(test_zeros_make_a_run_of_their_own),
        cmocka_unit_test(test_a_run_ends_with_its_segment),
        cmocka_unit_test(test_sorting_is_by_frame_then_slot),
        cmocka_unit_test(test_one_candidate_a_frame_and_none_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
