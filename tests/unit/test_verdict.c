/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include <stdio.h>

#include "verdict.h"

static void test_nothing_in_the_way_allows_contents(void **state)
{
    (void)state;
    MshVerdict verdict = msh_verdict(&(MshHostFacts){0}, &(MshQemuFacts){0});
    assert_int_equal(verdict.ceiling, MSH_MODE_CONTENT);
    assert_string_equal(verdict.reason, "");
    assert_false(verdict.hold);
}

static void expect(MshHostFacts host, MshQemuFacts vm, MshMode ceiling, const char *part_of_reason)
{
    MshVerdict verdict = msh_verdict(&host, &vm);
    assert_int_equal(verdict.ceiling, ceiling);
    assert_non_null(strstr(verdict.reason, part_of_reason));
}

static void test_each_fact_limits_and_is_named(void **state)
{
    (void)state;
    MshHostFacts host = {0};
    MshQemuFacts vm = {0};
    expect((MshHostFacts){.overcommit_strict = true}, vm, MSH_MODE_OFF, "vm.overcommit_memory");
    expect((MshHostFacts){.locked = true}, vm, MSH_MODE_OFF, "locked");
    expect((MshHostFacts){.vhost_scsi = true}, vm, MSH_MODE_OFF, "vhost-scsi");
    expect((MshHostFacts){.unpinned_io = "/nfs/a"}, vm, MSH_MODE_OFF,
           "/nfs/a is open with O_DIRECT");
    expect(host, (MshQemuFacts){.mem_merge_off = true}, MSH_MODE_OFF, "mem-merge=off");
    expect(host, (MshQemuFacts){.replaying = true}, MSH_MODE_OFF, "replayed");
    expect(host, (MshQemuFacts){.confidential = true}, MSH_MODE_OFF, "confidential");
    /* QEMU switches merging off for such a guest: that is not what its owner should read. */
    expect(host, (MshQemuFacts){.confidential = true, .mem_merge_off = true}, MSH_MODE_OFF,
           "confidential");
    expect(host, (MshQemuFacts){.incoming = true}, MSH_MODE_OFF, "incoming migration");
    expect(host, (MshQemuFacts){.discards_disabled = true}, MSH_MODE_OFF, "discards are disabled");
    expect(host, (MshQemuFacts){.ram_refusal = "none of it"}, MSH_MODE_OFF, "none of it");
    expect(host, (MshQemuFacts){.virtio_mem = true}, MSH_MODE_ZERO, "virtio-mem");
    expect(host, (MshQemuFacts){.free_page_reporting = true}, MSH_MODE_ZERO, "free page reporting");
}

static void test_nested_guests_are_refused_where_kvm_does_not_pin(void **state)
{
    (void)state;
    MshHostFacts old = {.nested_unpinned = true};
    expect(old, (MshQemuFacts){.nesting = true}, MSH_MODE_OFF, "nested virtualisation");
    assert_int_equal(msh_verdict(&old, &(MshQemuFacts){0}).ceiling, MSH_MODE_CONTENT);
    assert_int_equal(msh_verdict(&(MshHostFacts){0}, &(MshQemuFacts){.nesting = true}).ceiling,
                     MSH_MODE_CONTENT);
}

static void test_a_refusal_goes_before_a_limit_to_zero_pages(void **state)
{
    (void)state;
    MshQemuFacts vm = {.virtio_mem = true, .free_page_reporting = true, .discards_disabled = true};
    expect((MshHostFacts){0}, vm, MSH_MODE_OFF, "discards are disabled");
}

static void test_a_background_snapshot_holds_and_does_not_limit(void **state)
{
    (void)state;
    MshVerdict verdict = msh_verdict(&(MshHostFacts){0}, &(MshQemuFacts){.needs_plain_ram = true});
    assert_true(verdict.hold);
    assert_int_equal(verdict.ceiling, MSH_MODE_CONTENT);
}

static void test_a_long_path_is_cut_and_leaves_room_for_the_reason(void **state)
{
    (void)state;
    MshHostFacts host = {0};
    memset(host.unpinned_io, 'x', sizeof(host.unpinned_io) - 1);
    expect(host, (MshQemuFacts){0}, MSH_MODE_OFF,
           "is open with O_DIRECT on a file system not known");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_in_the_way_allows_contents),
        cmocka_unit_test(test_each_fact_limits_and_is_named),
        cmocka_unit_test(test_nested_guests_are_refused_where_kvm_does_not_pin),
        cmocka_unit_test(test_a_refusal_goes_before_a_limit_to_zero_pages),
        cmocka_unit_test(test_a_background_snapshot_holds_and_does_not_limit),
        cmocka_unit_test(test_a_long_path_is_cut_and_leaves_room_for_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
