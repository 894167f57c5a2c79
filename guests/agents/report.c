/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * report: one JSON object about the time since the report before.
 *
 * The first call starts what measures stalls, so that a guest which nobody asks does not wake a thousand times a second;
 * its longest_stall_us is null.
 */
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "counters.h"
#include "run.h"

/* A pass takes seconds; with this much memory pressure it is no longer "all the time". */
#define VERIFIER_LATE_SECONDS 120u

static void measure_stalls(void *argument)
{
    struct counters *counters = argument;
    uint64_t before = now_ns();

    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        uint64_t now, slept_us, longest;

        sleep_ms(1);
        now = now_ns();
        slept_us = (now - before) / 1000;
        before = now;
        longest = atomic_load(&counters->longest_stall_us);
        while (slept_us > longest &&
               !atomic_compare_exchange_weak(&counters->longest_stall_us, &longest, slept_us))
            ;
    }
}

static bool load_died(struct counters *counters)
{
    uint64_t began = atomic_load(&counters->load_began_ns);

    /* Not one that is being ended just now. */
    return began && !background_runs("load") && atomic_load(&counters->load_began_ns) == began;
}

static void print_integrity(struct counters *counters)
{
    uint64_t verified = atomic_load(&counters->verifier_ns);
    uint64_t now = now_ns(); /* in this order: a pass may end at any moment, and would have ended in the future */

    if (atomic_load(&counters->wrong_written))
        printf("\"%s\"", counters->wrong);
    else if (!verified)
        printf("\"no verifier was started\"");
    else if (!background_runs("integrity"))
        printf("\"the verifier has ended\"");
    else if (now - verified > VERIFIER_LATE_SECONDS * 1000000000ull)
        printf("\"the verifier ended no pass for %llu s\"", (unsigned long long)((now - verified) / 1000000000u));
    else
        printf("\"ok\"");
}

int main(void)
{
    struct counters *counters = counters_open();
    uint64_t now = now_ns();
    uint64_t since = atomic_exchange(&counters->since_ns, now);
    uint64_t ended[BUCKETS], operations = 0; /* those that are told of here, whatever ends meanwhile */
    uint64_t stall_us = atomic_exchange(&counters->longest_stall_us, 0);
    const char *comma = "";

    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        operations += ended[bucket] = atomic_exchange(&counters->latency[bucket], 0);
    printf("{\"load\": \"%s\", \"load_died\": %s, ", counters->load[0] ? counters->load : "idle",
           load_died(counters) ? "true" : "false");
    printf("\"interval_seconds\": %.6f, \"operations\": %llu, \"latency_us\": {", (double)(now - since) / 1e9,
           (unsigned long long)operations);
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        if (!ended[bucket])
            continue;
        printf("%s\"%llu\": %llu", comma, (unsigned long long)counters_bound_us(bucket),
               (unsigned long long)ended[bucket]);
        comma = ", ";
    }
    printf("}, \"longest_stall_us\": ");
    if (background_runs("stalls"))
        printf("%llu", (unsigned long long)stall_us);
    else
        printf("null");
    printf(", \"integrity\": ");
    print_integrity(counters);
    printf("}\n");
    fflush(stdout);
    if (!background_runs("stalls"))
        background_start("stalls", measure_stalls, counters);
    return 0;
}
