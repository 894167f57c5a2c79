/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages in views that leave: which are made plain memory, and when. An engine's own store makes them shared; a step asks it,
 * and nobody acts on its answers here, so nothing else moves them. As root.
 */
#include "unit.h"

#include <sys/mman.h>

#include "engine.h"

/* So few that a segment is many times what they hold. */
enum { PAGES = 2, SHARED = 0x5a };
#define SECOND_NS 1000000000ull
#define MINUTE_NS 60000000000ull

typedef struct Site {
    uint8_t *pages;
    uint8_t expected[PAGES * MSH_PAGE_BYTES];
    MshEngine *engine;
} Site;

static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return true;
}

static int make(void **state)
{
    static Site site;
    MshError error = {0};
    const MshConfig config = {.mode = MSH_MODE_CONTENT, .nothing_pinned = nothing_pinned};
    site.pages = mmap(NULL, sizeof site.expected, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(site.pages, MAP_FAILED);
    memset(site.expected, SHARED, sizeof site.expected);
    memset(site.pages, SHARED, sizeof site.expected);
    if (msh_engine_new(&config, &site.engine, &error) < 0 ||
        msh_engine_register(site.engine, site.pages, sizeof site.expected, &error) < 0)
        fail_msg("no engine: %s", error.text);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(msh_engine_scan_once(site.engine, &error), 0);
    site.engine->moving.connected_ns = msh_engine_now_ns();
    *state = &site;
    return 0;
}

static int drop(void **state)
{
    Site *site = *state;
    assert_null(msh_engine_free(site->engine));
    assert_memory_equal(site->pages, site->expected, sizeof site->expected);
    munmap(site->pages, sizeof site->expected);
    return 0;
}

/* After a walk, the first after so many others. */
static void assert_states(Site *site, unsigned retries, MshPageState first, MshPageState second)
{
    MshEngine *engine = site->engine;
    msh_moving_begin_anew(engine);
    engine->moving.retries = retries;
    while (msh_moving_step(engine))
        ;
    assert_int_equal(engine->memory.region[0]->state[0], first);
    assert_int_equal(engine->memory.region[0]->state[1], second);
    assert_memory_equal(site->pages, site->expected, sizeof site->expected);
}

static void leave(Site *site)
{
    MshSlot slot = {site->engine->memory.region[0]->word[0]};
    assert_true(msh_views_leave(&site->engine->views, msh_slot_segment(slot)));
}

static void test_pages_stay_where_nothing_leaves(void **state)
{
    assert_states(*state, 9, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
}

static void test_what_was_asked_about_before_is_let_go(void **state)
{
    leave(*state);
    assert_states(*state, 0, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
    assert_states(*state, 1, MSH_PAGE_PRIVATE, MSH_PAGE_PRIVATE);
}

static void test_what_keeps_little_is_not(void **state)
{
    Site *site = *state;
    leave(site);
    MshSlot slot = {site->engine->memory.region[0]->word[0]};
    MshView *view = msh_views_of(&site->engine->views, slot);
    view->size_bytes = PAGES * MSH_PAGE_BYTES;
    assert_states(site, 9, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
    view->leaving_ns = msh_engine_now_ns() - 14 * SECOND_NS;
    assert_states(site, 1, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
    view->leaving_ns = msh_engine_now_ns() - 15 * SECOND_NS;
    assert_states(site, 1, MSH_PAGE_PRIVATE, MSH_PAGE_PRIVATE); /* unless for long */
}

static void test_after_long_all_is_let_go(void **state)
{
    Site *site = *state;
    leave(site);
    MshSlot slot = {site->engine->memory.region[0]->word[0]};
    MshView *view = msh_views_of(&site->engine->views, slot);
    view->size_bytes = MSH_PAGE_BYTES; /* of which two pages are mapped: the page keeps nothing of others */
    view->leaving_ns = msh_engine_now_ns() - 30 * SECOND_NS;
    assert_states(site, 1, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
    view->leaving_ns = msh_engine_now_ns() - 31 * SECOND_NS;
    assert_states(site, 0, MSH_PAGE_SHARED, MSH_PAGE_SHARED); /* asked about once, it is */
    assert_states(site, 1, MSH_PAGE_PRIVATE, MSH_PAGE_PRIVATE);
}

static void test_pages_of_a_lost_store_wait_for_others_of_their_contents(void **state)
{
    Site *site = *state;
    msh_views_new_source(&site->engine->views);
    assert_states(site, 9, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
    site->engine->moving.connected_ns = msh_engine_now_ns() - 2 * MINUTE_NS;
    assert_states(site, 0, MSH_PAGE_SHARED, MSH_PAGE_SHARED);
    assert_states(site, 1, MSH_PAGE_PRIVATE, MSH_PAGE_PRIVATE);
}

static void test_a_broken_page_keeps_no_segment(void **state)
{
    Site *site = *state;
    site->pages[7] = site->expected[7] = 1;
    msh_scan_note_break(&site->engine->scan, site->engine->memory.region[0], 0);
    assert_states(site, 0, MSH_PAGE_BROKEN, MSH_PAGE_SHARED);
    leave(site);
    assert_states(site, 0, MSH_PAGE_PRIVATE, MSH_PAGE_SHARED);
}

static void test_an_absent_page_that_carries_a_mark_of_tracking_is_let_go(void **state)
{
    Site *site = *state;
    MshEngine *engine = site->engine;
    MshRegion *region = engine->memory.region[0];
    uint8_t presence[PAGES];
    madvise(site->pages, sizeof site->expected, MADV_DONTNEED); /* out of the page table, not out of the store */
    assert_true(msh_track_arm(&engine->scan.track, region, msh_region_block(region, 0)));
    assert_int_equal(msh_pagemap_protect_absent(&engine->scan.pagemap, site->pages, PAGES), 0);
    assert_int_equal(msh_pagemap_scan(&engine->scan.pagemap, site->pages, PAGES, false, presence), 0);
    assert_int_equal(presence[0], MSH_SWAPPED); /* as a copy that was swapped out would */
    leave(site);
    assert_states(site, 1, MSH_PAGE_PRIVATE, MSH_PAGE_PRIVATE);
}

static void test_a_walk_goes_to_its_end_before_the_next(void **state)
{
    MshEngine *engine = ((Site *)*state)->engine;
    leave(*state);
    msh_moving_begin(engine);
    assert_true(msh_moving_step(engine));
    uint32_t frame = engine->moving.frame;
    assert_int_not_equal(frame, 0);
    msh_moving_begin(engine);
    assert_int_equal(engine->moving.frame, frame);
    assert_true(msh_moving_step(engine));
    assert_int_equal(engine->moving.frame, 0); /* and now that */
    while (msh_moving_step(engine))
        ;
    assert_false(engine->moving.is_walking);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)
    const struct CMUnitTest tests[] = {
        TEST(test_pages_stay_where_nothing_leaves),
        TEST(test_what_was_asked_about_before_is_let_go),
        TEST(test_what_keeps_little_is_not),
        TEST(test_after_long_all_is_let_go),
        TEST(test_pages_of_a_lost_store_wait_for_others_of_their_contents),
        TEST(test_a_broken_page_keeps_no_segment),
        TEST(test_an_absent_page_that_carries_a_mark_of_tracking_is_let_go),
        TEST(test_a_walk_goes_to_its_end_before_the_next),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
