/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long does a write take while an engine merges the memory it goes to?
 *
 *   writer-wait SECONDS BYTES [engine|off] [HOGS] [CGROUP-TASKS-FILE]
 *
 * Rounds until so many seconds of writing are over: a region is filled with the standard mix (a quarter
 * zeros, a quarter common, every page alone, half unique), an engine with a table of its own shares it
 * in the background, and one thread writes to random pages of it, a byte that is there already, until the
 * engine has found nothing for a while. Each write is timed; between two the thread sleeps, as a vCPU does
 * that is not itself the hog, so that losing its processor is not taken for a wait. "off" is the
 * same with the engine in mode off: what the machine does by itself. HOGS processes spin meanwhile. The process,
 * not the hogs, first enters the control group, if one is given.
 *
 * Prints one JSON object, times in nanoseconds.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "memshare/memshare.h"

enum {
    SAMPLES_MAX = 8 << 20,
    PAUSE_NS = 10000,
    GROUP_PAGES = 64,
    COPIES = 4,        /* of each common page */
    WAIT_NS = 20000,   /* a write that takes longer has waited, more likely than not */
    QUIET_PASSES = 3,  /* in a row that merged nothing: the round is over */
    HOGS_MAX = 64,
};

typedef struct Bench {
    uint8_t *base;
    uint32_t pages;
    MshMode mode;
    uint64_t random;
    uint32_t *sample_ns;
    size_t samples;
    uint64_t spent_ns;
    unsigned rounds;
    MshStats total; /* the counters that are printed, over all rounds */
} Bench;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t next_random(Bench *bench)
{
    uint64_t value = bench->random += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static void fill(const Bench *bench)
{
    for (uint32_t page = 0; page < bench->pages; page++) {
        uint64_t *words = (uint64_t *)(void *)(bench->base + msh_pages_to_bytes(page));
        uint32_t in_group = page % GROUP_PAGES;
        uint64_t content = page + 1;
        if (in_group < GROUP_PAGES / 4)
            content = 0;
        else if (in_group % 3 == 0) /* 16 of the other 48, none beside another */
            content = (1ull << 32) + page % (bench->pages / COPIES);
        memset(words, 0, MSH_PAGE_BYTES);
        for (unsigned i = 0; content && i < MSH_PAGE_BYTES / sizeof *words; i++)
            words[i] = content * 0x9e3779b97f4a7c15u + i;
    }
}

static void write_once(Bench *bench)
{
    uint32_t page = (uint32_t)(next_random(bench) % bench->pages);
    volatile uint8_t *byte = bench->base + msh_pages_to_bytes(page);
    uint64_t start_ns = now_ns();
    *byte = *byte;
    uint64_t took_ns = now_ns() - start_ns;
    bench->sample_ns[bench->samples++] = took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
}

/* Writes until the engine is through, or the time is up. */
static void write_round(Bench *bench, const MshEngine *engine, uint64_t end_ns)
{
    uint64_t seen_passes = 0, seen_windows = 0, quiet = 0;
    for (uint64_t turn = 1; now_ns() < end_ns && bench->samples < SAMPLES_MAX; turn++) {
        write_once(bench);
        clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        if (turn % 256 || bench->mode == MSH_MODE_OFF)
            continue;
        MshStats stats;
        msh_engine_stats(engine, &stats);
        if (stats.passes == seen_passes)
            continue;
        /* The first passes only look. */
        quiet = stats.windows == seen_windows && stats.windows ? quiet + 1 : 0;
        seen_passes = stats.passes;
        seen_windows = stats.windows;
        if (quiet == QUIET_PASSES)
            return;
    }
}

static void add_stats(MshStats *total, const MshEngine *engine)
{
    MshStats stats;
    msh_engine_stats(engine, &stats);
    total->windows += stats.windows;
    total->slept_faults += stats.slept_faults;
    total->merged_pages += stats.merged_pages;
    total->zeroed_pages += stats.zeroed_pages;
    total->compare_failures += stats.compare_failures;
    for (unsigned i = 0; i < MSH_WINDOW_BUCKETS; i++)
        total->window_time_ns[i] += stats.window_time_ns[i];
}

static int run_round(Bench *bench, uint64_t seconds_left_ns, MshError *error)
{
    size_t length_bytes = msh_pages_to_bytes(bench->pages);
    void *base = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return msh_error_set(error, -errno, "%zu bytes: %s", length_bytes, strerror(errno));
    madvise(base, length_bytes, MADV_NOHUGEPAGE);
    bench->base = base;
    fill(bench);
    MshConfig config = {.mode = bench->mode, .scan_rate_pages = MSH_RATE_UNLIMITED};
    MshEngine *engine = NULL;
    int result = msh_engine_new(&config, &engine, error);
    if (result == 0)
        result = msh_engine_register(engine, base, length_bytes, error);
    if (result == 0)
        result = msh_engine_start(engine, error);
    if (result == 0) {
        uint64_t start_ns = now_ns();
        write_round(bench, engine, start_ns + seconds_left_ns);
        bench->spent_ns += now_ns() - start_ns;
        add_stats(&bench->total, engine);
        bench->rounds++;
    }
    msh_engine_free(engine);
    munmap(base, length_bytes);
    return result;
}

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static void print_quantiles(const char *name, const uint32_t *sorted, size_t count)
{
    printf(",\"%s\":{\"count\":%zu", name, count);
    static const struct { const char *name; double share; } quantiles[] = {
        {"p50", 0.5}, {"p99", 0.99}, {"p999", 0.999}, {"p9999", 0.9999}, {"max", 1}};
    for (unsigned i = 0; i < sizeof quantiles / sizeof *quantiles; i++) {
        size_t at = (size_t)(quantiles[i].share * (double)count);
        printf(",\"%s\":%" PRIu32, quantiles[i].name,
               count ? sorted[at < count ? at : count - 1] : 0);
    }
    printf("}");
}

static void print_all(Bench *bench)
{
    const MshStats *total = &bench->total;
    qsort(bench->sample_ns, bench->samples, sizeof *bench->sample_ns, compare);
    size_t first = 0;
    while (first < bench->samples && bench->sample_ns[first] < WAIT_NS)
        first++;
    printf("{\"rounds\":%u,\"spent_ns\":%" PRIu64, bench->rounds, bench->spent_ns);
#define FIELD(name) printf(",\"" #name "\":%" PRIu64, total->name)
    FIELD(windows);
    FIELD(slept_faults);
    FIELD(merged_pages);
    FIELD(zeroed_pages);
    FIELD(compare_failures);
#undef FIELD
    print_quantiles("writes", bench->sample_ns, bench->samples);
    print_quantiles("waits", bench->sample_ns + first, bench->samples - first);
    printf(",\"window_time_ns\":[");
    for (unsigned i = 0; i < MSH_WINDOW_BUCKETS; i++)
        printf("%s%" PRIu64, i ? "," : "", total->window_time_ns[i]);
    printf("]}\n");
}

static pid_t start_hog(void)
{
    pid_t parent = getpid(), pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (volatile uint64_t turns = 0; getppid() == parent || turns % 65536; turns++)
        ;
    _exit(0);
}

static int enter(const char *tasks_file)
{
    FILE *file = fopen(tasks_file, "we");
    if (!file || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file)) {
        fprintf(stderr, "error: %s: %s\n", tasks_file, strerror(errno));
        return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 4 || (strcmp(argv[3], "engine") != 0 && strcmp(argv[3], "off") != 0)) {
        fprintf(stderr, "usage: writer-wait SECONDS BYTES engine|off [HOGS [CGROUP-TASKS-FILE]]\n");
        return 2;
    }
    uint64_t limit_ns = strtoull(argv[1], NULL, 10) * 1000000000u;
    unsigned hogs = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 0;
    static Bench bench;
    bench.pages = (uint32_t)msh_bytes_to_pages(strtoull(argv[2], NULL, 10));
    bench.mode = strcmp(argv[3], "off") == 0 ? MSH_MODE_OFF : MSH_MODE_CONTENT;
    bench.sample_ns = malloc(SAMPLES_MAX * sizeof *bench.sample_ns);
    if (bench.pages < GROUP_PAGES || hogs > HOGS_MAX || !bench.sample_ns) {
        fprintf(stderr, "error: too few bytes, too many hogs, or no memory\n");
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    pid_t hog[HOGS_MAX];
    for (unsigned i = 0; i < hogs; i++)
        hog[i] = start_hog();
    MshError error = {0};
    int result = argc > 5 ? enter(argv[5]) : 0;
    while (result == 0 && bench.spent_ns < limit_ns && bench.samples < SAMPLES_MAX)
        result = run_round(&bench, limit_ns - bench.spent_ns, &error);
    for (unsigned i = 0; i < hogs; i++)
        if (hog[i] > 0)
            kill(hog[i], SIGKILL);
    if (result < 0) {
        fprintf(stderr, "error: %s\n", error.text);
        return 1;
    }
    print_all(&bench);
    return 0;
}
