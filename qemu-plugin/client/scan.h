/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The walk over registered memory: which pages are worth a question. A page is sighted once it held
 * the same bytes at two looks (judged by its fingerprint), so that what changes all the time is left
 * alone, the second soon after the first (stretch.h); one that keeps changing is looked at less and
 * less often. Where the kernel tells which pages were written (track.h) the others are not looked at.
 * Never touches an absent page (I9). Notices what guests did to pages since: broke a mapping, touched
 * a hole.
 *
 * Threads: under the work lock and the memory lock.
 */
#ifndef MSH_SCAN_H
#define MSH_SCAN_H

#include "counters.h"
#include "exchange.h"
#include "memory.h"
#include "presence.h"
#include "runs.h"
#include "stretch.h"
#include "tenure.h"

typedef struct MshScan {
    MshPagemap pagemap;
    MshTrack track;
    const uint8_t *secret; /* NULL: no store within reach, zero pages only */
    bool wants_content;
    bool may_track; /* nothing else may need the userfaultfd registrations now */
    bool is_anew;          /* this pass looks at every page, and sights again what was sighted */
    bool wants_anew;       /* the next one shall */
    uint32_t cursor_frame; /* the next one to visit */
    uint32_t pass;
    uint32_t tick;         /* one more with each pass and wherever the walk turns back, but for those too close together */
    uint64_t tick_ns;      /* when it began */
    bool is_eager;         /* asks for no tenure, of pages or of the engine, and ticks with each turn */
    MshTenure tenure;
    MshStretch stretch;
    uint64_t now_ns;       /* 0: nobody walks in time, and every pass counts as quick */
    uint64_t present;      /* in this pass so far */
    uint64_t held;         /* the same, of pages that are stable, but not for long enough */
    uint64_t held_before;  /* in the whole of the last one */
    MshCounters *counters;
} MshScan;

typedef struct MshVisit {
    uint32_t scanned_pages; /* looked at */
    uint32_t skipped_pages; /* passed over, as nobody wrote to them */
    uint32_t written_pages; /* of tracked blocks, private, and written since */
    bool is_pass_end;
    MshRegion *region; /* visited, from page first up to end; NULL: none */
    uint32_t first, end;
    size_t sightings, candidates, broken;
    MshSighting sighting[MSH_SCAN_BLOCK_PAGES];
    MshCandidate candidate[MSH_SCAN_BLOCK_PAGES]; /* zero pages */
    MshSlot broken_slot[MSH_SCAN_BLOCK_PAGES];    /* to be released */
} MshVisit;

/* Visits what comes next: up to max_pages (1 or more) of one block, or a row of tracked blocks. *ret_visit
 * tells what it found. A visit behind the last page ends the pass. */
int msh_scan_visit(MshScan *scan, const MshMemory *memory, uint32_t max_pages, MshVisit *ret_visit);

/* The view that a page is mapped from, if that leaves; NULL otherwise. */
MshView *msh_scan_leaving_view(const MshViews *views, const MshRegion *region, uint32_t page);

/* SHARED pages of views that leave, sighted by the bytes of their slots, from *frame on, as many as a
 * visit holds; moves *frame on. False: there are no more. */
bool msh_scan_leaving(MshScan *scan, const MshMemory *memory, const MshViews *views, uint32_t *frame,
                      MshVisit *ret_visit);

/* A SHARED page that holds a private copy is BROKEN from now on. Returns the slot that it had, to be given back. */
MshSlot msh_scan_note_break(MshScan *scan, MshRegion *region, uint32_t page);

/* Begins a new pass. */
void msh_scan_restart(MshScan *scan);

#endif
