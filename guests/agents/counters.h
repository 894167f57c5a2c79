/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What loads, verifier and stall thread count, and the report takes: one page or two of memory that all of them map.
 *
 * The report takes each figure by exchanging it with 0, so that nothing is counted twice and nothing is lost.
 */
#ifndef MEMSHARE_COUNTERS_H
#define MEMSHARE_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#define BUCKETS 192u

struct counters {
    _Atomic uint64_t since_ns; /* the last report, or the start of the load */
    _Atomic uint64_t latency[BUCKETS]; /* operations that ended within counters_bound_us() of the bucket */
    _Atomic uint64_t longest_stall_us;
    char load[16];
    _Atomic uint64_t load_began_ns; /* it runs since then, or has died; 0: none, or one that is being ended or started */
    _Atomic uint64_t verifier_ns; /* when the verifier last ended a pass, or started; 0: never */
    _Atomic int wrong_claimed;    /* by the first that found something wrong */
    _Atomic int wrong_written;
    char wrong[160];
};

/* The only one of this guest; made when it is not there. */
struct counters *counters_open(void);

/* The upper bound of a bucket: each is an eighth more than the one below, or 1 us. */
uint64_t counters_bound_us(unsigned bucket);

/* An operation that began then has ended now. */
void counters_operation(struct counters *counters, uint64_t began_ns);

/* Memory did not hold what was written to it. The first to say so is kept for good. */
void counters_wrong(struct counters *counters, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
