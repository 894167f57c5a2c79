/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "memshare/stats.h"

static void test_modes_go_there_and_back(void **state)
{
    (void)state;
    static const char *const names[] = {"off", "zero", "content"};
    for (uint32_t i = 0; i < 3; i++) {
        MshMode mode;
        assert_string_equal(msh_mode_name(i), names[i]);
        assert_int_equal(msh_mode_parse(names[i], &mode), 0);
        assert_int_equal(mode, i);
    }
    assert_null(msh_mode_name(3));
    assert_null(msh_mode_name(UINT32_MAX));
}

static void test_a_wrong_mode_leaves_the_output(void **state)
{
    (void)state;
    static const char *const wrong[] = {"", "OFF", "zero ", "contents", "on"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        MshMode mode = MSH_MODE_ZERO;
        assert_int_equal(msh_mode_parse(wrong[i], &mode), -EINVAL);
        assert_int_equal(mode, MSH_MODE_ZERO);
    }
}

static void test_states_are_spelled_as_documented(void **state)
{
    (void)state;
    static const char *const names[] = {
        "starting", "running", "paused", "draining", "off", "refused", "waiting-for-broker"};
    for (uint32_t i = 0; i < 7; i++)
        assert_string_equal(msh_state_name(i), names[i]);
    assert_null(msh_state_name(7));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes_go_there_and_back),
        cmocka_unit_test(test_a_wrong_mode_leaves_the_output),
        cmocka_unit_test(test_states_are_spelled_as_documented),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
