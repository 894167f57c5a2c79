/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Regions by frame number, their mappings as the kernel would join them, and kernels by release. */
#include "unit.h"

#include "memory.h"
#include "probe.h"

/* Far apart in the address space, so that only numbers can be wrong. */
static MshRegion region_of(uint32_t pages)
{
    static uintptr_t next = 1u << 30;
    next += 1ull << 40;
    return (MshRegion){.base = (uint8_t *)next, .pages = pages};
}

static void test_numbers_fill_the_first_gap(void **state)
{
    (void)state;
    MshMemory memory = {0};
    MshRegion a = region_of(10), b = region_of(5), c = region_of(7), d = region_of(5),
              e = region_of(6);
    assert_int_equal(msh_memory_add(&memory, &a, NULL), 0);
    assert_int_equal(msh_memory_add(&memory, &b, NULL), 0);
    assert_int_equal(msh_memory_add(&memory, &c, NULL), 0);
    assert_int_equal(c.first_frame, 15);
    assert_ptr_equal(msh_memory_remove(&memory, b.base), &b);
    assert_null(msh_memory_remove(&memory, b.base));
    assert_int_equal(msh_memory_add(&memory, &e, NULL), 0); /* one page too long for the gap */
    assert_int_equal(e.first_frame, 22);
    assert_int_equal(msh_memory_add(&memory, &d, NULL), 0);
    assert_int_equal(d.first_frame, 10);
    free(memory.region);
}

static void test_a_frame_leads_to_its_page(void **state)
{
    (void)state;
    MshMemory memory = {0};
    MshRegion a = region_of(10), b = region_of(5), c = region_of(7);
    msh_memory_add(&memory, &a, NULL);
    msh_memory_add(&memory, &b, NULL);
    msh_memory_add(&memory, &c, NULL);
    msh_memory_remove(&memory, b.base);
    const struct {
        uint32_t frame, page;
        MshRegion *found, *next;
    } wanted[] = {
        {0, 0, &a, &a},  {9, 9, &a, &a},  {10, 0, NULL, &c},   {14, 0, NULL, &c},
        {15, 0, &c, &c}, {21, 6, &c, &c}, {22, 0, NULL, NULL}, {UINT32_MAX, 0, NULL, NULL}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        uint32_t page = 99;
        MshRegion *found = msh_memory_find(&memory, wanted[i].frame, &page);
        assert_ptr_equal(found, wanted[i].found);
        assert_int_equal(page, found ? wanted[i].page : 99);
        assert_ptr_equal(msh_memory_next(&memory, wanted[i].frame), wanted[i].next);
    }
    free(memory.region);
}

static void test_numbers_run_out(void **state)
{
    (void)state;
    MshMemory memory = {0};
    MshError error = {0};
    MshRegion most = region_of(UINT32_MAX - 10), rest = region_of(10), one_too_many = region_of(1);
    assert_int_equal(msh_memory_add(&memory, &most, &error), 0);
    assert_int_equal(msh_memory_add(&memory, &rest, &error), 0);
    assert_int_equal(msh_memory_add(&memory, &one_too_many, &error), -E2BIG);
    assert_non_null(strstr(error.text, "1 more pages"));
    assert_int_equal(memory.count, 2);
    assert_ptr_equal(msh_memory_next(&memory, UINT32_MAX - 1), &rest);
    free(memory.region);
}

/* Against the definition: a mapping ends where the next page is of another kind, or its slot is not
 * the next one of the same segment. */
static uint32_t mappings(const MshRegion *region)
{
    uint32_t count = 1;
    for (uint32_t page = 1; page < region->pages; page++) {
        bool left = region->state[page - 1] >= MSH_PAGE_SHARED,
             right = region->state[page] >= MSH_PAGE_SHARED;
        uint32_t before = region->word[page - 1], now = region->word[page];
        bool joined =
            left == right &&
            (!left || (now == before + 1 && now / MSH_SEGMENT_SLOTS == before / MSH_SEGMENT_SLOTS));
        count += !joined;
    }
    return count;
}

static void test_boundaries_are_where_mappings_end(void **state)
{
    (void)state;
    enum { PAGES = 12 };
    uint8_t states[PAGES];
    uint32_t words[PAGES], random = 99;
    MshRegion region = region_of(PAGES);
    region.state = states;
    region.word = words;
    for (unsigned round = 0; round < 3000; round++) {
        for (uint32_t page = 0; page < PAGES; page++) {
            random = random * 1664525u + 1013904223u;
            states[page] = (uint8_t)(random >> 30);
            words[page] = MSH_SEGMENT_SLOTS - 6 + page + (random >> 20) % 2;
        }
        assert_int_equal(msh_region_boundaries(&region, 0, PAGES), mappings(&region) - 1);
        /* What changes between first and end changes the count by as much. */
        uint32_t first = (random >> 8) % PAGES, end = first + 1 + (random >> 4) % (PAGES - first);
        uint32_t whole = mappings(&region), part = msh_region_boundaries(&region, first, end);
        for (uint32_t page = first; page < end; page++)
            states[page] = MSH_PAGE_PRIVATE;
        assert_int_equal(whole - mappings(&region),
                         part - msh_region_boundaries(&region, first, end));
    }
}

static void test_only_releases_that_move_pages_soundly(void **state)
{
    (void)state;
    static const char *sound[] = {"6.12.37",         "6.12.40-amd64", "6.18.0",    "6.18",
                                  "6.18.44-fc-v669", "7.0.1",         "10.0.0-rc1"};
    static const char *unsound[] = {"6.12.36",          "6.12",    "6.11.99", "6.13.50", "6.17.99",
                                    "6.8.0-45-generic", "5.19.99", "6",       "",        "linux",
                                    "-6.18.1"};
    for (size_t i = 0; i < sizeof sound / sizeof sound[0]; i++)
        assert_true(msh_probe_release_is_sound(sound[i]));
    for (size_t i = 0; i < sizeof unsound / sizeof unsound[0]; i++)
        assert_false(msh_probe_release_is_sound(unsound[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_fill_the_first_gap),
        cmocka_unit_test(test_a_frame_leads_to_its_page),
        cmocka_unit_test(test_numbers_run_out),
        cmocka_unit_test(test_boundaries_are_where_mappings_end),
        cmocka_unit_test(test_only_releases_that_move_pages_soundly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
