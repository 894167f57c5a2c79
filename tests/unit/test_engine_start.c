/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Starting an engine: it gets its two threads once, or none of them.
 *
 * Linked with --wrap for pthread_create and pthread_mutex_lock; what is wrapped looks at threads
 * that are inside msh_engine_start() and passes on the calls of all others.
 */
#include "unit.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "memshare/memshare.h"

enum { THREADS = 2, NEVER = 1000 };

static _Thread_local bool is_starting, is_second;
static _Atomic unsigned created;
static _Atomic unsigned failing; /* the number of the creation that fails, counted from 0 */
static _Atomic bool second_has_come;
static MshEngine *second_start; /* to be started once more while its first thread is created */
static int second_result;
static pthread_t second;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *opaque);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *opaque);
int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);

static int start(MshEngine *engine)
{
    is_starting = true;
    int result = msh_engine_start(engine, NULL);
    is_starting = false;
    return result;
}

static void *second_main(void *opaque)
{
    is_second = true;
    second_result = start(opaque);
    second_has_come = true; /* and gone: it found that there was nothing to do */
    return NULL;
}

/* Another caller gets as far as it may before this one goes on. */
static void let_the_second_come(void)
{
    MshEngine *engine = second_start;
    second_start = NULL;
    assert_int_equal(__real_pthread_create(&second, NULL, second_main, engine), 0);
    while (!second_has_come)
        sched_yield();
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start_routine)(void *), void *opaque)
{
    if (!is_starting)
        return __real_pthread_create(thread, attributes, start_routine, opaque);
    if (is_second)
        second_has_come = true;
    else if (second_start)
        let_the_second_come();
    if (created++ == failing)
        return EAGAIN;
    return __real_pthread_create(thread, attributes, start_routine, opaque);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (is_starting && is_second)
        second_has_come = true;
    return __real_pthread_mutex_lock(mutex);
}

static int make(void **state)
{
    MshError error = {0};
    MshEngine *engine;
    const MshConfig config = {.mode = MSH_MODE_CONTENT, .scan_rate_pages = MSH_RATE_UNLIMITED};
    if (msh_engine_new(&config, &engine, &error) < 0)
        fail_msg("no engine: %s", error.text);
    *state = engine;
    created = 0;
    failing = NEVER;
    return 0;
}

static int drop(void **state)
{
    assert_null(msh_engine_free(*state));
    return 0;
}

/* For ever, if they do not: the runner's timeout ends that. */
static void wait_until_threads_work(const MshEngine *engine)
{
    MshStats now;
    do {
        sched_yield();
        msh_engine_stats(engine, &now);
    } while (now.state != MSH_STATE_RUNNING);
}

static void test_a_second_start_makes_no_thread(void **state)
{
    assert_int_equal(start(*state), 0);
    assert_int_equal(start(*state), 0);
    assert_int_equal(created, THREADS);
}

static void test_two_starts_at_once_make_two_threads(void **state)
{
    second_start = *state;
    second_has_come = false;
    assert_int_equal(start(*state), 0);
    pthread_join(second, NULL);
    assert_int_equal(second_result, 0);
    assert_int_equal(created, THREADS);
}

static void test_a_start_that_failed_can_be_made_again(void **state)
{
    for (unsigned number = 0; number < THREADS; number++) {
        created = 0;
        failing = number;
        assert_int_equal(start(*state), -EAGAIN);
        assert_int_equal(created, number + 1);
    }
    failing = NEVER;
    assert_int_equal(start(*state), 0);
    wait_until_threads_work(*state);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)
    const struct CMUnitTest tests[] = {
        TEST(test_a_second_start_makes_no_thread),
        TEST(test_two_starts_at_once_make_two_threads),
        TEST(test_a_start_that_failed_can_be_made_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
