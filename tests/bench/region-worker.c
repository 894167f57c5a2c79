/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process that `./dev bench engine` measures: one region of memory, filled with the standard mix,
 * then shared by an engine or by the kernel's KSM.
 *
 *   region-worker runs16|scattered SIDE BYTES [busy]
 *
 * SIDE tells the two processes apart: common pages are the same on all sides, at other addresses;
 * unique pages are not. With "busy" one more thread spins and touches no memory of the region. When
 * the region is filled it prints "ok ADDRESS BUSY_THREAD" (0 without), then obeys one command a line,
 * each answered by one line, "ok ..." or "error: ...":
 *
 *   engine SOCKET MODE   make an engine, register the region, start its two threads
 *   ksm                  MADV_MERGEABLE
 *   hold                 the engine closes its last window and replaces nothing from here on
 *   stats                one JSON object
 *   read                 read the region once, check its sum; nanoseconds
 *
 * The end of its input ends it, so that none is left when the benchmark is killed. The region never
 * uses huge pages.
 *
 * The mix, in groups of 64 pages: 16 zero, 16 common, 32 unique. Zero pages lie in an aligned run of
 * 16. Common ones do as well (runs16), or each alone (scattered); two runs are never adjacent, and
 * each side has them in an order of its own, so that no mapping can be longer than the case says.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "memshare/memshare.h"

enum {
    GROUP_PAGES = 64,
    RUN_PAGES = 16,
    RUNS = GROUP_PAGES / RUN_PAGES,
    PAGE_WORDS = MSH_PAGE_BYTES / sizeof(uint64_t),
};

/* What a page holds is named by a number: 0 zeros, below UNIQUE common. */
#define COMMON (1ull << 32)
#define UNIQUE (2ull << 32)

typedef struct Worker {
    uint64_t *words;
    uint32_t pages;
    uint64_t side;
    uint64_t random;
    uint64_t sum; /* of what was filled in */
    MshEngine *engine;
} Worker;

static uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static uint32_t pick(Worker *worker, uint32_t below)
{
    worker->random += 0x9e3779b97f4a7c15u;
    return (uint32_t)(mix(worker->random) % below);
}

/* The numbers 0 to count - 1 in this side's order. */
static uint32_t *shuffled(Worker *worker, uint32_t count)
{
    uint32_t *order = malloc(count * sizeof *order);
    if (!order)
        return NULL;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t j = pick(worker, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

/* A page's place counts, so that exchanged pages are noticed. */
static uint64_t page_sum(const uint64_t *words, uint32_t page)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        sum += words[i];
    return sum * (2ull * page + 1);
}

static void fill_page(Worker *worker, uint32_t page, uint64_t content)
{
    uint64_t *words = worker->words + (size_t)page * PAGE_WORDS;
    if (content == 0)
        memset(words, 0, MSH_PAGE_BYTES); /* present, as a guest's cleared page is */
    else
        for (unsigned i = 0; i < PAGE_WORDS; i++)
            words[i] = mix(content * PAGE_WORDS + i);
    worker->sum += page_sum(words, page);
}

static void fill_group(Worker *worker, uint32_t group, const uint32_t *order, int is_scattered)
{
    uint32_t first = group * GROUP_PAGES, done = 0;
    uint32_t zero = pick(worker, RUNS), common = 0, offset = 0;
    if (!is_scattered)
        /* Never the group's last run, so never beside the next group's. */
        do
            common = pick(worker, RUNS - 1);
        while (common == zero);
    for (uint32_t i = 0; i < GROUP_PAGES; i++) {
        uint32_t run = i / RUN_PAGES;
        uint64_t content = UNIQUE * (worker->side + 1) + first + i;
        if (run == zero) {
            content = 0;
        } else if (!is_scattered) {
            if (run == common)
                content = COMMON + (uint64_t)order[group] * RUN_PAGES + i % RUN_PAGES;
        } else {
            /* The 48 others in threes; the first or second of each is common. */
            if (done % 3 == 0)
                offset = pick(worker, 2);
            if (done % 3 == offset)
                content = COMMON + order[group * RUN_PAGES + done / 3];
            done++;
        }
        fill_page(worker, first + i, content);
    }
}

static int fill(Worker *worker, int is_scattered)
{
    uint32_t groups = worker->pages / GROUP_PAGES;
    uint32_t *order = shuffled(worker, is_scattered ? groups * RUN_PAGES : groups);
    if (!order)
        return -ENOMEM;
    for (uint32_t group = 0; group < groups; group++)
        fill_group(worker, group, order, is_scattered);
    free(order);
    return 0;
}

static void *spin(void *opaque)
{
    volatile uint64_t turns = 0;
    atomic_store((_Atomic(pid_t) *)opaque, gettid());
    for (;;)
        turns++;
    return NULL;
}

/*
 * Section: commands
 */

static void engine_start(Worker *worker, const char *socket, const char *mode)
{
    MshConfig config = {.socket_path = socket, .scan_rate_pages = MSH_RATE_UNLIMITED};
    MshError error = {0};
    if (worker->engine || msh_mode_parse(mode, &config.mode) < 0) {
        printf("error: mode %s: none of off, zero, content, or an engine is there\n", mode);
        return;
    }
    if (msh_engine_new(&config, &worker->engine, &error) < 0 ||
        msh_engine_register(worker->engine, worker->words, msh_pages_to_bytes(worker->pages),
                            &error) < 0 ||
        msh_engine_start(worker->engine, &error) < 0)
        printf("error: %s\n", error.text);
    else
        printf("ok\n");
}

static void ksm_start(Worker *worker)
{
    if (madvise(worker->words, msh_pages_to_bytes(worker->pages), MADV_MERGEABLE) < 0)
        printf("error: MADV_MERGEABLE: %s\n", strerror(errno));
    else
        printf("ok\n");
}

static void hold(Worker *worker)
{
    if (worker->engine)
        msh_engine_hold(worker->engine, true);
    printf("ok\n");
}

static void print_stats(const Worker *worker)
{
    MshStats stats = {0};
    if (worker->engine)
        msh_engine_stats(worker->engine, &stats);
    printf("ok {\"state\":\"%s\",\"refusal\":\"%s\"", msh_state_name(stats.state), stats.refusal);
#define FIELD(name) printf(",\"" #name "\":%" PRIu64, stats.name)
    FIELD(shared_pages);
    FIELD(zero_pages);
    FIELD(scanned_pages);
    FIELD(hashed_pages);
    FIELD(compare_failures);
    FIELD(pinned_skips);
    FIELD(scan_cpu_ns);
    FIELD(windows);
    FIELD(mappings);
    FIELD(mappings_limit);
    FIELD(passes);
#undef FIELD
    printf(",\"window_time_ns\":[");
    for (unsigned i = 0; i < MSH_WINDOW_BUCKETS; i++)
        printf("%s%" PRIu64, i ? "," : "", stats.window_time_ns[i]);
    printf("]}\n");
}

static void read_region(const Worker *worker)
{
    struct timespec start, end;
    uint64_t sum = 0;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (uint32_t page = 0; page < worker->pages; page++)
        sum += page_sum(worker->words + (size_t)page * PAGE_WORDS, page);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (sum != worker->sum)
        printf("error: the region holds other bytes than were written\n");
    else
        printf("ok %lld\n", (end.tv_sec - start.tv_sec) * 1000000000ll + end.tv_nsec - start.tv_nsec);
}

static void obey(Worker *worker, char *line)
{
    char *next = NULL;
    const char *command = strtok_r(line, " \n", &next);
    const char *first = strtok_r(NULL, " \n", &next);
    const char *second = strtok_r(NULL, " \n", &next);
    if (command && strcmp(command, "engine") == 0 && first && second)
        engine_start(worker, first, second);
    else if (command && strcmp(command, "ksm") == 0)
        ksm_start(worker);
    else if (command && strcmp(command, "hold") == 0)
        hold(worker);
    else if (command && strcmp(command, "stats") == 0)
        print_stats(worker);
    else if (command && strcmp(command, "read") == 0)
        read_region(worker);
    else
        printf("error: no such command\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc < 4 || (strcmp(argv[1], "runs16") != 0 && strcmp(argv[1], "scattered") != 0)) {
        fprintf(stderr, "usage: region-worker runs16|scattered SIDE BYTES [busy]\n");
        return 2;
    }
    Worker worker = {.side = strtoull(argv[2], NULL, 10)};
    uint64_t length_bytes = strtoull(argv[3], NULL, 10);
    worker.random = worker.side;
    worker.pages = (uint32_t)msh_bytes_to_pages(length_bytes);
    if (worker.pages == 0 || length_bytes % msh_pages_to_bytes(GROUP_PAGES)) {
        fprintf(stderr, "error: %s bytes: not a multiple of %u KiB\n", argv[3],
                GROUP_PAGES * MSH_PAGE_BYTES / 1024);
        return 2;
    }
    worker.words = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (worker.words == MAP_FAILED || madvise(worker.words, length_bytes, MADV_NOHUGEPAGE) < 0 ||
        fill(&worker, strcmp(argv[1], "scattered") == 0) < 0) {
        fprintf(stderr, "error: %s bytes: %s\n", argv[3], strerror(errno));
        return 1;
    }
    _Atomic(pid_t) busy = 0;
    if (argc > 4) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, spin, &busy) != 0) {
            fprintf(stderr, "error: no thread\n");
            return 1;
        }
        while (busy == 0)
            usleep(1000);
    }
    printf("ok %" PRIuPTR " %d\n", (uintptr_t)worker.words, (int)busy);
    fflush(stdout);
    char line[512];
    while (fgets(line, sizeof line, stdin))
        obey(&worker, line);
    /* No orderly end: the kernel frees the region, and the broker notices. */
    return 0;
}
