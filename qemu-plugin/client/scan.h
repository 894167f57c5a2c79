/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The walk over registered memory: which pages are worth a question. A page is sighted when it holds
 * the same bytes as at the visit before (judged by its fingerprint), so that what changes all the time
 * is left alone. Never touches an absent page (I9). Notices what guests did to pages since: broke a
 * mapping, touched a hole.
 *
 * Threads: under the work lock and the memory lock.
 */
#ifndef MSH_SCAN_H
#define MSH_SCAN_H

#include "counters.h"
#include "exchange.h"
#include "memory.h"
#include "pagemap.h"
#include "runs.h"

enum { MSH_SCAN_BLOCK_PAGES = 512 };

typedef struct MshScan {
    MshPagemap pagemap;
    const uint8_t *secret; /* NULL: no store within reach, zero pages only */
    bool wants_content;
    uint32_t cursor_frame; /* the next one to visit */
    /* what this pass has seen so far */
    uint64_t present, unique, volatiles;
    MshCounters *counters;
} MshScan;

typedef struct MshVisit {
    uint32_t scanned_pages;
    bool is_pass_end;
    size_t sightings, candidates, broken;
    MshSighting sighting[MSH_SCAN_BLOCK_PAGES];
    MshCandidate candidate[MSH_SCAN_BLOCK_PAGES]; /* zero pages */
    MshSlot broken_slot[MSH_SCAN_BLOCK_PAGES];    /* to be released */
} MshVisit;

/* Visits the next block, at most max_pages (1 or more). *ret_visit tells what it found; at the end of a
 * pass the gauges are published. */
int msh_scan_visit(MshScan *scan, const MshMemory *memory, uint32_t max_pages, MshVisit *ret_visit);

/* Begins a new pass. */
void msh_scan_restart(MshScan *scan);

#endif
