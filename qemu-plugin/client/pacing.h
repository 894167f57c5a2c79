/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When the scan thread may go on: the guest's scan rate, its CPU limit, and the rest after passes that found
 * next to nothing. Only the scan thread calls this.
 */
#ifndef MSH_PACING_H
#define MSH_PACING_H

#include "engine.h"
#include "pace.h"

typedef struct MshPacing {
    MshPace pages, cpu;
    uint64_t rate, cpu_rate, cpu_spent_ns;
    bool is_limited;  /* cpu_spent_ns is kept */
    uint64_t found;   /* pages to merge and pages that broke, in this pass */
    uint64_t idle_ns; /* rest after a pass that found next to nothing */
    uint64_t rest_until_ns; /* hints and windows that end wake the thread, and no pass is to begin for that */
} MshPacing;

void msh_pacing_init(MshPacing *pacing, uint64_t now_ns);

/* How long to wait before pages may be visited; 0: now. Reads what the engine was told last. */
uint64_t msh_pacing_wait_ns(MshPacing *pacing, const MshEngine *engine, uint64_t now_ns);
/* How many may be visited at once: at least one, at most a block. */
uint32_t msh_pacing_pages(MshPacing *pacing, uint64_t now_ns);
/* A page that was looked at costs one, MSH_SKIPPED_PER_SCANNED that were passed over cost one together. */
void msh_pacing_pay(MshPacing *pacing, const MshVisit *visit, uint64_t now_ns);

/* At the end of a pass over so much memory: how long to rest before the next. */
uint64_t msh_pacing_rest_ns(MshPacing *pacing, uint64_t ram_bytes, uint64_t now_ns);

#endif
