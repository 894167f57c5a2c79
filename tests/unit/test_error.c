/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "memshare/error.h"

static void test_writes_the_line_and_returns_the_code(void **state)
{
    (void)state;
    MshError error = {0};
    assert_int_equal(msh_error_set(&error, -EINVAL, "%s: %d", "what", 7), -EINVAL);
    assert_string_equal(error.text, "what: 7");
}

static void test_without_an_error_returns_the_code(void **state)
{
    (void)state;
    assert_int_equal(msh_error_set(NULL, -ENOENT, "nobody reads this"), -ENOENT);
}

static void test_a_long_line_is_cut_and_ended(void **state)
{
    (void)state;
    struct {
        MshError error;
        char guard;
    } box = {.guard = 'g'};
    msh_error_set(&box.error, -1, "%1000s", "x");
    assert_int_equal(strlen(box.error.text), MSH_ERROR_BYTES - 1);
    assert_int_equal(box.guard, 'g');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes_the_line_and_returns_the_code),
        cmocka_unit_test(test_without_an_error_returns_the_code),
        cmocka_unit_test(test_a_long_line_is_cut_and_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
