/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pacing.h"

#define SECOND_NS 1000000000ull
/* What the CPU limit must allow before a step is begun. */
#define CPU_STEP_NS 1000000ull
/* Passes that find next to nothing follow each other less and less closely: a guest at rest writes a few pages all the time,
 * and a pass looks at all page tables for their sake. */
#define IDLE_MIN_NS 20000000ull
#define IDLE_MAX_NS 640000000ull

enum {
    STEP_PAGES_MIN = 64, /* waking up costs as much as hashing that many */
    /* A thread that wakes up late makes up for so much of a second: where guests keep all processors busy it is late
     * each time, and a step a wake-up was a quarter of the rate. */
    CATCH_UP_SHARE = 8,
    NOTHING_SHARE = 4096, /* less than one page in so many is next to nothing */
};

static uint64_t burst_pages(uint64_t rate)
{
    return rate / CATCH_UP_SHARE > MSH_SCAN_BLOCK_PAGES ? rate / CATCH_UP_SHARE : MSH_SCAN_BLOCK_PAGES;
}

void msh_pacing_init(MshPacing *pacing, uint64_t now_ns)
{
    *pacing = (MshPacing){0};
    msh_pace_init(&pacing->pages, 0, MSH_SCAN_BLOCK_PAGES, now_ns);
    msh_pace_init(&pacing->cpu, 0, SECOND_NS / 100, now_ns);
}

uint64_t msh_pacing_wait_ns(MshPacing *pacing, const MshEngine *engine, uint64_t now_ns)
{
    uint64_t rate = atomic_load(&engine->scan_rate_pages);
    uint64_t percent = atomic_load(&engine->cpu_limit_percent);
    uint64_t cpu_rate = percent ? percent * (SECOND_NS / 100) : UINT64_MAX;
    if (rate != pacing->rate) {
        msh_pace_set_rate(&pacing->pages, pacing->rate = rate, burst_pages(rate), now_ns);
        pacing->rest_until_ns = 0;
    }
    if (cpu_rate != pacing->cpu_rate)
        msh_pace_set_rate(&pacing->cpu, pacing->cpu_rate = cpu_rate, SECOND_NS / 100, now_ns);
    /* The window thread is never throttled itself: it gets its work from here, and what it spends
     * on that delays the next. */
    bool was_limited = pacing->is_limited;
    pacing->is_limited = percent > 0;
    if (pacing->is_limited) { /* reading the clocks costs as much as hashing a page */
        uint64_t cpu_ns = msh_engine_thread_cpu_ns(pthread_self()) +
                          msh_engine_thread_cpu_ns(engine->window_thread);
        msh_pace_spend(&pacing->cpu, was_limited ? cpu_ns - pacing->cpu_spent_ns : 0, now_ns);
        pacing->cpu_spent_ns = cpu_ns;
    }
    /* A slow rate is served in small steps, so that it is a rate and not a burst now and then. Smaller ones
     * would cost more for waking up than for the pages. */
    uint64_t step = rate / 50 < STEP_PAGES_MIN         ? STEP_PAGES_MIN
                    : rate / 50 < MSH_SCAN_BLOCK_PAGES ? rate / 50
                                                       : MSH_SCAN_BLOCK_PAGES;
    uint64_t pages_ns = msh_pace_wait_ns(&pacing->pages, step, now_ns);
    /* Who has to wait waits for twice as much as it takes to begin: waking up costs some of it, and a thread
     * that wakes with just too little would spend all that it may on waking. */
    uint64_t cpu_wait_ns = msh_pace_wait_ns(&pacing->cpu, CPU_STEP_NS, now_ns);
    if (cpu_wait_ns)
        cpu_wait_ns = msh_pace_wait_ns(&pacing->cpu, 2 * CPU_STEP_NS, now_ns);
    uint64_t wait_ns = pages_ns > cpu_wait_ns ? pages_ns : cpu_wait_ns;
    bool may_rest = now_ns < pacing->rest_until_ns && !engine->moving.is_walking;
    uint64_t rest_ns = may_rest ? pacing->rest_until_ns - now_ns : 0;
    return wait_ns > rest_ns ? wait_ns : rest_ns;
}

uint32_t msh_pacing_pages(MshPacing *pacing, uint64_t now_ns)
{
    uint64_t allowed = msh_pace_available(&pacing->pages, now_ns);
    return allowed > MSH_SCAN_BLOCK_PAGES ? MSH_SCAN_BLOCK_PAGES : allowed ? (uint32_t)allowed : 1;
}

void msh_pacing_pay(MshPacing *pacing, const MshVisit *visit, uint64_t now_ns)
{
    msh_pace_spend(&pacing->pages,
                   visit->scanned_pages + visit->skipped_pages / MSH_SKIPPED_PER_SCANNED, now_ns);
}

uint64_t msh_pacing_rest_ns(MshPacing *pacing, uint64_t ram_bytes, uint64_t now_ns)
{
    bool is_fruitful = pacing->found > 0 && pacing->found >= msh_bytes_to_pages(ram_bytes) / NOTHING_SHARE;
    pacing->idle_ns = is_fruitful                     ? 0
                      : pacing->idle_ns == 0          ? IDLE_MIN_NS
                      : pacing->idle_ns < IDLE_MAX_NS ? pacing->idle_ns * 2
                                                      : pacing->idle_ns;
    pacing->found = 0;
    pacing->rest_until_ns = now_ns + pacing->idle_ns;
    return pacing->idle_ns;
}
