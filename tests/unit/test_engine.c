/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lives of an engine that has no broker, through the public header alone, with racing writers: the
 * part of the engine's tests that sanitizers see. How a page may fare is tested from Python.
 *
 * Threads of the test share atomics only, and reach registered memory by atomic accesses only, so
 * that whatever a sanitizer says is about the engine. Waits are for facts, which a broken engine
 * may never bring about: the runner's timeout ends them.
 */
#include "unit.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "memshare/memshare.h"

enum {
    PAGES = 1024,
    WORDS = MSH_PAGE_BYTES / sizeof(uint64_t),
    RUN_PAGES = 16, /* neighbours of one kind */
    CONTENTS = 16,
    WRITERS = 2,
    BURST = 16, /* writes by each writer between two passes: what lies still can be merged */
};

static_assert(PAGES % WRITERS == 0, "a page has one writer");

/* Two kinds that nobody writes to, and two that go back and forth between their first contents and
 * others. */
typedef enum Kind { ZERO, COMMON, COMMON_WRITTEN, ZERO_WRITTEN, KINDS } Kind;

typedef struct Life Life;

typedef struct Writer {
    Life *life;
    unsigned number;
    pthread_t thread;
} Writer;

struct Life {
    MshEngine *engine;
    bool nothing_pinned;
    uint64_t *pages;
    uint64_t written[PAGES]; /* what the page's writer has left there, in one word of the page */
    Writer writer[WRITERS];
    pthread_t watcher;
    _Atomic bool stop_writing, stop_watching, is_running;
    _Atomic uint64_t lost, writes, passes, stats_gone_wrong;
};

static Kind kind_of(size_t page)
{
    return page / RUN_PAGES % KINDS;
}

static uint64_t first_word(size_t page, size_t word)
{
    Kind kind = kind_of(page);
    if (kind == ZERO || kind == ZERO_WRITTEN)
        return 0;
    return (page % CONTENTS + 1) * 0x9e3779b97f4a7c15ull + word;
}

static size_t word_written(size_t page)
{
    return page * 37 % WORDS;
}

static uint64_t *word_at(const Life *life, size_t page, size_t word)
{
    return life->pages + page * WORDS + word;
}

static uint64_t load(const Life *life, size_t page, size_t word)
{
    return __atomic_load_n(word_at(life, page, word), __ATOMIC_RELAXED);
}

/*
 * Section: threads of the test
 */

static void write_page(Life *life, size_t page, uint64_t fresh)
{
    size_t word = word_written(page), other = (word + 1 + fresh % (WORDS - 1)) % WORDS;
    life->lost += load(life, page, word) != life->written[page];
    life->lost += load(life, page, other) != first_word(page, other);
    uint64_t first = first_word(page, word);
    life->written[page] = life->written[page] == first ? fresh : first;
    __atomic_store_n(word_at(life, page, word), life->written[page], __ATOMIC_RELAXED);
    life->writes++;
}

static void *writer_main(void *opaque)
{
    const Writer *writer = opaque;
    Life *life = writer->life;
    uint64_t sequence = 0;
    for (size_t page = writer->number; !life->stop_writing; page = (page + WRITERS) % PAGES) {
        if (kind_of(page) != COMMON_WRITTEN && kind_of(page) != ZERO_WRITTEN)
            continue;
        write_page(life, page, ++sequence * WRITERS + writer->number);
        if (sequence % BURST)
            continue;
        uint64_t passes = life->passes;
        while (life->passes == passes && life->is_running && !life->stop_writing)
            sched_yield();
    }
    return NULL;
}

/* Counters only grow, gauges stay within what there is. */
static bool are_sound(const MshStats *before, const MshStats *now)
{
    return now->passes >= before->passes && now->merged_pages >= before->merged_pages &&
           now->zeroed_pages >= before->zeroed_pages && now->windows >= before->windows &&
           now->breaks >= before->breaks && now->rebuilt_pages >= before->rebuilt_pages &&
           now->ram_bytes <= PAGES * MSH_PAGE_BYTES && now->mode <= MSH_MODE_CONTENT &&
           msh_state_name(now->state);
}

static void *watcher_main(void *opaque)
{
    Life *life = opaque;
    MshStats before = {0}, now;
    while (!life->stop_watching) {
        msh_engine_stats(life->engine, &now);
        life->stats_gone_wrong += !are_sound(&before, &now);
        life->passes = now.passes;
        life->is_running = now.state == MSH_STATE_RUNNING;
        before = now;
        sched_yield();
    }
    life->is_running = false;
    return NULL;
}

/*
 * Section: a life
 */

static bool nothing_pinned(void *opaque)
{
    return ((const Life *)opaque)->nothing_pinned;
}

static Life *begin(bool is_pinned)
{
    Life *life = calloc(1, sizeof *life);
    assert_non_null(life);
    life->nothing_pinned = !is_pinned;
    life->pages = mmap(NULL, msh_pages_to_bytes(PAGES), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(life->pages, MAP_FAILED);
    for (size_t page = 0; page < PAGES; page++) {
        for (size_t word = 0; word < WORDS; word++)
            *word_at(life, page, word) = first_word(page, word);
        life->written[page] = first_word(page, word_written(page));
    }
    MshError error = {0};
    const MshConfig config = {.mode = MSH_MODE_CONTENT,
                              .scan_rate_pages = MSH_RATE_UNLIMITED,
                              .nothing_pinned = nothing_pinned,
                              .opaque = life};
    if (msh_engine_new(&config, &life->engine, &error) < 0)
        fail_msg("no engine: %s", error.text);
    return life;
}

static void *half(const Life *life, unsigned number)
{
    return life->pages + number * (PAGES / 2) * WORDS;
}

static void register_half(Life *life, unsigned number)
{
    MshError error = {0};
    if (msh_engine_register(life->engine, half(life, number), msh_pages_to_bytes(PAGES / 2),
                            &error))
        fail_msg("not registered: %s", error.text);
}

static void pass(Life *life)
{
    MshError error = {0};
    if (msh_engine_scan_once(life->engine, &error) < 0)
        fail_msg("no pass: %s", error.text);
}

static MshStats stats_of(const Life *life)
{
    MshStats stats;
    msh_engine_stats(life->engine, &stats);
    return stats;
}

static void start_threads(Life *life)
{
    MshError error = {0};
    assert_int_equal(msh_engine_start(life->engine, &error), 0);
    assert_int_equal(msh_engine_start(life->engine, &error), 0);
    assert_int_equal(pthread_create(&life->watcher, NULL, watcher_main, life), 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        life->writer[i] = (Writer){.life = life, .number = i};
        assert_int_equal(
            pthread_create(&life->writer[i].thread, NULL, writer_main, &life->writer[i]), 0);
    }
}

static void end(Life *life)
{
    if (life->watcher) {
        life->stop_watching = true;
        pthread_join(life->watcher, NULL);
    }
    assert_null(msh_engine_free(life->engine)); /* while others write */
    life->stop_writing = true;
    for (unsigned i = 0; i < WRITERS && life->watcher; i++)
        pthread_join(life->writer[i].thread, NULL);
    assert_int_equal(life->stats_gone_wrong, 0);
    for (size_t page = 0; page < PAGES; page++)
        for (size_t word = 0; word < WORDS; word++)
            life->lost +=
                *word_at(life, page, word) !=
                (word == word_written(page) ? life->written[page] : first_word(page, word));
    assert_int_equal(life->lost, 0);
    munmap(life->pages, msh_pages_to_bytes(PAGES));
    free(life);
}

#define WAIT_FOR(life, fact)                                                                       \
    for (MshStats now = stats_of(life); !(fact); now = stats_of(life))                             \
    sched_yield()

/*
 * Section: tests
 */

static void test_passes_on_the_callers_thread(void **state)
{
    (void)state;
    Life *life = begin(false);
    register_half(life, 0);
    register_half(life, 1);
    assert_int_equal(msh_engine_register(life->engine, half(life, 1), MSH_PAGE_BYTES, NULL),
                     -EEXIST);
    for (unsigned i = 0; i < 4; i++)
        pass(life);
    assert_true(stats_of(life).zero_pages > 0);
    assert_true(stats_of(life).shared_pages > 0);
    for (size_t page = 0; page < PAGES; page++)
        if (kind_of(page) >= COMMON_WRITTEN)
            write_page(life, page, page + 1);
    /* More than two for each level that engines and pages may have come to. */
    for (unsigned i = 0; i < 24; i++)
        pass(life);
    MshStats written = stats_of(life);
    assert_true(written.breaks > 0);
    assert_true(written.rebuilt_pages > 0);
    assert_int_equal(msh_engine_set_mode(life->engine, MSH_MODE_OFF), 0);
    pass(life);
    assert_int_equal(stats_of(life).shared_pages, 0);
    assert_int_equal(stats_of(life).state, MSH_STATE_OFF);
    assert_int_equal(msh_engine_set_mode(life->engine, MSH_MODE_CONTENT), 0);
    for (unsigned i = 0; i < 4; i++)
        pass(life);
    assert_true(stats_of(life).shared_pages > 0);
    assert_int_equal(msh_engine_unregister(life->engine, half(life, 1), NULL), 0);
    assert_int_equal(msh_engine_unregister(life->engine, half(life, 1), NULL), -ENOENT);
    end(life);
}

/* Each verb that steers, once in effect, while pages are written to. */
static void steer(Life *life)
{
    MshEngine *engine = life->engine;
    MshStats before = stats_of(life);
    assert_int_equal(msh_engine_set_mode(engine, MSH_MODE_ZERO), 0);
    WAIT_FOR(life, now.shared_pages == 0 && now.zeroed_pages > before.zeroed_pages);
    assert_int_equal(msh_engine_set_mode(engine, MSH_MODE_OFF), 0);
    WAIT_FOR(life, now.state == MSH_STATE_OFF);
    assert_int_equal(msh_engine_set_mode(engine, MSH_MODE_CONTENT), 0);
    assert_int_equal(msh_engine_set_cpu_limit(engine, 25), 0);
    before = stats_of(life);
    WAIT_FOR(life, now.passes > before.passes + 1);
    assert_int_equal(msh_engine_set_cpu_limit(engine, 0), 0);
    assert_int_equal(msh_engine_set_scan_rate(engine, 0), 0);
    WAIT_FOR(life, now.state == MSH_STATE_PAUSED);
    assert_int_equal(msh_engine_set_scan_rate(engine, 20 * PAGES), 0);
    before = stats_of(life);
    WAIT_FOR(life, now.passes > before.passes + 1);
    assert_int_equal(msh_engine_set_scan_rate(engine, MSH_RATE_UNLIMITED), 0);
    assert_int_equal(msh_engine_set_ceiling(engine, MSH_MODE_OFF, "the test says so"), 0);
    WAIT_FOR(life, now.state == MSH_STATE_REFUSED && now.shared_pages == 0);
    assert_string_equal(stats_of(life).refusal, "the test says so");
    assert_int_equal(msh_engine_set_ceiling(engine, MSH_MODE_CONTENT, NULL), 0);
}

static void hold(Life *life)
{
    assert_int_equal(msh_engine_hold(life->engine, true), 0);
    MshStats held = stats_of(life);
    uint64_t writes = life->writes;
    while (life->writes < writes + PAGES)
        sched_yield();
    assert_int_equal(stats_of(life).windows, held.windows);
    assert_int_equal(stats_of(life).tracked_pages, 0);
    assert_int_equal(msh_engine_hold(life->engine, false), 0);
    WAIT_FOR(life, now.windows > held.windows);
}

static void live_among_writers(bool is_pinned)
{
    Life *life = begin(is_pinned);
    register_half(life, 0);
    start_threads(life);
    register_half(life, 1);
    WAIT_FOR(life, now.shared_pages > 0 && now.zero_pages > 0 && now.breaks > 0);
    hold(life);
    steer(life);
    assert_int_equal(stats_of(life).rebuilt_pages == 0, is_pinned);
    pass(life); /* between those of the engine's own thread */
    assert_int_equal(msh_engine_unregister(life->engine, half(life, 1), NULL), 0);
    assert_int_equal(msh_engine_detach(life->engine, NULL), 0);
    assert_int_equal(stats_of(life).shared_pages, 0);
    assert_int_equal(msh_engine_set_mode(life->engine, MSH_MODE_CONTENT), 0);
    MshStats detached = stats_of(life);
    WAIT_FOR(life, now.zeroed_pages > detached.zeroed_pages);
    end(life);
}

static void test_a_life_among_writers(void **state)
{
    (void)state;
    live_among_writers(false);
}

/* The second engine of a process; what it has mapped from its store stays there. */
static void test_a_life_among_writers_and_pins(void **state)
{
    (void)state;
    live_among_writers(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_passes_on_the_callers_thread),
        cmocka_unit_test(test_a_life_among_writers),
        cmocka_unit_test(test_a_life_among_writers_and_pins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
