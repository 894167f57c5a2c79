/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pacing: token buckets that say how long a scanner must rest. Two instances make a scanner's pace:
 * pages per second, and nanoseconds of CPU per second. Pure: time is an argument. One thread.
 */
#ifndef MSH_PACE_H
#define MSH_PACE_H

#include <stdint.h>

typedef struct MshPace {
    uint64_t rate_per_second; /* 0: nothing is ever due; UINT64_MAX: no limit */
    uint64_t burst;           /* most that can be saved up */
    double tokens;            /* may be negative: what was spent ahead */
    uint64_t last_ns;
} MshPace;

/* Starts with an empty bucket: no burst after a pause. burst 0 is taken as 1. */
void msh_pace_init(MshPace *pace, uint64_t rate_per_second, uint64_t burst, uint64_t now_ns);

/* A new rate from now on; what was saved up under the old one is kept, to at most burst. */
void msh_pace_set_rate(MshPace *pace, uint64_t rate_per_second, uint64_t burst, uint64_t now_ns);

/* Whole tokens that may be spent now. */
uint64_t msh_pace_available(MshPace *pace, uint64_t now_ns);

/* Spends, also more than there are: the debt delays what follows. */
void msh_pace_spend(MshPace *pace, uint64_t tokens, uint64_t now_ns);

/* Nanoseconds until wanted tokens (at most burst) are there; 0 now, UINT64_MAX never. */
uint64_t msh_pace_wait_ns(MshPace *pace, uint64_t wanted, uint64_t now_ns);

#endif
