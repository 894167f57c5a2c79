/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "scan.h"

#include "fingerprint.h"

/* What a word remembers of a fingerprint. A false "unchanged" (1 in 4 billion) costs a failed
 * comparison at worst. */
static uint32_t word_of(uint64_t fingerprint)
{
    uint32_t word = (uint32_t)fingerprint;
    return word < MSH_WORD_FINGERPRINT_MIN ? word + MSH_WORD_FINGERPRINT_MIN : word;
}

static void visit_mapped(MshScan *scan, MshRegion *region, uint32_t page, uint8_t presence,
                         MshVisit *visit)
{
    bool is_copy = (presence & MSH_SWAPPED) ||
                   ((presence & MSH_PRESENT) && !(presence & MSH_PRESENT_FILE));
    if (region->state[page] != MSH_PAGE_SHARED || !is_copy)
        return;
    region->state[page] = MSH_PAGE_BROKEN;
    visit->broken_slot[visit->broken++] = (MshSlot){region->word[page]};
    msh_uncount(&scan->counters->shared_pages, 1);
    msh_count(&scan->counters->broken_pages, 1);
    msh_count(&scan->counters->breaks, 1);
}

static void visit_present(MshScan *scan, MshRegion *region, uint32_t page, MshVisit *visit)
{
    const void *bytes = msh_region_address(region, page);
    uint32_t frame = region->first_frame + page;
    uint32_t last = region->word[page];
    scan->present++;
    /* A page that held other bytes need not be read to the end to know that it is not zero; one that
     * held zeros nearly always does still. */
    if (msh_page_is_zero(bytes)) {
        region->word[page] = MSH_WORD_ZERO;
        if (last == MSH_WORD_ZERO)
            visit->candidate[visit->candidates++] =
                (MshCandidate){.frame = frame, .slot = MSH_SLOT_ZERO};
        else
            scan->volatiles += last != MSH_WORD_UNKNOWN;
        return;
    }
    if (!scan->wants_content || !scan->secret) {
        region->word[page] = MSH_WORD_UNKNOWN;
        return;
    }
    uint64_t fingerprint = msh_fingerprint(scan->secret, bytes);
    uint32_t word = word_of(fingerprint);
    msh_count(&scan->counters->hashed_pages, 1);
    region->word[page] = word;
    if (word == last) {
        visit->sighting[visit->sightings++] = (MshSighting){.hash = fingerprint, .frame = frame};
        scan->unique++;
    } else {
        scan->volatiles += last != MSH_WORD_UNKNOWN;
    }
}

/* Somebody wrote to it since. */
static void refill_hole(MshScan *scan, MshRegion *region, uint32_t page)
{
    region->state[page] = MSH_PAGE_PRIVATE;
    region->word[page] = MSH_WORD_UNKNOWN;
    msh_uncount(&scan->counters->zero_pages, 1);
}

static void visit_page(MshScan *scan, MshRegion *region, uint32_t page, uint8_t presence,
                       MshVisit *visit)
{
    if (presence & MSH_PRESENT)
        visit->scanned_pages++;
    if (presence & MSH_PRESENT_HUGE)
        region->is_huge[msh_region_huge_page(region, page)] = true;
    if (msh_region_is_mapped(region, page)) {
        visit_mapped(scan, region, page, presence, visit);
        return;
    }
    if (!(presence & MSH_PRESENT)) {
        if ((presence & MSH_SWAPPED) && region->state[page] == MSH_PAGE_HOLE)
            refill_hole(scan, region, page);
        if (region->state[page] == MSH_PAGE_PRIVATE)
            region->word[page] = MSH_WORD_UNKNOWN;
        return; /* I9 */
    }
    if (presence & MSH_PRESENT_ZERO) {
        /* Splitting a huge page gives its zero pages back by itself: what held memory at the last
         * visit and holds none now was saved by our splitting. */
        if (region->state[page] == MSH_PAGE_PRIVATE && region->word[page] == MSH_WORD_ZERO) {
            region->state[page] = MSH_PAGE_HOLE;
            region->word[page] = MSH_WORD_UNKNOWN;
            msh_count(&scan->counters->zeroed_pages, 1);
            msh_count(&scan->counters->zero_pages, 1);
        }
        return;
    }
    if (region->state[page] == MSH_PAGE_HOLE)
        refill_hole(scan, region, page);
    visit_present(scan, region, page, visit);
}

static void end_pass(MshScan *scan)
{
    msh_gauge(&scan->counters->present_pages, scan->present);
    msh_gauge(&scan->counters->unique_pages, scan->unique);
    msh_gauge(&scan->counters->volatile_pages, scan->volatiles);
    msh_scan_restart(scan);
}

void msh_scan_restart(MshScan *scan)
{
    scan->cursor_frame = 0;
    scan->present = scan->unique = scan->volatiles = 0;
}

int msh_scan_visit(MshScan *scan, const MshMemory *memory, uint32_t max_pages, MshVisit *ret_visit)
{
    ret_visit->scanned_pages = 0;
    ret_visit->sightings = ret_visit->candidates = ret_visit->broken = 0;
    MshRegion *region = msh_memory_next(memory, scan->cursor_frame);
    ret_visit->is_pass_end = !region;
    if (!region) {
        end_pass(scan);
        return 0;
    }
    uint32_t first =
        scan->cursor_frame > region->first_frame ? scan->cursor_frame - region->first_frame : 0;
    uint32_t pages = region->pages - first;
    if (pages > MSH_SCAN_BLOCK_PAGES)
        pages = MSH_SCAN_BLOCK_PAGES;
    if (pages > max_pages)
        pages = max_pages;
    uint8_t presence[MSH_SCAN_BLOCK_PAGES];
    int result =
        msh_pagemap_scan(&scan->pagemap, msh_region_address(region, first), pages, presence);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < pages; i++)
        visit_page(scan, region, first + i, presence[i], ret_visit);
    msh_count(&scan->counters->scanned_pages, ret_visit->scanned_pages);
    scan->cursor_frame = region->first_frame + first + pages;
    return 0;
}
