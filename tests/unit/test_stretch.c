/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "stretch.h"

#define SECOND 1000000000ull

enum { PAGES = 10000 };

/* Walks one pass over all memory, so many pages a second, in steps. Notes how often each page was visited, the longest time between
 * two looks at a page, and the number of looks that were called second ones. Returns when the pass ended. */
typedef struct Walk {
    uint64_t seen_ns[PAGES];
    unsigned looks[PAGES];
    uint64_t longest_gap_ns;
    unsigned seconds, firsts_of_two;
} Walk;

static uint64_t walk(MshStretch *stretch, Walk *walk, uint32_t rate, uint32_t step, uint64_t now_ns)
{
    uint32_t frame = 0;
    for (;;) {
        frame = msh_stretch_next(stretch, frame, frame == PAGES, PAGES, now_ns);
        if (frame == PAGES)
            break;
        uint32_t end = frame + step < PAGES ? frame + step : PAGES;
        for (; frame < end; frame++) {
            if (walk->looks[frame]++ && now_ns - walk->seen_ns[frame] > walk->longest_gap_ns)
                walk->longest_gap_ns = now_ns - walk->seen_ns[frame];
            walk->seen_ns[frame] = now_ns;
            walk->seconds += msh_stretch_is_second(stretch);
            walk->firsts_of_two += msh_stretch_is_first_of_two(stretch);
        }
        now_ns += step * SECOND / rate;
    }
    msh_stretch_restart(stretch, now_ns);
    return now_ns;
}

static void test_a_quick_pass_looks_once(void **state)
{
    (void)state;
    MshStretch stretch = {0};
    Walk quick = {0};
    walk(&stretch, &quick, PAGES, 64, SECOND);
    for (uint32_t i = 0; i < PAGES; i++)
        assert_int_equal(quick.looks[i], 1);
    assert_int_equal(quick.seconds, 0);
    assert_int_equal(quick.firsts_of_two, 0);
}

static void test_a_slow_pass_looks_twice_soon(void **state)
{
    (void)state;
    static const uint32_t rates[] = {10, 50, 333}; /* 1000, 200, 30 s a look */
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        MshStretch stretch = {0};
        Walk slow = {0};
        walk(&stretch, &slow, rates[i], 64, SECOND);
        for (uint32_t page = 0; page < PAGES; page++)
            assert_int_equal(slow.looks[page], 2);
        assert_int_equal(slow.seconds, PAGES);
        /* A stretch, and the step in which its time was up. */
        assert_true(slow.longest_gap_ns <= 5 * SECOND + 2 * 64 * SECOND / rates[i]);
    }
}

static void test_first_looks_are_known_from_the_second_slow_pass_on(void **state)
{
    (void)state;
    MshStretch stretch = {0};
    Walk first = {0}, second = {0}, quick = {0};
    uint64_t now_ns = walk(&stretch, &first, 50, 64, SECOND);
    now_ns = walk(&stretch, &second, 50, 64, now_ns);
    assert_int_equal(second.firsts_of_two, PAGES);
    assert_int_equal(second.seconds, PAGES);
    /* And forgotten when passes are quick again: of the first of these it is not known yet. */
    now_ns = walk(&stretch, &quick, PAGES, 64, now_ns);
    quick = (Walk){0};
    walk(&stretch, &quick, PAGES, 64, now_ns);
    assert_int_equal(quick.firsts_of_two, 0);
    assert_int_equal(quick.seconds, 0);
}

static void test_a_pass_ends_whatever_the_time(void **state)
{
    (void)state;
    MshStretch stretch = {0};
    Walk jumps = {0};
    /* Each step takes longer than a stretch. */
    walk(&stretch, &jumps, 1, 64, SECOND);
    for (uint32_t page = 0; page < PAGES; page++)
        assert_int_equal(jumps.looks[page], 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_quick_pass_looks_once),
        cmocka_unit_test(test_a_slow_pass_looks_twice_soon),
        cmocka_unit_test(test_first_looks_are_known_from_the_second_slow_pass_on),
        cmocka_unit_test(test_a_pass_ends_whatever_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
