/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The walk while memory is unregistered under it, at a time of its own. */
#include "unit.h"

#include <sys/mman.h>

#include "scan.h"

enum { PAGES = 4 * MSH_SCAN_BLOCK_PAGES, STEP = MSH_SCAN_BLOCK_PAGES / 2 };

typedef struct Walk {
    MshScan scan;
    MshCounters counters;
    MshMemory memory;
    MshVisit visit;
} Walk;

static MshRegion *add_region(Walk *walk)
{
    MshError error = {0};
    MshRegion *region = NULL;
    uint8_t *pages = mmap(NULL, msh_pages_to_bytes(PAGES), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    memset(pages, 1, msh_pages_to_bytes(PAGES));
    if (msh_region_new(pages, msh_pages_to_bytes(PAGES), &region, &error) < 0 ||
        msh_memory_add(&walk->memory, region, &error) < 0)
        fail_msg("%s", error.text);
    return region;
}

static void remove_region(Walk *walk, MshRegion *region)
{
    msh_memory_remove(&walk->memory, region->base);
    munmap(region->base, msh_pages_to_bytes(PAGES));
    msh_region_free(region);
}

static void visit(Walk *walk)
{
    assert_int_equal(msh_scan_visit(&walk->scan, &walk->memory, STEP, &walk->visit), 0);
}

/* Over the first block, and half of it again, or so that the next visit would go back there. */
static void walk_slowly(Walk *walk, bool turn_back)
{
    walk->scan.now_ns = 1;
    while (walk->scan.cursor_frame < 2 * STEP)
        visit(walk);
    walk->scan.now_ns += 6000000000ull; /* that was slow */
    if (turn_back)
        visit(walk);
    assert_int_equal(msh_stretch_is_second(&walk->scan.stretch), turn_back);
}

static Walk *new_walk(void)
{
    Walk *walk = calloc(1, sizeof *walk);
    MshError error = {0};
    assert_non_null(walk);
    walk->scan.counters = &walk->counters;
    if (msh_pagemap_open(&walk->scan.pagemap, &error) < 0)
        fail_msg("%s", error.text);
    return walk;
}

static void finish(Walk *walk, MshRegion *left)
{
    walk->scan.now_ns++;
    bool was_seen[PAGES] = {false};
    do {
        visit(walk);
        if (walk->visit.region)
            assert_ptr_equal(walk->visit.region, left);
        for (uint32_t page = walk->visit.first; walk->visit.region && page < walk->visit.end; page++)
            was_seen[page] = true;
    } while (!walk->visit.is_pass_end);
    for (uint32_t page = 0; page < PAGES; page++)
        assert_true(was_seen[page]);
    remove_region(walk, left);
    msh_pagemap_close(&walk->scan.pagemap);
    free(walk->memory.region);
    free(walk);
}

static void test_what_is_looked_at_again_goes_in_the_midst_of_it(void **state)
{
    (void)state;
    Walk *walk = new_walk();
    MshRegion *first = add_region(walk), *second = add_region(walk);
    walk_slowly(walk, true);
    remove_region(walk, first);
    finish(walk, second);
}

static void test_what_was_to_be_looked_at_again_goes_before(void **state)
{
    (void)state;
    Walk *walk = new_walk();
    MshRegion *first = add_region(walk), *second = add_region(walk);
    walk_slowly(walk, false);
    remove_region(walk, first);
    finish(walk, second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_looked_at_again_goes_in_the_midst_of_it),
        cmocka_unit_test(test_what_was_to_be_looked_at_again_goes_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
