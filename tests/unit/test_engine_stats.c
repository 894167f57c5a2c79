/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stats are read by anybody at any time, also while what they tell of is being lost. The engine
 * works on the test's thread; a watcher reads stats meanwhile, and tells what it saw by relaxed
 * stores only: any others would put its reads in order with the engine's writes, and
 * ThreadSanitizer would have nothing to say.
 *
 * Linked with --wrap=ioctl.
 */
#include "unit.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "memshare/memshare.h"

enum { PAGES = 256 };

static _Atomic bool is_pinned, may_not_unregister, stop_watching;
static void *shared; /* the memory that is */
static _Atomic MshState state_seen;

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    if (request == UFFDIO_UNREGISTER && may_not_unregister &&
        ((struct uffdio_range *)argument)->start == (uintptr_t)shared) {
        errno = ENOMEM;
        return -1;
    }
    return __real_ioctl(fd, request, argument);
}

static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return !is_pinned;
}

static void *watcher_main(void *opaque)
{
    MshStats now;
    while (!atomic_load_explicit(&stop_watching, memory_order_relaxed)) {
        msh_engine_stats(opaque, &now);
        atomic_store_explicit(&state_seen, now.state, memory_order_relaxed);
    }
    return NULL;
}

static void wait_until_seen(MshState state)
{
    while (atomic_load_explicit(&state_seen, memory_order_relaxed) != state)
        sched_yield();
}

static void pass(MshEngine *engine)
{
    MshError error = {0};
    if (msh_engine_scan_once(engine, &error) < 0)
        fail_msg("no pass: %s", error.text);
}

static MshStats stats_of(const MshEngine *engine)
{
    MshStats stats;
    msh_engine_stats(engine, &stats);
    return stats;
}

/* All alike, and none of them zeros. */
static void *map_pages(void)
{
    void *pages = mmap(NULL, msh_pages_to_bytes(PAGES), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    memset(pages, 0x5a, msh_pages_to_bytes(PAGES));
    shared = pages;
    return pages;
}

static MshEngine *make_engine(void *pages)
{
    MshError error = {0};
    MshEngine *engine;
    const MshConfig config = {.mode = MSH_MODE_CONTENT, .nothing_pinned = nothing_pinned};
    if (msh_engine_new(&config, &engine, &error) < 0)
        fail_msg("no engine: %s", error.text);
    if (msh_engine_register(engine, pages, msh_pages_to_bytes(PAGES), &error) < 0)
        fail_msg("not registered: %s", error.text);
    return engine;
}

static void test_a_loss_is_seen_while_stats_are_read(void **state)
{
    (void)state;
    void *pages = map_pages();
    MshEngine *engine = make_engine(pages);
    for (unsigned i = 0; i < 4; i++)
        pass(engine);
    assert_int_equal(stats_of(engine).shared_pages, PAGES);

    /* All are broken in place, and there is no more to do until the promise comes back. */
    is_pinned = true;
    assert_int_equal(msh_engine_set_mode(engine, MSH_MODE_OFF), 0);
    pass(engine);
    assert_int_equal(stats_of(engine).broken_pages, PAGES);
    assert_int_equal(stats_of(engine).state, MSH_STATE_OFF);

    pthread_t watcher;
    is_pinned = false;
    assert_int_equal(pthread_create(&watcher, NULL, watcher_main, engine), 0);
    wait_until_seen(MSH_STATE_DRAINING);
    may_not_unregister = true; /* so the first rebuild gives the userfaultfd up */
    pass(engine);
    may_not_unregister = false;
    wait_until_seen(MSH_STATE_OFF);
    atomic_store_explicit(&stop_watching, true, memory_order_relaxed);
    pthread_join(watcher, NULL);
    assert_true(stats_of(engine).rebuilt_pages > 0);
    assert_true(stats_of(engine).broken_pages > 0); /* they stay, and nobody waits for them */

    assert_null(msh_engine_free(engine));
    for (size_t i = 0; i < msh_pages_to_bytes(PAGES); i++)
        assert_int_equal(((const uint8_t *)pages)[i], 0x5a);
    munmap(pages, msh_pages_to_bytes(PAGES));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_loss_is_seen_while_stats_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
