/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rebuilds that come to nothing. I/O that begins when one has been decided on: whether anything is pinned is asked again
 * when the pages are protected, and then nothing is copied. Pages that could not be put in place: their copies are gone
 * when they have become something else. As root.
 *
 * Linked with --wrap=ioctl and mremap.
 */
#include "unit.h"

#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "engine.h"

enum { PAGES = 64, PASSES = 12 };

static uint8_t *pages;
static _Atomic bool has_io, is_protected;

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    int result = __real_ioctl(fd, request, argument);
    if (request == UFFDIO_WRITEPROTECT && result == 0)
        is_protected = true; /* nothing here takes it off again but the end of a rebuild */
    if (request == UFFDIO_UNREGISTER)
        is_protected = false;
    return result;
}

/* An oracle of a host whose device begins between the decision and the window. */
static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return !has_io || !is_protected;
}

static MshStats pass(MshEngine *engine, unsigned count)
{
    MshError error = {0};
    MshStats stats;
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(msh_engine_scan_once(engine, &error), 0);
    msh_engine_stats(engine, &stats);
    return stats;
}

static unsigned fails;       /* so many mremaps onto the pages, */
static unsigned fails_aside; /* and so many away from them */

static bool is_ours(const void *address)
{
    return (const uint8_t *)address >= pages && (const uint8_t *)address < pages + PAGES * MSH_PAGE_BYTES;
}

void *__real_mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...);
void *__wrap_mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...);

void *__wrap_mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...)
{
    void *target = NULL;
    va_list arguments;
    va_start(arguments, flags);
    if (flags & MREMAP_FIXED)
        target = va_arg(arguments, void *);
    va_end(arguments);
    unsigned *left = is_ours(target) ? &fails : is_ours(address) ? &fails_aside : NULL;
    if (!left || *left == 0)
        return __real_mremap(address, old_bytes, new_bytes, flags, target);
    --*left;
    errno = ENOMEM;
    return MAP_FAILED;
}

static void test_I1_io_that_begins_late_keeps_its_pages(void **state)
{
    (void)state;
    MshError error = {0};
    MshEngine *engine;
    const MshConfig config = {.group = "unit",
                              .mode = MSH_MODE_CONTENT,
                              .scan_rate_pages = MSH_RATE_UNLIMITED,
                              .nothing_pinned = nothing_pinned};
    pages = mmap(NULL, PAGES * MSH_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    memset(pages, 1, PAGES * MSH_PAGE_BYTES); /* one content only: two may have the same hash of 8 bits */
    assert_int_equal(msh_engine_new(&config, &engine, &error), 0);
    assert_int_equal(msh_engine_register(engine, pages, PAGES * MSH_PAGE_BYTES, &error), 0);
    assert_int_equal(pass(engine, PASSES).shared_pages, PAGES);

    has_io = true;
    for (unsigned page = 0; page < PAGES; page += 2)
        pages[page * MSH_PAGE_BYTES + 7] = 77;
    MshStats stats = pass(engine, PASSES);
    assert_int_equal(stats.broken_pages, PAGES / 2);
    assert_int_equal(stats.rebuilt_pages, 0);

    has_io = false;
    assert_true(pass(engine, PASSES).rebuilt_pages >= PAGES / 2);
    for (unsigned page = 0; page < PAGES; page++) {
        assert_int_equal(pages[page * MSH_PAGE_BYTES + 7], page % 2 ? 1 : 77);
        assert_int_equal(pages[page * MSH_PAGE_BYTES + 8], 1);
    }
    msh_engine_free(engine);
    munmap(pages, PAGES * MSH_PAGE_BYTES);
}

static int rebuild(MshEngine *engine, uint32_t page)
{
    uint32_t rebuilt;
    MshSlot returned[MSH_REBUILD_PAGES];
    size_t count;
    return msh_rebuild_some(&engine->rebuild, engine->memory.region[0], &page, 1, NULL, &rebuilt, returned, &count);
}

/* All pages are alike. */
static MshEngine *engine_of_ones(void)
{
    MshError error = {0};
    MshEngine *engine;
    const MshConfig config = {.mode = MSH_MODE_CONTENT};
    has_io = false;
    pages = mmap(NULL, PAGES * MSH_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    memset(pages, 1, PAGES * MSH_PAGE_BYTES);
    assert_int_equal(msh_engine_new(&config, &engine, &error), 0);
    assert_int_equal(msh_engine_register(engine, pages, PAGES * MSH_PAGE_BYTES, &error), 0);
    return engine;
}

static void test_I1_a_copy_that_was_not_put_in_place_is_gone(void **state)
{
    (void)state;
    MshEngine *engine = engine_of_ones();
    assert_int_equal(pass(engine, PASSES).shared_pages, PAGES);

    fails = 1;
    assert_int_equal(rebuild(engine, 0), -ENOMEM);
    assert_int_equal(fails, 0);
    memset(pages, 0, MSH_PAGE_BYTES);
    assert_int_equal(rebuild(engine, 0), 0);
    for (unsigned at = 0; at < PAGES * MSH_PAGE_BYTES; at++)
        assert_int_equal(pages[at], at >= MSH_PAGE_BYTES);
    assert_null(msh_engine_free(engine));
    munmap(pages, PAGES * MSH_PAGE_BYTES);
}

static void test_I12_no_page_is_mapped_before_there_is_a_way_back(void **state)
{
    (void)state;
    MshEngine *engine = engine_of_ones();
    fails_aside = UINT_MAX;
    assert_int_equal(pass(engine, PASSES).shared_pages, 0);
    assert_null(engine->memory.region[0]->twin);

    fails_aside = 0;
    assert_int_equal(pass(engine, PASSES).shared_pages, PAGES);
    assert_non_null(engine->memory.region[0]->twin);
    assert_int_equal(rebuild(engine, 1), 0);
    assert_null(msh_engine_free(engine));
    for (unsigned at = 0; at < PAGES * MSH_PAGE_BYTES; at++)
        assert_int_equal(pages[at], 1);
    munmap(pages, PAGES * MSH_PAGE_BYTES);
}

static unsigned count_mappings(const uint8_t *start, size_t length_bytes)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    unsigned long from, to;
    unsigned count = 0;
    assert_non_null(maps);
    while (fscanf(maps, "%lx-%lx%*[^\n]", &from, &to) == 2)
        count += from < (uintptr_t)start + length_bytes && to > (uintptr_t)start;
    fclose(maps);
    return count;
}

/* Were it divided for tracking before anything was written to it, its parts would have anon_vmas of their own, and would
 * never be joined again. */
static void test_I12_memory_that_was_only_read_at_first_is_one_mapping_again(void **state)
{
    (void)state;
    enum { BLOCKS = 4, BLOCK_PAGES = MSH_HUGE_PAGE_BYTES / MSH_PAGE_BYTES };
    void *const remote = (void *)0x7e9000000000; /* beside nothing that has an anon_vma */
    size_t length_bytes = BLOCKS * (size_t)MSH_HUGE_PAGE_BYTES;
    MshError error = {0};
    MshEngine *engine;
    const MshConfig config = {.mode = MSH_MODE_CONTENT, .nothing_pinned = nothing_pinned};
    has_io = false;
    uint8_t *memory = mmap(remote, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    madvise(memory, length_bytes, MADV_NOHUGEPAGE);
    assert_int_equal(msh_engine_new(&config, &engine, &error), 0);
    assert_int_equal(msh_engine_register(engine, memory, length_bytes, &error), 0);
    assert_int_equal(*(volatile uint8_t *)memory, 0);
    pass(engine, PASSES);
    for (unsigned block = 0; block < BLOCKS; block++)
        for (unsigned page = 40; page < 80; page += 3)
            memset(memory + (block * BLOCK_PAGES + page) * MSH_PAGE_BYTES, (int)page, MSH_PAGE_BYTES);
    assert_true(pass(engine, PASSES).shared_pages > 0);
    assert_null(msh_engine_free(engine));
    assert_int_equal(count_mappings(memory, length_bytes), 1);
    munmap(memory, length_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_I1_io_that_begins_late_keeps_its_pages),
        cmocka_unit_test(test_I12_memory_that_was_only_read_at_first_is_one_mapping_again),
        cmocka_unit_test(test_I12_no_page_is_mapped_before_there_is_a_way_back),
        cmocka_unit_test(test_I1_a_copy_that_was_not_put_in_place_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
