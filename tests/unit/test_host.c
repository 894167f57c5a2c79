/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host.h"

static void test_only_file_systems_known_to_pin_are_allowed(void **state)
{
    (void)state;
    static const unsigned long known[] = {0xef53, 0x58465342, 0x9123683e, 0x01021994, 0x65735546};
    static const unsigned long unknown[] = {
        0x6969,     /* NFS */
        0x00c36400, /* Ceph */
        0x01021997, /* 9p */
        0xfe534d42, /* SMB */
        0x794c7630, /* overlay: whatever is below it */
        0,          ~0ul,
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        assert_true(msh_host_direct_io_pins(known[i]));
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        assert_false(msh_host_direct_io_pins(unknown[i]));
}

static void test_locked_memory_is_read_from_its_own_line(void **state)
{
    (void)state;
    assert_int_equal(msh_host_locked_kb("Name:\tVmLck:\nVmPeak:\t 9 kB\nVmLck:\t    4096 kB\n"),
                     4096);
    assert_int_equal(msh_host_locked_kb("Name:\tqemu\nVmLck:\t       0 kB\nVmPin:\t 7 kB\n"), 0);
    assert_int_equal(msh_host_locked_kb("Name:\tkthread\n"), 0);
}

static void test_nested_guests_are_followed_since_6_13(void **state)
{
    (void)state;
    assert_true(msh_host_nested_pins("6.13.0-rc1"));
    assert_true(msh_host_nested_pins("6.18.44-amd64"));
    assert_true(msh_host_nested_pins("7.0"));
    assert_false(msh_host_nested_pins("6.12.57+deb13-amd64"));
    assert_false(msh_host_nested_pins("5.19.1"));
    assert_false(msh_host_nested_pins("unknown"));
}

static void test_a_plain_process_has_nothing_in_the_way(void **state)
{
    (void)state;
    MshHostFacts facts;
    assert_int_equal(msh_host_facts(&facts, NULL), 0);
    assert_false(facts.locked);
    assert_false(facts.vhost_scsi);
    assert_string_equal(facts.unpinned_io, "");
}

/* Not libc's: where a sanitizer has replaced that, it locks nothing. */
static long lock(void *memory, size_t length_bytes)
{
    return syscall(SYS_mlock, memory, length_bytes);
}

static void test_locked_memory_of_more_than_a_pool_of_keys_is_seen(void **state)
{
    (void)state;
    MshHostFacts facts;
    size_t length_bytes = 2u << 20;
    void *memory =
        mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    assert_int_equal(lock(memory, 64u << 10), 0);
    assert_int_equal(msh_host_facts(&facts, NULL), 0);
    assert_false(facts.locked);
    assert_int_equal(lock(memory, length_bytes), 0);
    assert_int_equal(msh_host_facts(&facts, NULL), 0);
    assert_true(facts.locked);
    munmap(memory, length_bytes);
}

/* O_DIRECT on a pipe means packets, not I/O. */
static void test_a_packet_pipe_is_no_direct_io(void **state)
{
    (void)state;
    MshHostFacts facts;
    int ends[2];
    assert_int_equal(pipe2(ends, O_DIRECT | O_CLOEXEC), 0);
    assert_int_equal(msh_host_facts(&facts, NULL), 0);
    assert_string_equal(facts.unpinned_io, "");
    assert_false(msh_host_pins().block_layer);
    close(ends[0]);
    close(ends[1]);
}

static void test_which_devices_may_pin(void **state)
{
    (void)state;
    static const char *const unknown[] = {"/dev/vfio/12", "/dev/vhost-scsi", "/dev/bus/usb/001/002",
                                          "/dev/something-new"};
    static const char *const disks[] = {"/dev/sg0", "/dev/bsg/0:0:0:0", "/dev/ng0n1"};
    static const char *const copying[] = {"/dev/kvm", "/dev/net/tun", "/dev/vhost-net",
                                          "/dev/shm/file"};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        assert_int_equal(msh_host_device_pinner(unknown[i], false), MSH_PINNER_UNKNOWN);
    for (size_t i = 0; i < sizeof(disks) / sizeof(disks[0]); i++)
        assert_int_equal(msh_host_device_pinner(disks[i], false), MSH_PINNER_BLOCK_LAYER);
    for (size_t i = 0; i < sizeof(copying) / sizeof(copying[0]); i++)
        assert_int_equal(msh_host_device_pinner(copying[i], false), MSH_PINNER_NONE);
    assert_int_equal(msh_host_device_pinner("/dev/mapper/vg-a", true), MSH_PINNER_BLOCK_LAYER);
}

static void test_a_ring_pins_when_it_keeps_files_or_buffers(void **state)
{
    (void)state;
    assert_true(msh_host_ring_holds_nothing("SQEs:\t0\nUserFiles:\t0\nUserBufs:\t0\nPollList:\n"));
    assert_false(msh_host_ring_holds_nothing("SQEs:\t0\nUserFiles:\t1\nUserBufs:\t0\n"));
    assert_false(msh_host_ring_holds_nothing("SQEs:\t0\nUserFiles:\t0\nUserBufs:\t1\n"));
    assert_false(msh_host_ring_holds_nothing("SQEs:\t0\n")); /* busy: not told */
}

static MshPins pins_with(int fd)
{
    MshPins pins = msh_host_pins();
    assert_int_equal(close(fd), 0);
    return pins;
}

static bool nobody_pins(void)
{
    MshPins pins = msh_host_pins();
    return !pins.block_layer && !pins.kvm && !pins.unknown;
}

static void test_what_is_open_may_pin(void **state)
{
    (void)state;
    struct io_uring_params parameters = {0};
    char path[] = "/tmp/memshare-test-XXXXXX";
    assert_true(nobody_pins());
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_true(nobody_pins());
    assert_int_equal(fcntl(file, F_SETFL, O_DIRECT), 0);
    assert_int_equal(unlink(path), 0);
    MshPins pins = pins_with(file);
    assert_true(pins.block_layer && !pins.unknown);
    int ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
    assert_true(ring >= 0);
    assert_true(nobody_pins());
    file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &file, 1), 0);
    close(file);
    pins = pins_with(ring);
    assert_true(pins.unknown && !pins.block_layer);
    assert_true(nobody_pins());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_file_systems_known_to_pin_are_allowed),
        cmocka_unit_test(test_locked_memory_is_read_from_its_own_line),
        cmocka_unit_test(test_nested_guests_are_followed_since_6_13),
        cmocka_unit_test(test_a_plain_process_has_nothing_in_the_way),
        cmocka_unit_test(test_locked_memory_of_more_than_a_pool_of_keys_is_seen),
        cmocka_unit_test(test_which_devices_may_pin),
        cmocka_unit_test(test_a_ring_pins_when_it_keeps_files_or_buffers),
        cmocka_unit_test(test_what_is_open_may_pin),
        cmocka_unit_test(test_a_packet_pipe_is_no_direct_io),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
