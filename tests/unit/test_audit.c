/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an audit finds: nothing in a group that is as it should be, and what was damaged.
 */
#include "unit.h"

#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "grants.h"
#include "group_fixture.h"

static MshAudit found;

static int start_afresh(void **state)
{
    memset(&found, 0, sizeof(found));
    return start_unlimited(state);
}

static void test_nothing_is_found_in_a_group_as_it_should_be(void **state)
{
    (void)state;
    MshSlot slot;
    for (uint32_t number = 0; number < 20; number++)
        slot = share(a, b, number);
    assert_int_equal(msh_group_release(a, slot), 0);
    assert_int_equal(msh_group_release(b, slot), 0);
    b = msh_group_leave(b);
    assert_int_equal(msh_group_audit(group, &found), 0);
    if (found.problems)
        fail_msg("%s", found.texts[0]);
    assert_int_equal(found.slots, 20);
    assert_int_equal(found.grants, 19);
    assert_int_equal(found.entries, 20);
    assert_int_equal(found.hashed, 20);
}

/* The group's own mapping of its first segment. */
static uint8_t *store(void)
{
    char line[512];
    unsigned long begin = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    while (begin == 0 && fgets(line, sizeof(line), maps)) {
        if (strstr(line, "rw-s") && strstr(line, "memshare-unit-0"))
            assert_int_equal(sscanf(line, "%lx", &begin), 1);
    }
    fclose(maps);
    assert_int_not_equal(begin, 0);
    return (uint8_t *)begin;
}

static void test_a_slot_whose_bytes_have_changed_is_found(void **state)
{
    (void)state;
    share(a, b, 1);
    share(a, b, 2);
    page_of(3);
    memcpy(store() + MSH_PAGE_BYTES, page, MSH_PAGE_BYTES);
    assert_int_equal(msh_group_audit(group, &found), 0);
    assert_int_equal(found.problems, 1);
    assert_string_equal(found.texts[0],
                        "slot 1 of segment 0: its bytes are not those that were shared");
}

static void test_grants_that_nobody_holds_are_found(void **state)
{
    (void)state;
    MshGrants *grants;
    MshHolder *held, *lost;
    MshSlot slot;
    assert_int_equal(msh_grants_new(&grants), 0);
    assert_int_equal(msh_holder_new(grants, &held), 0);
    assert_int_equal(msh_holder_new(grants, &lost), 0);
    assert_int_equal(msh_grants_add_segment(grants, 2), 0);
    assert_int_equal(msh_grants_fill(grants, 2, &slot), 0);
    assert_int_equal(msh_grants_fill(grants, 2, &slot), 0);
    assert_int_equal(msh_holder_take(held, slot), 0);
    assert_int_equal(msh_holder_take(lost, slot), 0);
    msh_grants_audit(grants, (MshHolder *[]){held, lost}, 2, &found);
    assert_int_equal(found.problems, 0);
    msh_grants_audit(grants, &held, 1, &found);
    assert_int_equal(found.problems, 1);
    assert_string_equal(found.texts[0],
                        "slot 1 of segment 2: 2 grants counted, members hold 1");
    msh_holder_free(held, NULL, NULL);
    msh_holder_free(lost, NULL, NULL);
    msh_grants_free(grants);
}

static void test_all_problems_are_counted_and_the_first_told(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MSH_AUDIT_TEXTS + 3; i++)
        msh_audit_compare(&found, "things", i, i + 1);
    msh_audit_compare(&found, "others", 7, 7);
    assert_int_equal(found.problems, MSH_AUDIT_TEXTS + 3);
    assert_string_equal(found.texts[MSH_AUDIT_TEXTS - 1], "things: 15 counted, 16 found");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start_afresh, stop)
    const struct CMUnitTest tests[] = {
        TEST(test_nothing_is_found_in_a_group_as_it_should_be),
        TEST(test_a_slot_whose_bytes_have_changed_is_found),
        TEST(test_grants_that_nobody_holds_are_found),
        TEST(test_all_problems_are_counted_and_the_first_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
