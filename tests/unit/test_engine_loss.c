/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An engine whose windows cannot be closed any more: it is barred, and stays so when another store comes
 * within reach.
 *
 * Linked with --wrap for ioctl, and for clock_nanosleep: the window thread rests before it merges.
 */
#include "unit.h"

#include <dirent.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "listener.h"

enum { PAGES = 256, HALF = PAGES / 2 };

static _Atomic bool may_not_unregister;
static _Atomic unsigned rests;

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    if (request == UFFDIO_UNREGISTER && may_not_unregister) {
        errno = ENOMEM;
        return -1;
    }
    return __real_ioctl(fd, request, argument);
}

int __real_clock_nanosleep(clockid_t clock, int flags, const struct timespec *request,
                           struct timespec *left);
int __wrap_clock_nanosleep(clockid_t clock, int flags, const struct timespec *request,
                           struct timespec *left);

int __wrap_clock_nanosleep(clockid_t clock, int flags, const struct timespec *request,
                           struct timespec *left)
{
    rests++;
    return __real_clock_nanosleep(clock, flags, request, left);
}

/* Descriptors, or threads. */
static unsigned count_of(const char *directory)
{
    unsigned count = 0;
    DIR *open = opendir(directory);
    assert_non_null(open);
    while (readdir(open))
        count++;
    closedir(open);
    return count;
}

static MshStats stats_of(const MshEngine *engine)
{
    MshStats stats;
    msh_engine_stats(engine, &stats);
    return stats;
}

static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return true;
}

static uint8_t *page_of(uint8_t *pages, unsigned page)
{
    return pages + msh_pages_to_bytes(page);
}

/* One half all alike, the other all different. */
static int make(void **state)
{
    uint8_t *pages = mmap(NULL, msh_pages_to_bytes(PAGES), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    for (unsigned page = 0; page < PAGES; page++)
        memset(page_of(pages, page), page < HALF ? 255 : (int)(page - HALF), MSH_PAGE_BYTES);
    page_of(pages, HALF)[0] = 255; /* no zeros */
    *state = pages;
    return 0;
}

static int drop(void **state)
{
    munmap(*state, msh_pages_to_bytes(PAGES));
    return 0;
}

static MshEngine *make_engine(void *pages)
{
    MshError error = {0};
    MshEngine *engine;
    const MshConfig config = {.mode = MSH_MODE_CONTENT,
                              .scan_rate_pages = MSH_RATE_UNLIMITED,
                              .nothing_pinned = nothing_pinned};
    if (msh_engine_new(&config, &engine, &error) < 0)
        fail_msg("no engine: %s", error.text);
    if (msh_engine_register(engine, pages, msh_pages_to_bytes(PAGES), &error) < 0)
        fail_msg("not registered: %s", error.text);
    return engine;
}

/* It shares the first half, and is lost over the first quarter of the second, which becomes alike. */
static void share_and_lose(MshEngine *engine, uint8_t *pages)
{
    MshError error = {0};
    for (unsigned i = 0; i < 4; i++)
        if (msh_engine_scan_once(engine, &error) < 0)
            fail_msg("no pass: %s", error.text);
    assert_true(stats_of(engine).shared_pages >= HALF); /* in the weak build, also some of the others */
    memset(page_of(pages, HALF), 254, msh_pages_to_bytes(HALF / 4));
    may_not_unregister = true;
    for (unsigned i = 0; i < 16 && stats_of(engine).state != MSH_STATE_REFUSED; i++)
        msh_engine_scan_once(engine, NULL);
    may_not_unregister = false;
    assert_int_equal(stats_of(engine).state, MSH_STATE_REFUSED);
    assert_string_equal(stats_of(engine).refusal, "the userfaultfd was lost");
}

static void test_a_new_store_does_not_lift_the_bar(void **state)
{
    const uint8_t secret[MSH_SECRET_BYTES] = {1};
    unsigned descriptors_at_first = count_of("/proc/self/fd");
    MshEngine *engine = make_engine(*state);
    share_and_lose(engine, *state);

    unsigned descriptors = count_of("/proc/self/fd"), threads = count_of("/proc/self/task");
    MshExchangeEvents events = msh_listener_events(engine); /* those that a new broker causes */
    events.disconnected(events.opaque);
    assert_int_equal(events.connected(events.opaque, secret, -1), -ENOSYS);
    assert_int_equal(count_of("/proc/self/fd"), descriptors);
    assert_int_equal(count_of("/proc/self/task"), threads);
    assert_int_equal(stats_of(engine).state, MSH_STATE_REFUSED);
    assert_string_equal(stats_of(engine).refusal, "the userfaultfd was lost");
    assert_true(msh_engine_scan_once(engine, NULL) < 0);

    assert_null(msh_engine_free(engine));
    assert_int_equal(count_of("/proc/self/fd"), descriptors_at_first);
    for (unsigned page = 0; page < HALF; page++)
        assert_int_equal(page_of(*state, page)[page], 255);
}

static void wait_for_passes(MshEngine *engine, unsigned passes)
{
    uint64_t until = stats_of(engine).passes + passes;
    while (stats_of(engine).passes < until)
        sched_yield();
}

/* Its passes go on, since slots are to come back: for that nothing need be hashed, nor proposed. */
static void test_a_barred_engine_sees_writes_and_proposes_nothing(void **state)
{
    MshEngine *engine = make_engine(*state);
    share_and_lose(engine, *state);
    assert_int_equal(msh_engine_start(engine, NULL), 0);
    wait_for_passes(engine, 3); /* the one that was under way, and one with everything anew */
    MshStats before = stats_of(engine);
    unsigned rests_before = rests;
    memset(page_of(*state, HALF + HALF / 2), 0, msh_pages_to_bytes(HALF / 2));
    page_of(*state, 0)[0] = 1;
    while (stats_of(engine).breaks == before.breaks)
        sched_yield();
    wait_for_passes(engine, 3);
    MshStats after = stats_of(engine);
    assert_true(after.shared_pages < before.shared_pages);
    assert_int_equal(after.hashed_pages, before.hashed_pages);
    assert_int_equal(rests, rests_before);
    assert_null(msh_engine_free(engine));
    assert_int_equal(page_of(*state, 0)[0], 1);
    assert_int_equal(page_of(*state, 1)[0], 255);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)
    const struct CMUnitTest tests[] = {
        TEST(test_a_new_store_does_not_lift_the_bar),
        TEST(test_a_barred_engine_sees_writes_and_proposes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
