/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * I/O that begins when a rebuild has been decided on: whether anything is pinned is asked again when the pages are
 * protected, and then nothing is copied. As root.
 */
#include "unit.h"

#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>

#include "memshare/memshare.h"

enum { PAGES = 64, CONTENTS = 4, PASSES = 12 };

static uint8_t *pages;
static _Atomic bool has_io;

/* Whether a window is open over the memory: missing pages are somebody's. */
static bool is_in_window(void)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    char line[512];
    bool is_ours = false, found = false;
    unsigned long start, end;
    assert_non_null(file);
    while (!found && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            is_ours = start < (uintptr_t)pages + PAGES * MSH_PAGE_BYTES && end > (uintptr_t)pages;
        found = is_ours && strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " um");
    }
    fclose(file);
    return found;
}

/* An oracle of a host whose device begins between the decision and the window. */
static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return !has_io || !is_in_window();
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
    for (unsigned page = 0; page < PAGES; page++)
        memset(pages + page * MSH_PAGE_BYTES, 1 + (int)(page % CONTENTS), MSH_PAGE_BYTES);
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
        assert_int_equal(pages[page * MSH_PAGE_BYTES + 7], page % 2 ? 1 + page % CONTENTS : 77);
        assert_int_equal(pages[page * MSH_PAGE_BYTES + 8], 1 + page % CONTENTS);
    }
    msh_engine_free(engine);
    munmap(pages, PAGES * MSH_PAGE_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_I1_io_that_begins_late_keeps_its_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
