/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Token bucket. Tokens are a double: exact for whole tokens up to 2^53, and a slow rate polled
 * often still adds up.
 */
#include "pace.h"

#define NS_PER_SECOND 1e9
/* Rounding may leave a token this much short at the very nanosecond msh_pace_wait_ns promised. */
#define ROUNDING 1e-6

static uint64_t at_least_one(uint64_t burst)
{
    return burst ? burst : 1;
}

static void refill(MshPace *pace, uint64_t now_ns)
{
    if (now_ns <= pace->last_ns)
        return; /* a clock that stands or steps back earns nothing */
    if (pace->rate_per_second != UINT64_MAX) {
        pace->tokens +=
            (double)pace->rate_per_second * ((double)(now_ns - pace->last_ns) / NS_PER_SECOND);
        if (pace->tokens > (double)pace->burst)
            pace->tokens = (double)pace->burst;
    }
    pace->last_ns = now_ns;
}

void msh_pace_init(MshPace *pace, uint64_t rate_per_second, uint64_t burst, uint64_t now_ns)
{
    *pace = (MshPace){
        .rate_per_second = rate_per_second,
        .burst = at_least_one(burst),
        .last_ns = now_ns,
    };
}

void msh_pace_set_rate(MshPace *pace, uint64_t rate_per_second, uint64_t burst, uint64_t now_ns)
{
    refill(pace, now_ns);
    pace->rate_per_second = rate_per_second;
    pace->burst = at_least_one(burst);
    if (pace->tokens > (double)pace->burst)
        pace->tokens = (double)pace->burst;
}

uint64_t msh_pace_available(MshPace *pace, uint64_t now_ns)
{
    refill(pace, now_ns);
    if (pace->rate_per_second == 0)
        return 0;
    if (pace->rate_per_second == UINT64_MAX)
        return UINT64_MAX;
    double whole = pace->tokens + ROUNDING;
    if (whole < 1)
        return 0;
    return whole >= (double)pace->burst ? pace->burst : (uint64_t)whole;
}

void msh_pace_spend(MshPace *pace, uint64_t tokens, uint64_t now_ns)
{
    refill(pace, now_ns);
    if (pace->rate_per_second != UINT64_MAX)
        pace->tokens -= (double)tokens;
}

uint64_t msh_pace_wait_ns(MshPace *pace, uint64_t wanted, uint64_t now_ns)
{
    refill(pace, now_ns);
    if (pace->rate_per_second == UINT64_MAX)
        return 0;
    if (pace->rate_per_second == 0)
        return UINT64_MAX;
    if (wanted > pace->burst)
        wanted = pace->burst;
    double missing = (double)wanted - pace->tokens;
    if (missing <= ROUNDING)
        return 0;
    double wait_ns = missing / (double)pace->rate_per_second * NS_PER_SECOND;
    /* Beyond 2^63 ns (292 years) a double no longer converts safely. */
    return wait_ns >= 0x1p63 ? UINT64_MAX : (uint64_t)wait_ns + 1;
}
