/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "scan.h"

#include "fingerprint.h"

#define TICK_NS 2000000000ull

enum {
    /* A visit found a block settled if at most one page in so many had changed or was proposed. */
    SETTLED_SHARE = 8,
    /* A block is tracked no more when more than one page in so many was written between two visits. */
    RESTLESS_SHARE = 2,
    /* A huge page is split when at least one present page in so many can be saved. */
    SPLIT_SHARE = 4,
    ROW_BLOCKS = 512, /* tracked blocks in one visit: 1 GiB */
    /* A calm block is visited every so many passes, in its turn with so many neighbours: most of what an idle
     * pass costs is the kernel's walk through page tables and mappings. */
    CALM_PASSES = 8,
    CALM_ROW_BLOCKS = 16,
    LEAP_PAGES = 1 << 16, /* of the page map, in one step through what leaves */
};

/* What a word remembers of a fingerprint. A false "unchanged" (1 in 4 billion) costs a failed
 * comparison at worst. */
static uint32_t word_of(uint64_t fingerprint)
{
    uint32_t word = (uint32_t)fingerprint;
    return word < MSH_WORD_FINGERPRINT_MIN ? word + MSH_WORD_FINGERPRINT_MIN : word;
}

/*
 * Section: one page
 */

MshSlot msh_scan_note_break(MshScan *scan, MshRegion *region, uint32_t page)
{
    MshSlot slot = {region->word[page]};
    scan->tenure.soon += msh_region_note_break(region, page, scan->is_eager);
    scan->tenure.lost++;
    msh_region_become(region, page, MSH_PAGE_BROKEN, slot.number, scan->counters);
    msh_count(&scan->counters->breaks, 1);
    return slot;
}

/* What a visit does with a page that is private and present. */
typedef enum Manner {
    LOOK,           /* by its contents: the block is not tracked */
    BEGIN,          /* the block is tracked from now on: nothing is known yet */
    LOOK_UNWRITTEN, /* tracked, and not written since the last visit */
    NOTE_WRITTEN,   /* tracked, and written since */
} Manner;

static void visit_mapped(MshScan *scan, MshRegion *region, uint32_t page, uint8_t presence,
                         Manner manner, MshVisit *visit)
{
    bool is_copy = (presence & MSH_SWAPPED) ||
                   ((presence & MSH_PRESENT) && !(presence & MSH_PRESENT_FILE));
    if (region->state[page] == MSH_PAGE_BROKEN && manner == NOTE_WRITTEN)
        msh_region_note_write(region, page);
    if (region->state[page] != MSH_PAGE_SHARED || !is_copy)
        return;
    visit->broken_slot[visit->broken++] = msh_scan_note_break(scan, region, page);
}

/* A page that keeps changing is looked at every 2nd, 4th, ... pass; each time where it tells whether its huge
 * page is hot, and where passes are so slow that what it did in others tells nothing of now. */
static bool is_due(const MshScan *scan, const MshRegion *region, uint32_t page)
{
    uint32_t mask = (1u << msh_look_level(region->look[page])) - 1;
    return ((scan->pass + region->first_frame + page) & mask) == 0 ||
           msh_stretch_is_slow(&scan->stretch) || region->block[msh_region_block(region, page)].is_huge;
}

/* To be looked at again, and less often than so far if it changed soon. */
static void note_change(MshScan *scan, MshRegion *region, uint32_t page)
{
    unsigned level = msh_look_level(region->look[page]);
    level += level < MSH_LOOK_LEVEL_MAX && !msh_stretch_is_first_of_two(&scan->stretch);
    region->block[msh_region_block(region, page)].changed++;
    scan->tenure.lost += (region->look[page] & (MSH_LOOK_SIGHTED | MSH_LOOK_HELD)) != 0;
    msh_region_note_write(region, page);
    msh_count(&scan->counters->changed_pages, 1);
    msh_region_set_look(region, page, (uint8_t)(MSH_LOOK_AGAIN | level * MSH_LOOK_LEVEL),
                        scan->counters);
}

static bool must_stay(const MshBlock *block)
{
    return block->is_huge && block->quiet < MSH_BLOCK_QUIET;
}

static void propose_zero(MshScan *scan, MshRegion *region, uint32_t page, MshVisit *visit)
{
    MshBlock *block = &region->block[msh_region_block(region, page)];
    if (must_stay(block)) {
        msh_region_set_look(region, page, MSH_LOOK_WORTH, scan->counters);
        return;
    }
    msh_region_set_look(region, page, 0, scan->counters);
    block->proposed++;
    visit->candidate[visit->candidates++] =
        (MshCandidate){.frame = region->first_frame + page, .slot = MSH_SLOT_ZERO};
}

/* Asks about a stable page, unless it was asked about with these bytes already. */
static void propose(MshScan *scan, MshRegion *region, uint32_t page, uint64_t fingerprint,
                    MshVisit *visit)
{
    MshBlock *block = &region->block[msh_region_block(region, page)];
    bool is_worth = region->look[page] & MSH_LOOK_WORTH;
    if (!scan->wants_content) {
        msh_region_set_look(region, page, 0, scan->counters);
        return;
    }
    if (is_worth && must_stay(block))
        return; /* the answer is known, and would be turned down */
    if (msh_region_must_last(region, page, scan->tenure.level)) {
        msh_region_set_look(region, page, region->look[page] | MSH_LOOK_AGAIN | MSH_LOOK_HELD, scan->counters);
        scan->held++;
        return;
    }
    block->proposed += is_worth;
    bool is_news = !(region->look[page] & MSH_LOOK_SIGHTED) || scan->is_anew;
    msh_region_set_look(region, page, MSH_LOOK_SIGHTED, scan->counters);
    if (is_news)
        visit->sighting[visit->sightings++] =
            (MshSighting){.hash = fingerprint, .frame = region->first_frame + page};
}

/* What a page holds: MSH_WORD_ZERO, or the word of *ret_fingerprint, or MSH_WORD_UNKNOWN: no matter. */
static uint32_t read_page(MshScan *scan, const MshRegion *region, uint32_t page,
                          uint64_t *ret_fingerprint)
{
    const void *bytes = msh_region_address(region, page);
    if (msh_page_is_zero(bytes))
        return MSH_WORD_ZERO;
    /* Where no contents are wanted, they still tell whether a huge page is hot, if that matters. */
    bool matters = scan->wants_content || region->block[msh_region_block(region, page)].quiet;
    if (!matters || !scan->secret)
        return MSH_WORD_UNKNOWN;
    msh_page_prefetch((const uint8_t *)bytes + MSH_PAGE_BYTES);
    *ret_fingerprint = msh_fingerprint(scan->secret, bytes);
    msh_count(&scan->counters->hashed_pages, 1);
    return word_of(*ret_fingerprint);
}

static void note_first(MshScan *scan, MshRegion *region, uint32_t page)
{
    msh_region_note_write(region, page);
    msh_region_set_look(region, page, MSH_LOOK_AGAIN, scan->counters);
}

/* A present page of a block that is not tracked: stable when it holds what it held at the last look. */
static void look_at(MshScan *scan, MshRegion *region, uint32_t page, MshVisit *visit)
{
    if (!is_due(scan, region, page))
        return;
    uint64_t fingerprint = 0;
    uint32_t last = region->word[page];
    uint32_t word = read_page(scan, region, page, &fingerprint);
    region->word[page] = word;
    if (word == MSH_WORD_UNKNOWN)
        msh_region_set_look(region, page, 0, scan->counters);
    else if (last == MSH_WORD_UNKNOWN)
        note_first(scan, region, page);
    else if (word != last)
        note_change(scan, region, page);
    else if (word == MSH_WORD_ZERO)
        propose_zero(scan, region, page, visit);
    else
        propose(scan, region, page, fingerprint, visit);
}

/* A present page of a tracked block that nobody wrote to since the last visit: it is stable, and has to be
 * read once to be asked about. */
static void look_at_unwritten(MshScan *scan, MshRegion *region, uint32_t page, MshVisit *visit)
{
    if (!is_due(scan, region, page))
        return;
    uint64_t fingerprint = 0;
    uint32_t last = region->word[page];
    uint32_t word = read_page(scan, region, page, &fingerprint);
    region->word[page] = word;
    if (word != last)
        msh_region_set_look(region, page, 0, scan->counters); /* what was sighted is no more */
    if (word == MSH_WORD_UNKNOWN)
        msh_region_set_look(region, page, 0, scan->counters);
    else if (word == MSH_WORD_ZERO)
        propose_zero(scan, region, page, visit);
    else
        propose(scan, region, page, fingerprint, visit);
}

static void forget_look(MshScan *scan, MshRegion *region, uint32_t page, uint8_t look)
{
    region->word[page] = MSH_WORD_UNKNOWN;
    msh_region_set_look(region, page, look, scan->counters);
}

static void visit_present(MshScan *scan, MshRegion *region, uint32_t page, Manner manner,
                          MshVisit *visit)
{
    switch (manner) {
    case LOOK:
        look_at(scan, region, page, visit);
        break;
    case BEGIN:
        msh_region_set_look(region, page,
                            (scan->is_anew ? 0 : region->look[page]) | MSH_LOOK_AGAIN,
                            scan->counters);
        break;
    case LOOK_UNWRITTEN:
        look_at_unwritten(scan, region, page, visit);
        break;
    case NOTE_WRITTEN:
        note_change(scan, region, page);
        visit->written_pages++;
        break;
    }
}

static void visit_page(MshScan *scan, MshRegion *region, uint32_t page, uint8_t presence,
                       Manner manner, MshVisit *visit)
{
    /* What was written since a pass that was long ago is only noted, and read at the second look. */
    bool is_noted = manner == NOTE_WRITTEN && msh_stretch_is_first_of_two(&scan->stretch) &&
                    !msh_region_is_mapped(region, page);
    visit->scanned_pages += presence != 0 && !is_noted;
    if (presence & MSH_PRESENT_HUGE)
        region->block[msh_region_block(region, page)].is_huge = true;
    if (msh_region_is_mapped(region, page)) {
        visit_mapped(scan, region, page, presence, manner, visit);
        return;
    }
    bool is_hole = region->state[page] == MSH_PAGE_HOLE;
    if (presence & MSH_PRESENT_ZERO) {
        /* Splitting a huge page gives its zero pages back by itself: what held memory at the last
         * look and holds none now was saved by our splitting. */
        if (!is_hole && region->word[page] == MSH_WORD_ZERO) {
            msh_region_become(region, page, MSH_PAGE_HOLE, MSH_WORD_UNKNOWN, scan->counters);
            msh_count(&scan->counters->zeroed_pages, 1);
        }
        return;
    }
    if (!(presence & (MSH_PRESENT | MSH_SWAPPED))) {
        if (!is_hole)
            forget_look(scan, region, page, 0);
        return; /* I9 */
    }
    if (is_hole) /* touched since */
        msh_region_become(region, page, MSH_PAGE_PRIVATE, MSH_WORD_UNKNOWN, scan->counters);
    if (presence & MSH_PRESENT)
        visit_present(scan, region, page, manner, visit);
    else /* I9: swapped. When it comes back by a read, no kernel will tell */
        forget_look(scan, region, page, MSH_LOOK_AGAIN);
}

/*
 * Section: blocks
 */

/* Decides, at the end of a plain visit, whether the next one may begin to track the block. */
static void judge(MshBlock *block)
{
    bool is_settled = block->present && !block->is_huge &&
                      (unsigned)(block->changed + block->proposed) * SETTLED_SHARE <= block->present;
    block->settled = is_settled ? (uint8_t)(block->settled + (block->settled < MSH_BLOCK_SETTLED)) : 0;
}

static void begin_block(MshBlock *block)
{
    block->is_huge = false;
    block->present = block->changed = block->proposed = 0;
}

/* Judges, at the end of a visit, whether the next one may propose to split the huge page: by the pages that
 * were turned down and those proposed already, about which the answer may be on its way. */
static void judge_huge(MshBlock *block)
{
    bool is_quiet = block->is_huge && !msh_block_is_hot(block) &&
                    (unsigned)(block->worth + block->proposed) * SPLIT_SHARE >= block->present;
    block->quiet = is_quiet ? (uint8_t)(block->quiet + (block->quiet < MSH_BLOCK_QUIET)) : 0;
}

/* A huge page is not tracked, and neither is a block with nothing in it, nor a region that was only read so far. */
static bool is_trackable(MshRegion *region, const uint8_t *presence, uint32_t pages)
{
    uint8_t any = 0;
    for (uint32_t i = 0; i < pages; i++) {
        any |= presence[i];
        region->is_written |= (presence[i] & MSH_PRESENT) && !(presence[i] & MSH_PRESENT_ZERO);
    }
    return (any & MSH_PRESENT) && !(any & MSH_PRESENT_HUGE) && region->is_written;
}

/* Second looks end where the first ones did: what comes behind was not looked at yet, nor counted as present. */
static uint32_t visit_end(const MshScan *scan, const MshRegion *region, uint32_t end)
{
    if (!msh_stretch_is_second(&scan->stretch) || scan->stretch.end >= region->first_frame + end)
        return end;
    return scan->stretch.end - region->first_frame;
}

/* Every present page. A block that may be tracked is not looked at now: the next visit will know which of
 * its pages are stable without having read them twice. */
static int visit_plain(MshScan *scan, MshRegion *region, uint32_t first, uint32_t max_pages,
                       MshVisit *visit, uint32_t *ret_end)
{
    uint32_t number = msh_region_block(region, first);
    MshBlock *block = &region->block[number];
    uint32_t end = msh_region_block_end(region, number);
    bool is_start = first == msh_region_block_first(region, number);
    if (block->is_tracked)
        msh_track_drop(&scan->track, region, first, end);
    bool is_second = msh_stretch_is_second(&scan->stretch); /* maybe of a part of the block: it goes on counting */
    bool arm = is_start && block->settled == MSH_BLOCK_SETTLED && scan->may_track &&
               end <= visit_end(scan, region, end);
    if (is_start && !is_second)
        begin_block(block);
    if (!arm && end - first > max_pages)
        end = first + max_pages;
    end = visit_end(scan, region, end);
    uint8_t presence[MSH_SCAN_BLOCK_PAGES];
    int result = msh_presence_find(&scan->pagemap, region, first, end, presence);
    if (result < 0)
        return result;
    Manner manner = arm && is_trackable(region, presence, end - first) &&
                            msh_track_arm(&scan->track, region, number)
                        ? BEGIN
                        : LOOK;
    if (manner == BEGIN) {
        result = msh_presence_correct(&scan->pagemap, region, first, end, presence);
        if (result < 0) {
            msh_track_drop(&scan->track, region, first, end);
            return result;
        }
    }
    for (uint32_t i = 0; i < end - first; i++)
        visit_page(scan, region, first + i, presence[i], manner, visit);
    for (uint32_t i = 0; i < end - first && !is_second; i++)
        block->present += (uint16_t)((presence[i] & MSH_PRESENT) && !(presence[i] & MSH_PRESENT_ZERO));
    if (end == msh_region_block_end(region, number)) {
        scan->present += is_second ? 0 : block->present;
        judge_huge(block);
        if (!block->is_tracked)
            judge(block);
    }
    *ret_end = end;
    return 0;
}

/* So much is written here between two visits that telling it costs the guest more than a hash costs us. */
static void give_up(MshScan *scan, MshRegion *region, uint32_t first, uint32_t end)
{
    msh_track_drop(&scan->track, region, first, end);
    for (uint32_t block = msh_region_block(region, first);
         block <= msh_region_block(region, end - 1); block++)
        region->block[block].settled = 0;
}

/* Whether this pass leaves out a block where nothing was written for long, and nothing is to be done. */
static bool rests(const MshScan *scan, const MshRegion *region, uint32_t number)
{
    const MshBlock *block = &region->block[number];
    return block->calm == MSH_BLOCK_CALM && block->again == 0 && block->broken == 0 &&
           (scan->pass + number / CALM_ROW_BLOCKS) % CALM_PASSES != 0;
}

/* How far a row of tracked blocks goes in which nothing is to be looked at again, and that all rest or all do
 * not. */
static uint32_t row_end(const MshScan *scan, const MshRegion *region, uint32_t block)
{
    uint32_t next = block + 1;
    bool row_rests = rests(scan, region, block);
    while (next < msh_region_blocks(region) && next - block < ROW_BLOCKS &&
           region->block[next].is_tracked && region->block[next].again == 0 &&
           rests(scan, region, next) == row_rests)
        next++;
    return msh_region_block_end(region, next - 1);
}

/* Of the blocks that were harvested to their end. */
static void judge_calm(MshRegion *region, const MshHarvest *harvest)
{
    for (uint32_t block = msh_region_block(region, harvest->first);
         block < msh_region_blocks(region) && msh_region_block_end(region, block) <= harvest->end; block++)
        if (region->block[block].calm < MSH_BLOCK_CALM)
            region->block[block].calm++;
    for (uint32_t i = 0; i < harvest->ranges; i++)
        for (uint32_t block = msh_region_block(region, harvest->written[i].first);
             block <= msh_region_block(region, harvest->written[i].end - 1); block++)
            region->block[block].calm = 0;
}

/* A page of a tracked block that the kernel calls written. Pages that we have mapped are so called when they
 * were protected by nobody yet. */
static Manner manner_of(const MshRegion *region, uint32_t page)
{
    return region->look[page] & MSH_LOOK_LIFTED ? LOOK : NOTE_WRITTEN;
}

/* In one block: what was written, and what was to be looked at again. */
static int visit_again(MshScan *scan, MshRegion *region, MshHarvest *harvest, MshVisit *visit)
{
    uint8_t presence[MSH_SCAN_BLOCK_PAGES];
    bool is_written[MSH_SCAN_BLOCK_PAGES];
    int result = msh_presence_take_block(&scan->track, region, harvest, presence, is_written);
    if (result < 0)
        return result;
    for (uint32_t page = harvest->first; page < harvest->end; page++) {
        uint32_t i = page - harvest->first;
        if (is_written[i])
            visit_page(scan, region, page, presence[i], manner_of(region, page), visit);
        else if (region->look[page] & MSH_LOOK_AGAIN)
            visit_page(scan, region, page, presence[i], LOOK_UNWRITTEN, visit);
    }
    return 0;
}

/* In a row of blocks: what was written. */
static int visit_written(MshScan *scan, MshRegion *region, MshHarvest *harvest, MshVisit *visit)
{
    uint8_t presence[MSH_SCAN_BLOCK_PAGES];
    int result = msh_presence_take(&scan->track, region, harvest, presence);
    if (result < 0)
        return result; /* before any page is visited: of a visit that failed nobody gives slots back */
    uint32_t at = 0;
    for (uint32_t i = 0; i < harvest->ranges; i++)
        for (uint32_t page = harvest->written[i].first; page < harvest->written[i].end; page++)
            visit_page(scan, region, page, presence[at++], manner_of(region, page), visit);
    return 0;
}

/* Counts what was not looked at, and what was there at the last plain visit. */
static void pass_over(MshScan *scan, const MshRegion *region, const MshHarvest *harvest, MshVisit *visit)
{
    for (uint32_t block = msh_region_block(region, harvest->first);
         block < msh_region_blocks(region) && msh_region_block_end(region, block) <= harvest->end; block++)
        scan->present += msh_stretch_is_second(&scan->stretch) ? 0 : region->block[block].present;
    visit->skipped_pages += harvest->end - harvest->first - visit->scanned_pages;
}

static int visit_tracked(MshScan *scan, MshRegion *region, uint32_t first, MshVisit *visit,
                         uint32_t *ret_end)
{
    uint32_t number = msh_region_block(region, first);
    bool is_lone = region->block[number].again > 0;
    uint32_t end = visit_end(
        scan, region,
        is_lone ? msh_region_block_end(region, number) : row_end(scan, region, number));
    MshHarvest harvest = {.first = first, .end = end};
    if (rests(scan, region, number)) {
        pass_over(scan, region, &harvest, visit);
        *ret_end = end;
        return 0;
    }
    int result = msh_track_harvest(&scan->track, region, first, end, MSH_SCAN_BLOCK_PAGES, &harvest);
    if (result == 0)
        result = is_lone ? visit_again(scan, region, &harvest, visit)
                         : visit_written(scan, region, &harvest, visit);
    if (result < 0) {
        msh_track_drop(&scan->track, region, first, end); /* what was written there may be forgotten */
        return result;
    }
    judge_calm(region, &harvest);
    pass_over(scan, region, &harvest, visit);
    if (visit->written_pages * RESTLESS_SHARE > MSH_SCAN_BLOCK_PAGES &&
        !msh_stretch_is_first_of_two(&scan->stretch))
        give_up(scan, region, first, harvest.end);
    *ret_end = harvest.end;
    return 0;
}

/* The walk begins anew, or turns back. Quick passes follow each other within milliseconds: what held for some of them
 * held for no time. */
static void note_turn(MshScan *scan)
{
    if (scan->now_ns && !scan->is_eager && scan->now_ns - scan->tick_ns < TICK_NS)
        return;
    scan->tick++;
    scan->tick_ns = scan->now_ns;
    if (scan->is_eager)
        return;
    const MshCounters *counters = scan->counters;
    msh_tenure_tick(&scan->tenure, msh_read(&counters->merged_pages),
                    msh_read(&counters->shared_pages) + msh_read(&counters->unique_pages) + scan->held_before);
}

void msh_scan_restart(MshScan *scan)
{
    scan->cursor_frame = 0;
    scan->present = 0;
    scan->held_before = scan->held;
    scan->held = 0;
    scan->pass++;
    note_turn(scan);
    msh_stretch_restart(&scan->stretch, scan->now_ns);
    scan->is_anew = scan->wants_anew;
    scan->wants_anew = false;
}

static void clear(MshVisit *visit)
{
    visit->scanned_pages = visit->skipped_pages = visit->written_pages = 0;
    visit->sightings = visit->candidates = visit->broken = 0;
    visit->is_pass_end = false;
    visit->region = NULL;
}

/* Where the walk goes on; NULL: all is visited. Memory that lay before it, or all that a stretch was to come
 * back to, may have been unregistered since the last visit. */
static MshRegion *next_region(MshScan *scan, const MshMemory *memory)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < memory->count; i++)
        pages += memory->region[i]->pages;
    for (;;) {
        MshRegion *region = msh_memory_next(memory, scan->cursor_frame);
        if (region && scan->cursor_frame < region->first_frame)
            scan->cursor_frame = region->first_frame;
        if (!scan->now_ns)
            return region;
        uint32_t frame =
            msh_stretch_next(&scan->stretch, scan->cursor_frame, !region, pages, scan->now_ns);
        if (frame == scan->cursor_frame)
            return region;
        note_turn(scan);
        scan->cursor_frame = frame;
    }
}

int msh_scan_visit(MshScan *scan, const MshMemory *memory, uint32_t max_pages, MshVisit *ret_visit)
{
    clear(ret_visit);
    MshRegion *region = next_region(scan, memory);
    ret_visit->is_pass_end = !region;
    if (!region) {
        msh_gauge(&scan->counters->present_pages, scan->present);
        msh_scan_restart(scan);
        return 0;
    }
    region->tick = scan->tick;
    uint32_t first = scan->cursor_frame - region->first_frame;
    uint32_t end = first;
    bool is_tracked = region->block[msh_region_block(region, first)].is_tracked;
    bool is_anew = scan->is_anew && !msh_stretch_is_second(&scan->stretch); /* once is enough */
    int result = is_tracked && !is_anew
                     ? visit_tracked(scan, region, first, ret_visit, &end)
                     : visit_plain(scan, region, first, max_pages, ret_visit, &end);
    msh_count(&scan->counters->scanned_pages, ret_visit->scanned_pages);
    msh_count(&scan->counters->skipped_pages, ret_visit->skipped_pages);
    ret_visit->region = region;
    ret_visit->first = first;
    ret_visit->end = end;
    if (result == 0)
        scan->cursor_frame = region->first_frame + end;
    return result;
}

MshView *msh_scan_leaving_view(const MshViews *views, const MshRegion *region, uint32_t page)
{
    if (!msh_region_is_mapped(region, page))
        return NULL;
    MshView *view = msh_views_of(views, (MshSlot){region->word[page]});
    return view && atomic_load(&view->is_leaving) ? view : NULL;
}

bool msh_scan_leaving(MshScan *scan, const MshMemory *memory, const MshViews *views, uint32_t *frame,
                      MshVisit *ret_visit)
{
    clear(ret_visit);
    MshRegion *region = msh_memory_next(memory, *frame);
    if (!region || !scan->secret)
        return false;
    uint32_t first = *frame > region->first_frame ? *frame - region->first_frame : 0;
    uint32_t leap = first; /* no page to where there is none that leaves */
    while (leap < region->pages && leap - first < LEAP_PAGES && !msh_scan_leaving_view(views, region, leap))
        leap++;
    first = leap;
    uint32_t end = region->pages - first > MSH_SCAN_BLOCK_PAGES ? first + MSH_SCAN_BLOCK_PAGES
                                                               : region->pages;
    for (uint32_t page = first; page < end; page++) {
        if (region->state[page] != MSH_PAGE_SHARED || (region->look[page] & MSH_LOOK_MOVING) ||
            !msh_scan_leaving_view(views, region, page))
            continue;
        MshSlot slot = {region->word[page]};
        uint64_t hash = msh_fingerprint(scan->secret, msh_view_page(msh_views_of(views, slot), slot));
        msh_region_set_look(region, page, MSH_LOOK_MOVING, scan->counters);
        ret_visit->sighting[ret_visit->sightings++] =
            (MshSighting){.hash = hash, .frame = region->first_frame + page};
        ret_visit->scanned_pages++;
    }
    msh_count(&scan->counters->scanned_pages, ret_visit->scanned_pages);
    msh_count(&scan->counters->hashed_pages, ret_visit->scanned_pages);
    ret_visit->region = region;
    ret_visit->first = first;
    ret_visit->end = end;
    *frame = region->first_frame + end;
    return true;
}
