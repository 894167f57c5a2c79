/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "segment.h"

static MshSegment *segment;
static _Alignas(4096) uint8_t page[MSH_PAGE_BYTES];

static int new_segment(void **state)
{
    (void)state;
    MshError error = {0};
    int r = msh_segment_new("unit", 7, MSH_SEGMENT_SLOTS, &segment, &error);
    if (r < 0)
        print_error("%s\n", error.text);
    return r;
}

static int free_segment(void **state)
{
    (void)state;
    segment = msh_segment_free(segment);
    return 0;
}

static void add_slot(uint8_t fill)
{
    uint32_t position, expected = msh_segment_used_slots(segment);
    memset(page, fill, sizeof(page));
    assert_int_equal(msh_segment_stage(segment, page, &position), 0);
    assert_int_equal(position, expected);
    assert_int_equal(msh_segment_commit(segment), 0);
    assert_int_equal(msh_segment_used_slots(segment), expected + 1);
}

static int open_readonly(void)
{
    int fd = msh_segment_open_readonly(segment);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    return fd;
}

static int reopen(int fd, int flags)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, flags | O_CLOEXEC);
}

static struct stat status_of(int fd)
{
    struct stat status;
    assert_int_equal(fstat(fd, &status), 0);
    return status;
}

static void test_committed_bytes_are_what_was_staged(void **state)
{
    (void)state;
    int fd = open_readonly();
    for (uint8_t i = 1; i <= 20; i++)
        add_slot(i);
    uint8_t *view = mmap(NULL, 20 * MSH_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    for (uint8_t i = 1; i <= 20; i++) {
        memset(page, i, sizeof(page));
        assert_memory_equal(view + (i - 1) * MSH_PAGE_BYTES, page, MSH_PAGE_BYTES);
    }
    assert_int_equal(msh_segment_id(segment), 7);
    munmap(view, 20 * MSH_PAGE_BYTES);
    close(fd);
}

static void test_I3_the_file_has_no_hole_and_ends_soon_after_the_frontier(void **state)
{
    (void)state;
    uint32_t position;
    int fd = open_readonly();
    assert_int_equal(status_of(fd).st_size, 0);
    for (uint32_t i = 1; i <= 80; i++) {
        add_slot((uint8_t)i);
        struct stat status = status_of(fd);
        assert_in_range(status.st_size, i * MSH_PAGE_BYTES, (i + 31) * MSH_PAGE_BYTES);
        assert_int_equal(status.st_blocks, status.st_size / 512);
        /* staged, not committed: nowhere in the file */
        memset(page, 0xee, sizeof(page));
        assert_int_equal(msh_segment_stage(segment, page, &position), 0);
        assert_int_equal(status_of(fd).st_blocks, status.st_blocks);
        uint8_t *view = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
        assert_ptr_not_equal(view, MAP_FAILED);
        for (off_t at = i * MSH_PAGE_BYTES; at < status.st_size; at++)
            assert_int_equal(view[at], 0);
        munmap(view, (size_t)status.st_size);
    }
    close(fd);
}

/* Where the broker may write to the segment. */
static uint8_t *writable_mapping(void)
{
    char line[512];
    uintptr_t start = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(maps);
    while (!start && fgets(line, sizeof(line), maps))
        if (strstr(line, "rw-s") && strstr(line, "memshare-unit-7"))
            start = strtoul(line, NULL, 16);
    fclose(maps);
    assert_int_not_equal(start, 0);
    return (uint8_t *)start;
}

/* As the kernel does when it is short of memory: between the time when a slot is made ready and the
 * time when it is filled. Who filled it would wait for ever if the fault were somebody's to answer. */
static void test_pages_taken_out_of_the_mapping_come_back(void **state)
{
    (void)state;
    int fd = open_readonly();
    add_slot(1);
    alarm(60);
    for (uint8_t i = 2; i <= 100; i++) {
        assert_int_equal(madvise(writable_mapping(), MSH_SEGMENT_BYTES, MADV_DONTNEED), 0);
        add_slot(i);
    }
    alarm(0);
    for (uint8_t i = 1; i <= 100; i++) {
        uint8_t bytes[MSH_PAGE_BYTES];
        memset(page, i, sizeof(page));
        assert_int_equal(pread(fd, bytes, sizeof(bytes), (i - 1) * MSH_PAGE_BYTES), sizeof(bytes));
        assert_memory_equal(bytes, page, MSH_PAGE_BYTES);
    }
    close(fd);
}

static uint64_t faults(void)
{
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    return (uint64_t)usage.ru_minflt;
}

static void test_slots_that_are_ready_are_filled_without_a_fault(void **state)
{
    (void)state;
    add_slot(1); /* makes more ready */
    add_slot(2);
    uint64_t before = faults();
    for (uint8_t i = 3; i <= 16; i++)
        add_slot(i);
    assert_int_equal(faults(), before);
}

/* The limit stands for a host that has room for so much and no more. */
static void test_slots_are_filled_to_the_last_there_is_room_for(void **state)
{
    (void)state;
    struct rlimit before, small;
    uint32_t position, filled = 0;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 21 * MSH_PAGE_BYTES;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    memset(page, 1, sizeof(page));
    while (msh_segment_stage(segment, page, &position) == 0 && msh_segment_commit(segment) == 0)
        filled++;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(filled, 21);
    assert_int_equal(msh_segment_used_slots(segment), 21);
    assert_int_equal(msh_segment_stage(segment, page, &position), -ENOSPC);
}

static void test_I3_staging_again_touches_no_slot(void **state)
{
    (void)state;
    uint32_t position;
    add_slot(1);
    int fd = open_readonly();
    uint8_t *view = mmap(NULL, 2 * MSH_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    memset(page, 2, sizeof(page));
    assert_int_equal(msh_segment_stage(segment, page, &position), 0);
    memset(page, 3, sizeof(page)); /* the sender rewrites its page: ours is a copy */
    assert_int_equal(((const uint8_t *)msh_segment_staged(segment))[100], 2);
    assert_int_equal(msh_segment_stage(segment, page, &position), 0);
    assert_int_equal(position, 1);
    assert_int_equal(view[0], 1);
    assert_int_equal(msh_segment_commit(segment), 0);
    assert_int_equal(view[0], 1);
    assert_int_equal(view[MSH_PAGE_BYTES], 3);
    munmap(view, 2 * MSH_PAGE_BYTES);
    close(fd);
}

/* What a client of another uid tries; returns the first thing that worked, or NULL. */
static const char *attack_as_client(int fd)
{
    if (write(fd, "x", 1) >= 0 || pwrite(fd, "x", 1, 0) >= 0)
        return "write";
    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
        return "map writable";
    void *view = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (view == MAP_FAILED)
        return "not even reading";
    if (mprotect(view, 4096, PROT_READ | PROT_WRITE) == 0)
        return "mprotect";
    if (madvise(view, 4096, MADV_REMOVE) == 0)
        return "punch by madvise";
    if (ftruncate(fd, 1 << 20) == 0 || ftruncate(fd, 0) == 0)
        return "resize";
    if (fallocate(fd, 0, 1 << 20, 4096) == 0)
        return "grow by fallocate";
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0)
        return "punch";
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == 0)
        return "seal";
    if (fchmod(fd, 0666) == 0)
        return "chmod";
    if (reopen(fd, O_RDWR) >= 0 || reopen(fd, O_WRONLY) >= 0 || reopen(fd, O_RDWR | O_TRUNC) >= 0)
        return "reopen for writing";
    return NULL;
}

static void test_I3_a_client_of_another_uid_can_only_read(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("needs root, to become another user\n");
        skip();
    }
    add_slot(1);
    int fd = open_readonly();
    off_t size_bytes = status_of(fd).st_size;
    int report[2];
    char text[64] = {0};
    assert_int_equal(pipe(report), 0);
    pid_t child = fork();
    if (child == 0) {
        const char *worked = "setuid failed";
        if (setgid(65534) == 0 && setuid(65534) == 0) {
            /* Else /proc/self/fd would be closed to us, and hide what the file's mode must deny. */
            prctl(PR_SET_DUMPABLE, 1);
            int anybodys = open("/dev/null", O_RDONLY);
            worked = reopen(anybodys, O_WRONLY) < 0 ? "no /proc" : attack_as_client(fd);
        }
        if (worked)
            _exit(write(report[1], worked, strlen(worked)) < 0);
        _exit(0);
    }
    close(report[1]);
    assert_true(read(report[0], text, sizeof(text) - 1) >= 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_string_equal(text, "");
    assert_int_equal(status_of(fd).st_size, size_bytes);
    close(report[0]);
    close(fd);
}

/* Root can open anything; the seals hold all the same. */
static void assert_sealed_against_writing(int fd)
{
    int writable = reopen(fd, O_RDWR);
    if (writable < 0) {
        assert_int_equal(errno, EACCES); /* not root: the mode has stopped us */
        return;
    }
    assert_int_equal(pwrite(writable, "x", 1, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0), MAP_FAILED);
    assert_int_equal(errno, EPERM);
    void *view = mmap(NULL, 4096, PROT_READ, MAP_SHARED, writable, 0);
    assert_ptr_not_equal(view, MAP_FAILED);
    assert_int_equal(mprotect(view, 4096, PROT_READ | PROT_WRITE), -1);
    assert_int_equal(madvise(view, 4096, MADV_REMOVE), -1);
    munmap(view, 4096);
    assert_int_equal(ftruncate(writable, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fallocate(writable, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fallocate(writable, FALLOC_FL_ZERO_RANGE, 0, 4096), -1);
    close(writable);
}

static void test_I3_root_cannot_write_through_a_fresh_descriptor(void **state)
{
    (void)state;
    add_slot(0x42);
    int fd = open_readonly();
    assert_sealed_against_writing(fd);
    uint8_t byte = 0;
    assert_int_equal(pread(fd, &byte, 1, 0), 1);
    assert_int_equal(byte, 0x42);
    add_slot(0x43); /* filling goes on */
    close(fd);
}

static void test_I4_a_full_segment_is_final(void **state)
{
    (void)state;
    uint32_t position = 77;
    for (uint32_t i = 0; i < MSH_SEGMENT_SLOTS; i++)
        add_slot((uint8_t)i);
    assert_int_equal(msh_segment_stage(segment, page, &position), -ENOSPC);
    assert_int_equal(position, 77);
    assert_int_equal(msh_segment_commit(segment), -ENOSPC);
    int fd = open_readonly();
    assert_int_equal(status_of(fd).st_size, MSH_SEGMENT_BYTES);
    assert_int_equal(fcntl(fd, F_GET_SEALS) & 0x1f,
                     F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | 0x10 /* FUTURE_WRITE */);
    assert_sealed_against_writing(fd);
    close(fd);
}

static void test_I4_memory_outlives_the_segment_while_mapped(void **state)
{
    (void)state;
    add_slot(9);
    int fd = open_readonly();
    uint8_t *view = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    segment = msh_segment_free(segment);
    assert_int_equal(view[4095], 9);
    munmap(view, 4096);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, new_segment, free_segment)
    const struct CMUnitTest tests[] = {
        TEST(test_committed_bytes_are_what_was_staged),
        TEST(test_pages_taken_out_of_the_mapping_come_back),
        TEST(test_slots_that_are_ready_are_filled_without_a_fault),
        TEST(test_I3_the_file_has_no_hole_and_ends_soon_after_the_frontier),
        TEST(test_slots_are_filled_to_the_last_there_is_room_for),
        TEST(test_I3_staging_again_touches_no_slot),
        TEST(test_I3_a_client_of_another_uid_can_only_read),
        TEST(test_I3_root_cannot_write_through_a_fresh_descriptor),
        TEST(test_I4_a_full_segment_is_final),
        TEST(test_I4_memory_outlives_the_segment_while_mapped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
