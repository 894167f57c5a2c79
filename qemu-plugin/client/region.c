/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "region.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>

#include "twin.h"

/* All ranges that any engine of this process has registered: two engines on one range would replace
 * each other's pages. */
typedef struct Claim {
    uint8_t *base;
    size_t length_bytes;
    LIST_ENTRY(Claim) link;
} Claim;

static LIST_HEAD(ClaimList, Claim) claims = LIST_HEAD_INITIALIZER(claims);
static pthread_mutex_t claims_lock = PTHREAD_MUTEX_INITIALIZER;

static int claim_range(uint8_t *base, size_t length_bytes, MshError *error)
{
    Claim *fresh = malloc(sizeof *fresh);
    if (!fresh)
        return msh_error_set(error, -ENOMEM, "out of memory");
    *fresh = (Claim){.base = base, .length_bytes = length_bytes};
    pthread_mutex_lock(&claims_lock);
    Claim *other;
    LIST_FOREACH (other, &claims, link) {
        if (base < other->base + other->length_bytes && other->base < base + length_bytes) {
            msh_error_set(error, -EEXIST, "%p-%p overlaps %p-%p, which is registered already",
                          (void *)base, (void *)(base + length_bytes), (void *)other->base,
                          (void *)(other->base + other->length_bytes));
            pthread_mutex_unlock(&claims_lock);
            free(fresh);
            return -EEXIST;
        }
    }
    LIST_INSERT_HEAD(&claims, fresh, link);
    pthread_mutex_unlock(&claims_lock);
    return 0;
}

static void unclaim_range(const uint8_t *base)
{
    pthread_mutex_lock(&claims_lock);
    Claim *claim;
    LIST_FOREACH (claim, &claims, link) {
        if (claim->base == base) {
            LIST_REMOVE(claim, link);
            free(claim);
            break;
        }
    }
    pthread_mutex_unlock(&claims_lock);
}

typedef struct Vma {
    uint64_t start, end;
    char permissions[5];
    unsigned long inode;
    char flags[256]; /* " rd wr ... " of VmFlags */
} Vma;

static bool has_flag(const Vma *vma, const char *flag)
{
    char spaced[8];
    snprintf(spaced, sizeof spaced, " %s ", flag);
    return strstr(vma->flags, spaced) != NULL;
}

static int check_vma(const Vma *vma, uint64_t start, uint64_t end, MshError *error)
{
    const char *what = NULL;
    if (vma->permissions[3] == 's' || has_flag(vma, "sh"))
        what = "is shared memory";
    else if (has_flag(vma, "ht"))
        what = "is backed by hugetlbfs";
    else if (vma->inode)
        what = "is a file mapping";
    else if (vma->permissions[0] != 'r' || vma->permissions[1] != 'w')
        what = "is not readable and writable";
    else if (vma->permissions[2] == 'x')
        what = "is executable"; /* a store mapping would not be */
    else if (has_flag(vma, "lo"))
        what = "is locked in memory";
    else if (has_flag(vma, "wf"))
        what = "is wiped on fork";
    else if (has_flag(vma, "io") || has_flag(vma, "pf"))
        what = "is device memory";
    else if (has_flag(vma, "um") || has_flag(vma, "uw"))
        what = "is registered with another userfaultfd";
    if (!what)
        return 0;
    return msh_error_set(error, -EPERM, "%#lx-%#lx cannot be shared: %#lx-%#lx %s",
                         (unsigned long)start, (unsigned long)end, (unsigned long)vma->start,
                         (unsigned long)vma->end, what);
}

/* Walks smaps once; the range must be covered without a gap by mappings that pass. */
static int check_range(MshRegion *region, uint64_t start, uint64_t end, MshError *error)
{
    FILE *smaps = fopen("/proc/self/smaps", "re");
    if (!smaps)
        return msh_error_set(error, -errno, "/proc/self/smaps cannot be read: %s", strerror(errno));
    char *line = NULL;
    size_t capacity = 0;
    uint64_t covered = start;
    int result = 0;
    Vma vma = {0};
    while (result == 0 && covered < end && getline(&line, &capacity, smaps) > 0) {
        unsigned long vma_start, vma_end, inode;
        char permissions[5];
        if (sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu", &vma_start, &vma_end, permissions,
                   &inode) == 4) {
            vma = (Vma){.start = vma_start, .end = vma_end, .inode = inode};
            memcpy(vma.permissions, permissions, sizeof permissions);
        } else if (strncmp(line, "VmFlags:", 8) == 0 && vma.start <= covered && covered < vma.end) {
            snprintf(vma.flags, sizeof vma.flags, " %s", line + 8);
            char *newline = strchr(vma.flags, '\n');
            if (newline)
                *newline = ' ';
            result = check_vma(&vma, start, end, error);
            region->advises_huge |= has_flag(&vma, "hg");
            region->dont_fork |= has_flag(&vma, "dc");
            region->dont_dump |= has_flag(&vma, "dd");
            region->is_whole = vma.start <= start && vma.end >= end;
            covered = vma.end;
        }
    }
    free(line);
    fclose(smaps);
    if (result == 0 && covered < end)
        result = msh_error_set(error, -ENOMEM, "%#lx-%#lx is not mapped at %#lx",
                               (unsigned long)start, (unsigned long)end, (unsigned long)covered);
    return result;
}

int msh_region_new(void *address, size_t length_bytes, MshRegion **ret_region, MshError *error)
{
    uint64_t start = (uintptr_t)address;
    if (length_bytes == 0 || !msh_is_page_aligned(start) || !msh_is_page_aligned(length_bytes))
        return msh_error_set(error, -EINVAL,
                             "address %#lx and length %zu must be whole pages of %u bytes, and not "
                             "empty",
                             (unsigned long)start, length_bytes, MSH_PAGE_BYTES);
    if (start + length_bytes < start || msh_bytes_to_pages(length_bytes) >= UINT32_MAX)
        return msh_error_set(error, -E2BIG, "%zu bytes at %#lx are more than can be registered",
                             length_bytes, (unsigned long)start);

    MshRegion *region = calloc(1, sizeof *region);
    if (!region)
        return msh_error_set(error, -ENOMEM, "out of memory");
    int result = check_range(region, start, start + length_bytes, error);
    if (result == 0)
        result = claim_range(address, length_bytes, error);
    if (result < 0) {
        free(region);
        return result;
    }
    region->base = address;
    region->pages = (uint32_t)msh_bytes_to_pages(length_bytes);
    region->state = calloc(region->pages, sizeof *region->state);
    region->word = calloc(region->pages, sizeof *region->word);
    region->look = calloc(region->pages, sizeof *region->look);
    region->merge = calloc(region->pages, sizeof *region->merge);
    region->block = calloc(msh_region_blocks(region), sizeof *region->block);
    if (!region->state || !region->word || !region->look || !region->merge || !region->block) {
        msh_region_free(region);
        return msh_error_set(error, -ENOMEM, "no memory for the page map of %zu bytes",
                             length_bytes);
    }
    for (uint32_t block = 0; block < msh_region_blocks(region); block++)
        region->block[block].settled = MSH_BLOCK_SETTLED;
    *ret_region = region;
    return 0;
}

MshRegion *msh_region_free(MshRegion *region)
{
    if (!region)
        return NULL;
    msh_twin_drop(region);
    unclaim_range(region->base);
    free(region->state);
    free(region->word);
    free(region->look);
    free(region->merge);
    free(region->block);
    free(region);
    return NULL;
}

void msh_region_set_sharing(const MshRegion *region, bool sharing)
{
    /* khugepaged would fill holes again with huge pages of zeros. Memory whose owner did not ask for
     * huge pages is left alone: no advice takes this one back. A failure costs savings only. */
    if (region->advises_huge)
        madvise(region->base, msh_pages_to_bytes(region->pages),
                sharing ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
}

static bool is_boundary(const MshRegion *region, uint32_t page)
{
    bool left = msh_region_is_mapped(region, page - 1), right = msh_region_is_mapped(region, page);
    if (left && right)
        return region->word[page] != region->word[page - 1] + 1 ||
               msh_slot_segment((MshSlot){region->word[page]}) !=
                   msh_slot_segment((MshSlot){region->word[page - 1]});
    return left != right;
}

uint32_t msh_region_boundaries(const MshRegion *region, uint32_t first, uint32_t end)
{
    uint32_t count = 0;
    for (uint32_t page = first ? first : 1; page <= end && page < region->pages; page++)
        count += is_boundary(region, page);
    return count;
}

bool msh_region_note_worth(MshRegion *region, uint32_t page, MshCounters *counters)
{
    if (region->state[page] != MSH_PAGE_PRIVATE ||
        msh_block_may_open(&region->block[msh_region_block(region, page)]))
        return false;
    msh_region_set_look(region, page, MSH_LOOK_WORTH, counters);
    return true;
}

uint64_t msh_region_overhead_bytes(const MshRegion *region)
{
    return sizeof *region +
           (uint64_t)region->pages *
               (sizeof *region->state + sizeof *region->look + sizeof *region->merge + sizeof *region->word) +
           msh_region_blocks(region) * sizeof *region->block;
}

uint32_t msh_region_block_first(const MshRegion *region, uint32_t block)
{
    uint64_t skipped = (uintptr_t)region->base % MSH_HUGE_PAGE_BYTES;
    uint64_t first_bytes = (uint64_t)block * MSH_HUGE_PAGE_BYTES;
    return first_bytes > skipped ? (uint32_t)msh_bytes_to_pages(first_bytes - skipped) : 0;
}

uint32_t msh_region_block_end(const MshRegion *region, uint32_t block)
{
    uint32_t end = msh_region_block_first(region, block + 1);
    return end < region->pages ? end : region->pages;
}

/* The gauge that counts pages in a state; NULL: none does. */
static MshCounter *gauge_of(MshPageState state, MshCounters *counters)
{
    switch (state) {
    case MSH_PAGE_HOLE:
        return &counters->zero_pages;
    case MSH_PAGE_SHARED:
        return &counters->shared_pages;
    case MSH_PAGE_BROKEN:
        return &counters->broken_pages;
    default:
        return NULL;
    }
}

/* Of MshRegion.merge: the level is in multiples of TICKS. */
enum { TICKS = 1 << 13 };

/* Rebuilding a page and merging it again takes the processor some hundred times as long as hashing it, and the guest waits
 * for a part of that: what is written again within seconds, as a page cache that is read through is, saves less than it
 * costs. */
enum { SOON_TICKS = 6, LEVEL_STEP = 2, LEVEL_TICKS = 2, STABLE_TICKS = 1 };

static unsigned level_of(const MshRegion *region, uint32_t page)
{
    return region->merge[page] / TICKS;
}

static void stamp(MshRegion *region, uint32_t page, unsigned level)
{
    region->merge[page] = (uint16_t)(level * TICKS + region->tick % TICKS);
}

static uint32_t ticks_since(const MshRegion *region, uint32_t page)
{
    return (region->tick - region->merge[page]) % TICKS;
}

static void note_merge(MshRegion *region, uint32_t page, MshPageState from, MshPageState to)
{
    if (to == MSH_PAGE_HOLE || from == MSH_PAGE_HOLE)
        stamp(region, page, 0);
    else if (to == MSH_PAGE_SHARED && from != MSH_PAGE_SHARED)
        stamp(region, page, level_of(region, page));
}

bool msh_region_note_break(MshRegion *region, uint32_t page, bool is_eager)
{
    unsigned level = level_of(region, page);
    bool is_soon = ticks_since(region, page) < SOON_TICKS && !is_eager;
    if (is_soon)
        level = level + LEVEL_STEP < MSH_REGION_LEVEL_MAX ? level + LEVEL_STEP : MSH_REGION_LEVEL_MAX;
    else
        level -= level > 0;
    stamp(region, page, level);
    return is_soon;
}

void msh_region_note_write(MshRegion *region, uint32_t page)
{
    stamp(region, page, level_of(region, page));
}

static uint32_t ticks_due(const MshRegion *region, uint32_t page, unsigned level)
{
    unsigned own = level_of(region, page);
    return (own > level ? own : level) * LEVEL_TICKS;
}

bool msh_region_must_last(const MshRegion *region, uint32_t page, unsigned level)
{
    return ticks_since(region, page) < ticks_due(region, page, level);
}

bool msh_region_is_mendable(const MshRegion *region, uint32_t page, unsigned level)
{
    uint32_t due = ticks_due(region, page, level);
    return region->state[page] == MSH_PAGE_BROKEN &&
           ticks_since(region, page) >= (due > STABLE_TICKS ? due : STABLE_TICKS);
}

void msh_region_become(MshRegion *region, uint32_t page, MshPageState to, uint32_t word,
                       MshCounters *counters)
{
    MshPageState from = region->state[page];
    assert(msh_transition_is_known(from, to));
    MshCounter *left = gauge_of(from, counters), *entered = gauge_of(to, counters);
    if (left)
        msh_uncount(left, 1);
    if (entered)
        msh_count(entered, 1);
    MshBlock *block = &region->block[msh_region_block(region, page)];
    block->broken = (uint16_t)(block->broken + (to == MSH_PAGE_BROKEN) - (from == MSH_PAGE_BROKEN));
    note_merge(region, page, from, to);
    msh_region_set_look(region, page, 0, counters);
    region->state[page] = (uint8_t)to;
    region->word[page] = word;
}

void msh_region_set_look(MshRegion *region, uint32_t page, uint8_t look, MshCounters *counters)
{
    uint8_t before = region->look[page];
    if (before == look)
        return;
    MshBlock *block = &region->block[msh_region_block(region, page)];
    if ((before ^ look) & MSH_LOOK_SIGHTED)
        msh_count(&counters->unique_pages, look & MSH_LOOK_SIGHTED ? 1 : UINT64_MAX);
    if ((msh_look_level(before) > 0) != (msh_look_level(look) > 0))
        msh_count(&counters->volatile_pages, msh_look_level(look) ? 1 : UINT64_MAX);
    if ((before ^ look) & MSH_LOOK_AGAIN)
        block->again = (uint16_t)(look & MSH_LOOK_AGAIN ? block->again + 1 : block->again - 1);
    if ((before ^ look) & MSH_LOOK_WORTH)
        block->worth = (uint16_t)(look & MSH_LOOK_WORTH ? block->worth + 1 : block->worth - 1);
    region->look[page] = look;
}

void msh_region_uncount(MshRegion *region, MshCounters *counters)
{
    for (uint32_t page = 0; page < region->pages; page++) {
        MshCounter *left = gauge_of(region->state[page], counters);
        if (left)
            msh_uncount(left, 1);
        msh_region_set_look(region, page, 0, counters);
    }
}
