/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When the next pass may begin, by what the one before has found. */
#include "unit.h"

#include "pacing.h"

#define SECOND_NS 1000000000ull
#define RAM_BYTES (1ull << 30)

enum { NEXT_TO_NOTHING = 63, ENOUGH = 64 }; /* pages of a GiB */

/* An engine with no limit, and its pacing. */
typedef struct Site {
    MshEngine engine;
    MshPacing pacing;
    uint64_t now_ns;
} Site;

static int make(void **state)
{
    static Site site;
    site = (Site){.now_ns = 100 * SECOND_NS};
    atomic_store(&site.engine.scan_rate_pages, MSH_RATE_UNLIMITED);
    msh_pacing_init(&site.pacing, site.now_ns);
    assert_int_equal(msh_pacing_wait_ns(&site.pacing, &site.engine, site.now_ns), 0);
    *state = &site;
    return 0;
}

static uint64_t end_pass(Site *site, uint64_t found)
{
    site->pacing.found += found;
    return msh_pacing_rest_ns(&site->pacing, RAM_BYTES, site->now_ns);
}

static void test_a_pass_that_finds_enough_is_followed_at_once(void **state)
{
    Site *site = *state;
    end_pass(site, 0);
    assert_int_equal(end_pass(site, ENOUGH), 0);
    assert_int_equal(msh_pacing_wait_ns(&site->pacing, &site->engine, site->now_ns), 0);
}

static void test_next_to_nothing_is_rested_for_longer_and_longer(void **state)
{
    Site *site = *state;
    uint64_t before_ns = 0;
    for (unsigned pass = 0; pass < 6; pass++) {
        uint64_t rest_ns = end_pass(site, pass % 2 ? NEXT_TO_NOTHING : 0);
        assert_true(rest_ns > before_ns);
        before_ns = rest_ns;
    }
    assert_true(before_ns < SECOND_NS);
    assert_int_equal(end_pass(site, NEXT_TO_NOTHING), before_ns);
}

static void test_of_little_memory_one_page_is_enough(void **state)
{
    Site *site = *state;
    site->pacing.found = 1;
    assert_int_equal(msh_pacing_rest_ns(&site->pacing, 1 << 20, site->now_ns), 0);
    assert_true(msh_pacing_rest_ns(&site->pacing, 1 << 20, site->now_ns) > 0);
}

static void test_who_is_woken_rests_on(void **state)
{
    Site *site = *state;
    uint64_t rest_ns = end_pass(site, 0);
    site->now_ns += rest_ns / 4;
    assert_int_equal(msh_pacing_wait_ns(&site->pacing, &site->engine, site->now_ns), rest_ns - rest_ns / 4);
    site->now_ns += rest_ns;
    assert_int_equal(msh_pacing_wait_ns(&site->pacing, &site->engine, site->now_ns), 0);
}

static void test_another_rate_or_a_segment_to_be_emptied_ends_the_rest(void **state)
{
    Site *site = *state;
    uint64_t rest_ns = 0;
    while (rest_ns < SECOND_NS / 2)
        rest_ns = end_pass(site, 0);
    site->engine.moving.is_walking = true;
    assert_int_equal(msh_pacing_wait_ns(&site->pacing, &site->engine, site->now_ns), 0);
    site->engine.moving.is_walking = false;
    assert_int_equal(msh_pacing_wait_ns(&site->pacing, &site->engine, site->now_ns), rest_ns);
    atomic_store(&site->engine.scan_rate_pages, 1000000); /* of which a step takes under a millisecond to come by */
    assert_true(msh_pacing_wait_ns(&site->pacing, &site->engine, site->now_ns) < SECOND_NS / 100);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, make)
    const struct CMUnitTest tests[] = {
        TEST(test_a_pass_that_finds_enough_is_followed_at_once),
        TEST(test_next_to_nothing_is_rested_for_longer_and_longer),
        TEST(test_of_little_memory_one_page_is_enough),
        TEST(test_who_is_woken_rests_on),
        TEST(test_another_rate_or_a_segment_to_be_emptied_ends_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
