/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "region.h"
#include "tenure.h"

enum { STABLE = 100000 };

/* A tick in which so many pages were merged and so many of those before broke soon. */
static void tick(MshTenure *tenure, uint64_t *merged, uint32_t merges, uint32_t soon)
{
    *merged += merges;
    tenure->soon = soon;
    msh_tenure_tick(tenure, *merged, STABLE);
}

static void test_what_stays_is_merged_at_once(void **state)
{
    (void)state;
    MshTenure tenure = {0};
    uint64_t merged = 0;
    for (unsigned i = 0; i < 100; i++) {
        tick(&tenure, &merged, 10000, 2000);
        assert_int_equal(tenure.level, 0);
    }
}

static void test_a_few_breaks_hold_nothing_back(void **state)
{
    (void)state;
    MshTenure tenure = {0};
    uint64_t merged = 0;
    for (unsigned i = 0; i < 100; i++) {
        tick(&tenure, &merged, 10, 10);
        assert_int_equal(tenure.level, 0);
    }
}

static void test_where_all_breaks_soon_more_is_asked_of_pages_until_that_is_over(void **state)
{
    (void)state;
    MshTenure tenure = {0};
    uint64_t merged = 0;
    unsigned ticks = 0;
    for (; tenure.level < MSH_REGION_LEVEL_MAX; ticks++)
        tick(&tenure, &merged, 5000, 5000);
    assert_true(ticks <= 2 * MSH_REGION_LEVEL_MAX);
    tick(&tenure, &merged, 5000, 5000);
    assert_int_equal(tenure.level, MSH_REGION_LEVEL_MAX);
    tick(&tenure, &merged, 0, 0);
    assert_int_equal(tenure.level, MSH_REGION_LEVEL_MAX); /* no sooner down than up */
    for (ticks = 0; tenure.level > 0; ticks++)
        tick(&tenure, &merged, 0, 0);
    assert_in_range(ticks, 2 * MSH_REGION_LEVEL_MAX, 100);
}

/* Breaks that follow merges of some ticks ago are set against these, not against what is merged now. */
static void test_merges_of_a_while_ago_count(void **state)
{
    (void)state;
    MshTenure tenure = {0};
    uint64_t merged = 0;
    tick(&tenure, &merged, 100000, 0);
    for (unsigned i = 0; i < 6; i++) {
        tick(&tenure, &merged, 0, 5000);
        assert_int_equal(tenure.level, 0);
    }
}

/* A tick without merges, in which so many of the stable pages were written. */
static void lose(MshTenure *tenure, uint32_t pages)
{
    tenure->lost = pages;
    msh_tenure_tick(tenure, 0, STABLE);
}

static void test_where_stable_pages_are_written_again_within_seconds_more_is_asked_before_any_merge_breaks(
    void **state)
{
    (void)state;
    MshTenure tenure = {0};
    unsigned ticks = 0;
    for (; tenure.level < MSH_REGION_LEVEL_MAX && ticks < 100; ticks++)
        lose(&tenure, STABLE / 10);
    assert_in_range(ticks, 1, 2);
    /* It is over as soon as that is: when a guest has booted, say. */
    for (ticks = 0; tenure.level > 0 && ticks < 100; ticks++)
        lose(&tenure, STABLE / 100);
    assert_in_range(ticks, 1, 4);
}

static void test_stable_pages_that_live_for_minutes_hold_nothing_back(void **state)
{
    (void)state;
    MshTenure tenure = {0};
    for (unsigned i = 0; i < 100; i++) {
        lose(&tenure, STABLE / 40);
        assert_int_equal(tenure.level, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_stays_is_merged_at_once),
        cmocka_unit_test(test_a_few_breaks_hold_nothing_back),
        cmocka_unit_test(test_where_all_breaks_soon_more_is_asked_of_pages_until_that_is_over),
        cmocka_unit_test(test_merges_of_a_while_ago_count),
        cmocka_unit_test(
            test_where_stable_pages_are_written_again_within_seconds_more_is_asked_before_any_merge_breaks),
        cmocka_unit_test(test_stable_pages_that_live_for_minutes_hold_nothing_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
