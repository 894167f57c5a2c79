/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one engine reports about itself. "counter" only grows while the engine lives; "gauge" is the
 * value now. Every number is 64 bits wide and carries its unit in its name.
 */
#ifndef MEMSHARE_STATS_H
#define MEMSHARE_STATS_H

#include <stdint.h>

#define MSH_VERSION "0.1.0"
#define MSH_TEXT_BYTES 192
#define MSH_NAME_BYTES 64
#define MSH_WINDOW_BUCKETS 24

typedef enum MshMode {
    MSH_MODE_OFF = 0,     /* un-share, paced, and stay private */
    MSH_MODE_ZERO = 1,    /* only give zero pages back */
    MSH_MODE_CONTENT = 2, /* share everything */
} MshMode;

typedef enum MshState {
    MSH_STATE_STARTING = 0,
    MSH_STATE_RUNNING = 1,
    MSH_STATE_PAUSED = 2,   /* scan rate 0: nothing new is shared, what is shared stays */
    MSH_STATE_DRAINING = 3, /* on the way to off */
    MSH_STATE_OFF = 4,
    MSH_STATE_REFUSED = 5, /* see refusal */
    MSH_STATE_WAITING_FOR_BROKER = 6,
} MshState;

#define MSH_SKIPPED_PER_SCANNED 32

typedef struct MshStats {
    char version[16];
    uint32_t protocol;               /* spoken with the broker; 0 without one */
    uint32_t state;                  /* MshState */
    char refusal[MSH_TEXT_BYTES];    /* empty, or why this process does not share (or not contents) */
    char group[MSH_NAME_BYTES];
    uint32_t mode;                   /* MshMode in force, after refusals */
    uint64_t scan_rate_pages;        /* gauge, pages per second; 0 pauses; MSH_RATE_UNLIMITED */
    uint32_t cpu_limit_percent;      /* gauge, of one core; 0 is no limit */
    uint64_t ram_bytes;              /* gauge, registered */
    uint64_t present_pages;          /* gauge, resident at the last visit, huge zero page left out */
    uint64_t shared_pages;           /* gauge, SHARED now */
    uint64_t broken_pages;           /* gauge, BROKEN now */
    uint64_t zero_pages;             /* gauge, given back as zero and still absent */
    uint64_t unique_pages;           /* gauge, seen, stable, and unlike all others */
    uint64_t volatile_pages;         /* gauge, changed between the last two visits, or since */
    uint64_t tracked_pages;          /* gauge, in blocks where the kernel tells what was written */
    uint64_t saved_content_bytes;    /* gauge, this client's fair part: a slot's page is split among
                                        its sharers, dead slots included */
    uint64_t saved_zero_bytes;       /* gauge */
    uint64_t overhead_bytes;         /* gauge, our tables, mappings and page tables in this process */
    uint64_t scanned_pages;          /* counter, pages visited */
    uint64_t skipped_pages;          /* counter, passed over: nobody wrote to them since, or that somebody
                                        did since a pass of long ago is only noted; of these
                                        MSH_SKIPPED_PER_SCANNED cost the scan rate one page */
    uint64_t changed_pages;          /* counter, visited or passed over, and changed since the visit before */
    uint64_t hashed_pages;           /* counter */
    uint64_t merged_pages;           /* counter, to SHARED */
    uint64_t zeroed_pages;           /* counter, to HOLE */
    uint64_t breaks;                 /* counter, guest writes to SHARED pages */
    uint64_t rebuilt_pages;          /* counter, store mappings given back to plain memory */
    uint64_t compare_failures;       /* counter, candidates whose bytes differed inside the window */
    uint64_t pinned_skips;           /* counter, candidates the kernel refused to move */
    uint64_t scan_cpu_ns;            /* counter, engine threads, user and system */
    uint64_t windows;                /* counter */
    uint64_t window_time_ns[MSH_WINDOW_BUCKETS]; /* counters; bucket i holds windows that took less
                                        than 2^i us (and at least half of it) */
    uint64_t slept_faults;           /* counter, accesses known to have waited in a window */
    uint64_t mappings;               /* gauge, VMAs of the process, as the engine reckons */
    uint64_t mappings_limit;         /* gauge, the budget: 80% of vm.max_map_count */
    uint64_t passes;                 /* counter, complete visits of all memory */
    uint64_t pass_age_ns;            /* gauge, since the last pass ended */
} MshStats;

#define MSH_RATE_UNLIMITED UINT64_MAX

#pragma GCC visibility push(default) /* as in memshare.h */

/* Spelled as operators see them; NULL for a value out of range. */
const char *msh_mode_name(uint32_t mode);
const char *msh_state_name(uint32_t state);
/* 0 and *ret_mode, or -EINVAL. */
int msh_mode_parse(const char *name, MshMode *ret_mode);

#pragma GCC visibility pop

#endif
