/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The numbers behind the stats: written by the engine's threads with relaxed atomics, read by anybody.
 * Names and meanings are those of memshare/stats.h.
 */
#ifndef MSH_COUNTERS_H
#define MSH_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#include "memshare/stats.h"

typedef _Atomic uint64_t MshCounter;

typedef struct MshCounters {
    MshCounter ram_bytes, present_pages, shared_pages, broken_pages, zero_pages, unique_pages,
        volatile_pages, tracked_pages;
    MshCounter store_cost_bytes; /* this client's fair part of the store */
    MshCounter page_map_bytes;
    MshCounter foreground_cpu_ns; /* of passes on a caller's thread */
    MshCounter scanned_pages, skipped_pages, changed_pages, hashed_pages, merged_pages, zeroed_pages, breaks,
        rebuilt_pages, compare_failures, pinned_skips, windows, slept_faults, passes;
    MshCounter window_time_ns[MSH_WINDOW_BUCKETS];
    MshCounter mappings, mappings_limit;
    MshCounter own_mappings; /* those that store mappings added */
    MshCounter pass_end_ns; /* on CLOCK_MONOTONIC; 0: none yet */
} MshCounters;

static inline void msh_count(MshCounter *counter, uint64_t more)
{
    atomic_fetch_add_explicit(counter, more, memory_order_relaxed);
}

static inline void msh_uncount(MshCounter *counter, uint64_t less)
{
    atomic_fetch_sub_explicit(counter, less, memory_order_relaxed);
}

static inline void msh_gauge(MshCounter *counter, uint64_t value)
{
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

static inline uint64_t msh_read(const MshCounter *counter)
{
    return atomic_load_explicit((MshCounter *)counter, memory_order_relaxed);
}

#endif
