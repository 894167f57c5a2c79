/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "pace.h"

#define SECOND 1000000000ull

static void test_starts_empty_and_fills_at_the_rate(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 1000, 100, 5 * SECOND);
    assert_int_equal(msh_pace_available(&pace, 5 * SECOND), 0);
    assert_int_equal(msh_pace_available(&pace, 5 * SECOND + SECOND / 20), 50);
    assert_int_equal(msh_pace_available(&pace, 9 * SECOND), 100);
}

static void test_debt_delays_what_follows(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 1000, 100, 0);
    msh_pace_spend(&pace, 500, 0);
    assert_int_equal(msh_pace_available(&pace, SECOND / 2), 0);
    assert_int_equal(msh_pace_available(&pace, SECOND / 2 + SECOND / 1000), 1);
}

static void test_after_the_wait_the_tokens_are_there(void **state)
{
    (void)state;
    static const uint64_t rates[] = {1, 3, 7, 1000, 99991, 1000000007, 3 * SECOND};
    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        MshPace pace;
        uint64_t now_ns = 123456789123456789;
        msh_pace_init(&pace, rates[i], 64, now_ns);
        for (uint64_t wanted = 1; wanted <= 64; wanted++) {
            now_ns += msh_pace_wait_ns(&pace, wanted, now_ns);
            assert_true(msh_pace_available(&pace, now_ns) >= wanted);
            assert_int_equal(msh_pace_wait_ns(&pace, wanted, now_ns), 0);
            msh_pace_spend(&pace, wanted, now_ns);
        }
    }
}

static void test_polled_often_a_slow_rate_adds_up(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 1, 10, 0);
    for (uint64_t now_ns = 0; now_ns <= 3 * SECOND; now_ns += 1000)
        msh_pace_available(&pace, now_ns);
    assert_int_equal(msh_pace_available(&pace, 3 * SECOND), 3);
}

static void test_rate_zero_never_and_unlimited_always(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 0, 10, 0);
    assert_int_equal(msh_pace_available(&pace, 100 * SECOND), 0);
    assert_true(msh_pace_wait_ns(&pace, 1, 100 * SECOND) == UINT64_MAX);
    msh_pace_set_rate(&pace, UINT64_MAX, 10, 100 * SECOND);
    msh_pace_spend(&pace, 1000000, 100 * SECOND);
    assert_true(msh_pace_available(&pace, 100 * SECOND) == UINT64_MAX);
    assert_int_equal(msh_pace_wait_ns(&pace, 1000, 100 * SECOND), 0);
}

static void test_a_pause_earns_nothing_and_savings_survive_to_the_new_burst(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 1000, 100, 0);
    assert_int_equal(msh_pace_available(&pace, SECOND), 100);
    msh_pace_set_rate(&pace, 0, 50, SECOND);
    assert_int_equal(msh_pace_available(&pace, 10 * SECOND), 0);
    msh_pace_set_rate(&pace, 10, 80, 10 * SECOND);
    assert_int_equal(msh_pace_available(&pace, 10 * SECOND), 50);
}

static void test_a_new_rate_counts_from_now_on(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 10, 1000, 0);
    msh_pace_set_rate(&pace, 1000, 1000, SECOND);
    assert_int_equal(msh_pace_available(&pace, SECOND), 10);
    assert_int_equal(msh_pace_available(&pace, SECOND + SECOND / 10), 110);
}

static void test_a_clock_stepping_back_neither_earns_nor_loses(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 1000, 100, 10 * SECOND);
    assert_int_equal(msh_pace_available(&pace, 9 * SECOND), 0);
    assert_int_equal(msh_pace_available(&pace, 10 * SECOND + SECOND / 100), 10);
}

static void test_burst_zero_is_one_and_caps_the_wish(void **state)
{
    (void)state;
    MshPace pace;
    msh_pace_init(&pace, 1, 0, 0);
    assert_true(msh_pace_wait_ns(&pace, 1000, 0) <= SECOND + 1);
    assert_int_equal(msh_pace_available(&pace, 50 * SECOND), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_starts_empty_and_fills_at_the_rate),
        cmocka_unit_test(test_debt_delays_what_follows),
        cmocka_unit_test(test_after_the_wait_the_tokens_are_there),
        cmocka_unit_test(test_polled_often_a_slow_rate_adds_up),
        cmocka_unit_test(test_rate_zero_never_and_unlimited_always),
        cmocka_unit_test(test_a_pause_earns_nothing_and_savings_survive_to_the_new_burst),
        cmocka_unit_test(test_a_new_rate_counts_from_now_on),
        cmocka_unit_test(test_a_clock_stepping_back_neither_earns_nor_loses),
        cmocka_unit_test(test_burst_zero_is_one_and_caps_the_wish),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
