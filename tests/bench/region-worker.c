/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process that the measurements share memory of: one region, filled with a known mix, then shared
 * by an engine or by the kernel's KSM.
 *
 *   region-worker scattered|runs4|runs8|runs16|unlike SIDE BYTES [busy]
 *
 * SIDE tells the processes apart: common pages are the same on all sides, at other addresses;
 * unique pages are not. With "busy" one more thread spins and touches no memory of the region. When
 * the region is filled it prints "ok ADDRESS BUSY_THREAD" (0 without), then obeys one command a line,
 * each answered by one line, "ok ..." or "error: ...":
 *
 *   rate PAGES           pages a second that the engine scans, or the one made later; without it, as fast as can be
 *   engine SOCKET MODE   make an engine, register the region, start its two threads
 *   engine-by-hand SOCKET MODE   the same without threads: it works in "pass" only
 *   pass                 one complete pass of the engine; CPU nanoseconds of this process
 *   ksm                  MADV_MERGEABLE
 *   hold                 the engine closes its last window and replaces nothing from here on
 *   stats                one JSON object
 *   read                 read the region once, check its sum; nanoseconds
 *   sum                  read the region once by 8-byte adds and nothing else; CPU nanoseconds
 *   write PERMILLE       give so many pages contents unlike all others; how many pages
 *   renew PERMILLE       rewrite so many pages: zeros by zeros, unique pages by new unique contents, common
 *                        ones by new contents that are common again once all sides did it; how many pages
 *
 * The end of its input ends it, so that none is left when the benchmark is killed. The region never
 * uses huge pages.
 *
 * The mix, in groups of 64 pages: 16 zero, 16 common, 32 unique. Zero pages lie in an aligned run of
 * 16. Common ones lie in runs of 16, 8 or 4, or each alone (scattered); two runs are never adjacent,
 * and each side has them in an order of its own, so that no mapping can be longer than the case says.
 * "unlike" is no mix: all pages are unique.
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
    ROUND_SHIFT = 44,
    ROUNDS_MAX = 2047, /* a word's number is a content's times PAGE_WORDS */
};

/* What a page holds is named by a number: 0 zeros, below UNIQUE common; from ROUND_SHIFT on stands the
 * number of the round that rewrote it. */
#define COMMON (1ull << 32)
#define UNIQUE (2ull << 32)

typedef struct Case {
    const char *name;
    uint32_t run_pages; /* of common pages; 0: there are none, nor zeros */
} Case;

static const Case cases[] = {
    {"scattered", 1}, {"runs4", 4}, {"runs8", 8}, {"runs16", 16}, {"unlike", 0},
};

typedef struct Worker {
    uint64_t *words;
    uint32_t pages;
    uint64_t side;
    uint64_t random;
    uint64_t sum; /* of what was filled in */
    uint64_t *content;  /* of each page, its number */
    uint64_t *page_sum; /* of each page */
    uint64_t round;     /* of rewriting */
    uint64_t scan_rate_pages;
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
    uint64_t sum = page_sum(words, page);
    worker->sum += sum - worker->page_sum[page];
    worker->page_sum[page] = sum;
    worker->content[page] = content;
}

static uint64_t unique_content(const Worker *worker, uint32_t page)
{
    return UNIQUE * (worker->side + 1) + page;
}

/* The 48 pages that are not zero are threes of runs; the first or second of each three is common, so that
 * two are never adjacent. */
static void fill_group(Worker *worker, uint32_t group, const uint32_t *order, uint32_t run_pages)
{
    uint32_t first = group * GROUP_PAGES, done = 0;
    uint32_t zero = pick(worker, RUNS), chosen = 0;
    for (uint32_t i = 0; i < GROUP_PAGES; i++) {
        uint64_t content = unique_content(worker, first + i);
        if (i / RUN_PAGES == zero) {
            content = 0;
        } else {
            uint32_t three = done / (3 * run_pages), place = done / run_pages % 3;
            if (done % (3 * run_pages) == 0)
                chosen = pick(worker, 2);
            if (place == chosen)
                content = COMMON +
                          (uint64_t)order[group * (RUN_PAGES / run_pages) + three] * run_pages +
                          done % run_pages;
            done++;
        }
        fill_page(worker, first + i, content);
    }
}

static int fill(Worker *worker, uint32_t run_pages)
{
    uint32_t groups = worker->pages / GROUP_PAGES;
    if (run_pages == 0) {
        for (uint32_t page = 0; page < worker->pages; page++)
            fill_page(worker, page, unique_content(worker, page));
        return 0;
    }
    uint32_t *order = shuffled(worker, groups * (RUN_PAGES / run_pages));
    if (!order)
        return -ENOMEM;
    for (uint32_t group = 0; group < groups; group++)
        fill_group(worker, group, order, run_pages);
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

static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return true; /* no I/O goes to the region */
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void engine_start(Worker *worker, const char *socket, const char *mode, bool is_by_hand)
{
    MshConfig config = {.socket_path = socket,
                        .scan_rate_pages = worker->scan_rate_pages,
                        .nothing_pinned = nothing_pinned};
    MshError error = {0};
    if (worker->engine || msh_mode_parse(mode, &config.mode) < 0) {
        printf("error: mode %s: none of off, zero, content, or an engine is there\n", mode);
        return;
    }
    if (msh_engine_new(&config, &worker->engine, &error) < 0 ||
        msh_engine_register(worker->engine, worker->words, msh_pages_to_bytes(worker->pages),
                            &error) < 0 ||
        (!is_by_hand && msh_engine_start(worker->engine, &error) < 0))
        printf("error: %s\n", error.text);
    else
        printf("ok\n");
}

static void set_rate(Worker *worker, const char *pages)
{
    worker->scan_rate_pages = strtoull(pages, NULL, 10);
    if (worker->engine)
        msh_engine_set_scan_rate(worker->engine, worker->scan_rate_pages);
    printf("ok\n");
}

static void pass(Worker *worker)
{
    MshError error = {0};
    uint64_t before_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    if (!worker->engine)
        printf("error: there is no engine\n");
    else if (msh_engine_scan_once(worker->engine, &error) < 0)
        printf("error: %s\n", error.text);
    else
        printf("ok %" PRIu64 "\n", clock_ns(CLOCK_PROCESS_CPUTIME_ID) - before_ns);
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
    FIELD(merged_pages);
    FIELD(zeroed_pages);
    FIELD(broken_pages);
    FIELD(saved_content_bytes);
    FIELD(saved_zero_bytes);
    FIELD(overhead_bytes);
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
    uint64_t sum = 0, start_ns = clock_ns(CLOCK_MONOTONIC);
    for (uint32_t page = 0; page < worker->pages; page++)
        sum += page_sum(worker->words + (size_t)page * PAGE_WORDS, page);
    uint64_t took_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
    if (sum != worker->sum)
        printf("error: the region holds other bytes than were written\n");
    else
        printf("ok %" PRIu64 "\n", took_ns);
}

static void sum_region(const Worker *worker)
{
    size_t words = (size_t)worker->pages * PAGE_WORDS;
    uint64_t sum = 0, start_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (size_t i = 0; i < words; i++)
        sum += worker->words[i];
    uint64_t took_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_ns;
    printf("ok %" PRIu64 " %" PRIu64 "\n", took_ns, sum);
}

/* Which pages a round rewrites must be the same on all sides where contents are to be the same again: so
 * common ones are drawn by what they held at first, in whole runs as a file's pages are; all others by
 * where they are. */
static void rewrite(Worker *worker, const char *permille, bool is_renewal)
{
    uint64_t limit = strtoull(permille, NULL, 10);
    uint32_t written = 0;
    if (worker->round == ROUNDS_MAX) {
        printf("error: no more than %d rounds\n", ROUNDS_MAX);
        return;
    }
    uint64_t round = ++worker->round;
    for (uint32_t page = 0; page < worker->pages; page++) {
        uint64_t content = worker->content[page], base = content & ((1ull << ROUND_SHIFT) - 1);
        bool is_common = is_renewal && base >= COMMON && base < UNIQUE;
        uint64_t key = is_common ? base / RUN_PAGES : unique_content(worker, page);
        if (mix(mix(key) + round) % 1000 >= limit)
            continue;
        if (!is_common)
            base = is_renewal && content == 0 ? 0 : unique_content(worker, page);
        fill_page(worker, page, base ? base | round << ROUND_SHIFT : 0);
        written++;
    }
    printf("ok %u\n", written);
}

static void obey(Worker *worker, char *line)
{
    char *next = NULL;
    const char *command = strtok_r(line, " \n", &next);
    const char *first = strtok_r(NULL, " \n", &next);
    const char *second = strtok_r(NULL, " \n", &next);
    if (command && strcmp(command, "rate") == 0 && first)
        set_rate(worker, first);
    else if (command && strcmp(command, "engine") == 0 && first && second)
        engine_start(worker, first, second, false);
    else if (command && strcmp(command, "engine-by-hand") == 0 && first && second)
        engine_start(worker, first, second, true);
    else if (command && strcmp(command, "pass") == 0)
        pass(worker);
    else if (command && strcmp(command, "ksm") == 0)
        ksm_start(worker);
    else if (command && strcmp(command, "hold") == 0)
        hold(worker);
    else if (command && strcmp(command, "stats") == 0)
        print_stats(worker);
    else if (command && strcmp(command, "read") == 0)
        read_region(worker);
    else if (command && strcmp(command, "sum") == 0)
        sum_region(worker);
    else if (command && strcmp(command, "write") == 0 && first)
        rewrite(worker, first, false);
    else if (command && strcmp(command, "renew") == 0 && first)
        rewrite(worker, first, true);
    else
        printf("error: no such command\n");
    fflush(stdout);
}

static const Case *case_named(const char *name)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(cases[i].name, name) == 0)
            return &cases[i];
    return NULL;
}

int main(int argc, char **argv)
{
    const Case *which = argc < 4 ? NULL : case_named(argv[1]);
    if (!which) {
        fprintf(stderr, "usage: region-worker scattered|runs4|runs8|runs16|unlike SIDE BYTES [busy]\n");
        return 2;
    }
    Worker worker = {.side = strtoull(argv[2], NULL, 10), .scan_rate_pages = MSH_RATE_UNLIMITED};
    uint64_t length_bytes = strtoull(argv[3], NULL, 10);
    worker.random = worker.side;
    worker.pages = (uint32_t)msh_bytes_to_pages(length_bytes);
    if (worker.pages == 0 || length_bytes % msh_pages_to_bytes(GROUP_PAGES)) {
        fprintf(stderr, "error: %s bytes: not a multiple of %u KiB\n", argv[3],
                GROUP_PAGES * MSH_PAGE_BYTES / 1024);
        return 2;
    }
    worker.words = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    worker.content = calloc(worker.pages, sizeof *worker.content);
    worker.page_sum = calloc(worker.pages, sizeof *worker.page_sum);
    if (!worker.content || !worker.page_sum || worker.words == MAP_FAILED ||
        madvise(worker.words, length_bytes, MADV_NOHUGEPAGE) < 0 || fill(&worker, which->run_pages) < 0) {
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
