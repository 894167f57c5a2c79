/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shared pages that are to take over slots of another segment: which do, and that the others stay as they
 * are. An engine's own store makes them shared; the other segment is the test's.
 *
 * Linked with --wrap=mremap.
 */
#include "unit.h"

#include <sys/mman.h>

#include "engine.h"
#include "rehome.h"
#include "segment.h"

enum { PAGES = 8, OTHER_SEGMENT = 77, SHARED = 0x5a };

typedef struct Site {
    uint8_t *pages;
    uint8_t expected[PAGES * MSH_PAGE_BYTES]; /* of what each page holds */
    MshEngine *engine;
    MshSegment *segment;
    unsigned broken; /* pages that were found to be, a bit each */
} Site;

static unsigned fails;      /* so many mremaps onto other memory, */
static bool fails_half_way; /* after they have unmapped their target */

void *__real_mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...);
void *__wrap_mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...);

void *__wrap_mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    void *target = va_arg(arguments, void *); /* the engine always gives one */
    va_end(arguments);
    if (fails == 0)
        return __real_mremap(address, old_bytes, new_bytes, flags, target);
    fails--;
    if (fails_half_way)
        munmap(target, new_bytes);
    errno = ENOMEM;
    return MAP_FAILED;
}

static int make(void **state)
{
    static Site site;
    MshError error = {0};
    const MshConfig config = {.mode = MSH_MODE_CONTENT};
    fails = 0;
    /* Far from where the kernel puts what other threads map: none may stand in the hole that a call leaves which
     * fails half way. */
    void *const remote = (void *)0x7e9000000000;
    site.pages = mmap(remote, sizeof site.expected, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(site.pages, MAP_FAILED);
    memset(site.expected, SHARED, sizeof site.expected);
    memset(site.pages, SHARED, sizeof site.expected);
    if (msh_engine_new(&config, &site.engine, &error) < 0 ||
        msh_engine_register(site.engine, site.pages, sizeof site.expected, &error) < 0)
        fail_msg("no engine: %s", error.text);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(msh_engine_scan_once(site.engine, &error), 0);
    for (uint32_t page = 0; page < PAGES; page++)
        assert_int_equal(site.engine->memory.region[0]->state[page], MSH_PAGE_SHARED);
    assert_int_equal(msh_segment_new("other", OTHER_SEGMENT, MSH_SEGMENT_SLOTS, &site.segment, &error), 0);
    *state = &site;
    return 0;
}

/* Whatever a page is mapped from, its bytes survive that it becomes private. */
static int drop(void **state)
{
    Site *site = *state;
    msh_segment_free(site->segment);
    assert_null(msh_engine_free(site->engine));
    assert_memory_equal(site->pages, site->expected, sizeof site->expected);
    munmap(site->pages, sizeof site->expected);
    return 0;
}

/* A slot for each page, of the same bytes; in one of them a byte is another, unless it is NOWHERE. */
enum { NOWHERE = -1 };

static MshSlot fill_other(Site *site, long differs_at)
{
    for (long page = 0; page < PAGES; page++) {
        uint8_t bytes[MSH_PAGE_BYTES];
        uint32_t position;
        memset(bytes, SHARED, sizeof bytes);
        if (differs_at / MSH_PAGE_BYTES == page && differs_at != NOWHERE)
            bytes[differs_at % MSH_PAGE_BYTES]++;
        assert_int_equal(msh_segment_stage(site->segment, bytes, &position), 0);
        assert_int_equal(msh_segment_commit(site->segment), 0);
    }
    uint32_t local;
    assert_int_equal(msh_views_open(&site->engine->views, OTHER_SEGMENT,
                                    msh_segment_open_readonly(site->segment), &local),
                     0);
    return msh_slot(local, 0);
}

/* Returns which pages took over their slots, a bit each. */
static unsigned rehome(Site *site, MshSlot first)
{
    MshEngine *engine = site->engine;
    MshRegion *region = engine->memory.region[0];
    MshRehomed done[MSH_REHOME_PAGES];
    MshSlot old[MSH_REHOME_PAGES];
    unsigned bits = 0;
    msh_track_drop(&engine->scan.track, region, 0, PAGES);
    assert_int_equal(msh_rehome_run(&engine->rebuild, &engine->scan.pagemap, region, 0, PAGES,
                                    first, done, old),
                     0);
    assert_memory_equal(site->pages, site->expected, sizeof site->expected);
    for (unsigned page = 0; page < PAGES; page++) {
        assert_int_equal(old[page].number, region->word[page]);
        bits |= (unsigned)(done[page] == MSH_REHOMED_DONE) << page;
        site->broken |= (unsigned)(done[page] == MSH_REHOMED_BROKEN) << page;
    }
    return bits;
}

static void test_equal_slots_are_taken_over(void **state)
{
    assert_int_equal(rehome(*state, fill_other(*state, NOWHERE)), 0xff);
}

static void test_I2_a_slot_that_differs_in_a_byte_is_not_taken_over(void **state)
{
    assert_int_equal(rehome(*state, fill_other(*state, 3 * MSH_PAGE_BYTES)), 0xff & ~(1u << 3));
}

static void test_I2_nor_one_that_differs_in_its_last(void **state)
{
    assert_int_equal(rehome(*state, fill_other(*state, 6 * MSH_PAGE_BYTES - 1)), 0xff & ~(1u << 5));
}

static void test_I1_a_page_that_was_written_to_keeps_what_was_written(void **state)
{
    Site *site = *state;
    MshSlot first = fill_other(site, NOWHERE);
    site->pages[2 * MSH_PAGE_BYTES + 7] = site->expected[2 * MSH_PAGE_BYTES + 7] = 1;
    assert_int_equal(rehome(site, first), 0xff & ~(1u << 2));
    assert_int_equal(site->broken, 1u << 2);
}

static void test_I1_a_mapping_that_fails_leaves_the_pages_where_they_were(void **state)
{
    MshSlot first = fill_other(*state, NOWHERE);
    fails = 1;
    fails_half_way = false;
    assert_int_equal(rehome(*state, first), 0);
    assert_int_equal(rehome(*state, first), 0xff);
}

static void test_I1_one_that_fails_half_way_is_made_until_it_holds(void **state)
{
    MshSlot first = fill_other(*state, NOWHERE);
    fails = 3;
    fails_half_way = true;
    assert_int_equal(rehome(*state, first), 0xff);
    assert_int_equal(fails, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)
    const struct CMUnitTest tests[] = {
        TEST(test_equal_slots_are_taken_over),
        TEST(test_I2_a_slot_that_differs_in_a_byte_is_not_taken_over),
        TEST(test_I2_nor_one_that_differs_in_its_last),
        TEST(test_I1_a_page_that_was_written_to_keeps_what_was_written),
        TEST(test_I1_a_mapping_that_fails_leaves_the_pages_where_they_were),
        TEST(test_I1_one_that_fails_half_way_is_made_until_it_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
