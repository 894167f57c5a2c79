/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How often other processors are made to flush their TLBs: after each window, or a few, the window thread rests for so long
 * that it is no more often than it may be, however short the runs are.
 *
 * Linked with --wrap=clock_nanosleep, ioctl and mremap. As root.
 */
#include "unit.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "kernel_abi.h"
#include "memshare/memshare.h"
#include "memshare/units.h"
#include "merging.h"

/* So few contents that a hash of 8 bits, too, tells most of them apart: half of the pages are shared with any hash. */
enum { PAGES = 16384, FILLED = PAGES / 2, CONTENTS = 64, SHARED = FILLED / 2 };
#define SECOND_NS 1000000000ull

static _Atomic unsigned rests, rests_too_short;
static _Thread_local unsigned flushes; /* since this thread's last rest */
static _Thread_local uint64_t woken_ns;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);
void *__real_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *new);
void *__wrap_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *new);
int __real_clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left);
int __wrap_clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    int result = __real_ioctl(fd, request, argument);
    flushes += request == MSH_UFFDIO_MOVE && result == 0;
    return result;
}

void *__wrap_mremap(void *old, size_t old_bytes, size_t new_bytes, int flags, void *new)
{
    flushes++;
    return __real_mremap(old, old_bytes, new_bytes, flags, new);
}

/* The time since the last rest is at least as long as the windows in it were open. */
int __wrap_clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left)
{
    uint64_t rest_ns = (uint64_t)time->tv_sec * SECOND_NS + (uint64_t)time->tv_nsec;
    if (woken_ns && now_ns() - woken_ns + rest_ns < flushes * (SECOND_NS / MSH_FLUSHES_A_SECOND))
        atomic_fetch_add(&rests_too_short, 1);
    atomic_fetch_add(&rests, 1);
    flushes = 0;
    int result = __real_clock_nanosleep(clock, flags, time, left);
    woken_ns = now_ns();
    return result;
}

/* Every other page is there and like others, unlike the next that is there: none is in a run. */
static void fill(uint8_t *pages)
{
    for (unsigned page = 0; page < FILLED; page++) {
        uint32_t *words = (uint32_t *)(pages + msh_pages_to_bytes(2 * page));
        words[0] = 1 + page * 7 % CONTENTS;
    }
}

static void test_rests_are_as_long_as_flushes_ask_for(void **state)
{
    (void)state;
    MshEngine *engine;
    MshError error = {0};
    MshStats stats;
    const MshConfig config = {.mode = MSH_MODE_CONTENT, .scan_rate_pages = MSH_RATE_UNLIMITED};
    size_t length_bytes = msh_pages_to_bytes(PAGES);
    uint8_t *pages = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    madvise(pages, length_bytes, MADV_NOHUGEPAGE);
    fill(pages);
    if (msh_engine_new(&config, &engine, &error) < 0 ||
        msh_engine_register(engine, pages, length_bytes, &error) < 0 ||
        msh_engine_start(engine, &error) < 0)
        fail_msg("no engine: %s", error.text);
    do {
        sched_yield();
        msh_engine_stats(engine, &stats);
    } while (stats.shared_pages < SHARED);
    assert_null(msh_engine_free(engine));
    assert_true(atomic_load(&rests) > 10);
    assert_int_equal(atomic_load(&rests_too_short), 0);
    munmap(pages, length_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rests_are_as_long_as_flushes_ask_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
