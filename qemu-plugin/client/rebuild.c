/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "rebuild.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fingerprint.h"

#define MODES (MSH_UFFD_MISSING_PAGES | MSH_UFFD_WRITES)

/* The run, and the plain page on each side that the new memory is to join. */
typedef struct Site {
    MshRegion *region;
    uint32_t page, pages;
    uint8_t *home;
    size_t length_bytes;
    uint8_t *wide; /* with the neighbours */
    size_t wide_bytes;
    bool is_zero[MSH_REBUILD_PAGES];
} Site;

static void *event_main(void *opaque)
{
    MshRebuild *rebuild = opaque;
    struct pollfd waits[2] = {{.fd = rebuild->uffd.fd, .events = POLLIN},
                              {.fd = rebuild->stop_fd, .events = POLLIN}};
    pthread_setname_np(pthread_self(), "memshare-events");
    while (!(waits[1].revents & POLLIN)) {
        poll(waits, 2, -1);
        if (waits[0].revents & POLLIN)
            msh_uffd_discard_events(&rebuild->uffd);
    }
    return NULL;
}

int msh_rebuild_init(MshRebuild *rebuild, int device_fd, const MshPagemap *pagemap,
                     const MshViews *views, MshCounters *counters, MshError *error)
{
    rebuild->uffd.fd = -1;
    rebuild->pagemap = pagemap;
    rebuild->views = views;
    rebuild->counters = counters;
    int result = msh_uffd_open(&rebuild->uffd, device_fd, MSH_UFFD_FOR_REBUILD, error);
    if (result < 0)
        return result;
    rebuild->copies = mmap(NULL, msh_pages_to_bytes(MSH_REBUILD_PAGES), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    rebuild->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (rebuild->copies == MAP_FAILED || rebuild->stop_fd < 0) {
        result = -errno;
    } else {
        madvise(rebuild->copies, msh_pages_to_bytes(MSH_REBUILD_PAGES), MADV_DONTFORK);
        madvise(rebuild->copies, msh_pages_to_bytes(MSH_REBUILD_PAGES), MADV_NOHUGEPAGE);
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        result = -pthread_create(&rebuild->event_thread, NULL, event_main, rebuild);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (result == 0) {
        atomic_store(&rebuild->is_working, true);
        return 0;
    }
    if (rebuild->copies != MAP_FAILED)
        munmap(rebuild->copies, msh_pages_to_bytes(MSH_REBUILD_PAGES));
    if (rebuild->stop_fd >= 0)
        close(rebuild->stop_fd);
    msh_uffd_close(&rebuild->uffd);
    return msh_error_set(error, result, "no means to rebuild memory: %s", strerror(-result));
}

/* Closing the descriptor unregisters everything and wakes everybody; no more is rebuilt. */
static void stop(MshRebuild *rebuild)
{
    if (!atomic_exchange(&rebuild->is_working, false))
        return;
    (void)eventfd_write(rebuild->stop_fd, 1);
    pthread_join(rebuild->event_thread, NULL);
    msh_uffd_close(&rebuild->uffd);
}

void msh_rebuild_fini(MshRebuild *rebuild)
{
    stop(rebuild);
    munmap(rebuild->copies, msh_pages_to_bytes(MSH_REBUILD_PAGES));
    close(rebuild->stop_fd);
}

void msh_rebuild_close_range(MshRebuild *rebuild, void *start, size_t length_bytes)
{
    /* Also when something failed: this takes the protection off again, and sleepers must not sleep
     * on. I8 */
    bool is_stuck = msh_uffd_unregister(&rebuild->uffd, start, length_bytes) < 0;
    msh_uffd_wake(&rebuild->uffd, start, length_bytes);
    if (is_stuck)
        stop(rebuild); /* or who touches a hole there would sleep for ever */
}

static Site find_site(MshRegion *region, uint32_t page, uint32_t end)
{
    Site site = {.region = region, .page = page};
    while (site.pages < MSH_REBUILD_PAGES && page + site.pages < end &&
           msh_region_is_mapped(region, page + site.pages))
        site.pages++;
    uint32_t last = page + site.pages;
    uint32_t wide_first = page > 0 && !msh_region_is_mapped(region, page - 1) ? page - 1 : page;
    uint32_t wide_end =
        last < region->pages && !msh_region_is_mapped(region, last) ? last + 1 : last;
    site.home = msh_region_address(region, page);
    site.length_bytes = msh_pages_to_bytes(site.pages);
    site.wide = msh_region_address(region, wide_first);
    site.wide_bytes = msh_pages_to_bytes(wide_end - wide_first);
    return site;
}

/*
 * Memory with exactly the flags of the region's own, or the kernel would not join it; never touched. NULL: none can
 * be had now. It must be no part of a mapping in use beside it either, not even for a moment: it would keep that one's
 * anon_vma, and be joined with nothing at home. So nobody may read it until it is registered, like no other mapping. I12
 */
static uint8_t *map_fresh(MshRebuild *rebuild, const Site *site)
{
    const MshRegion *region = site->region;
    uint8_t *fresh =
        mmap(NULL, site->length_bytes, PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | (region->no_reserve ? MAP_NORESERVE : 0), -1, 0);
    if (fresh == MAP_FAILED)
        return NULL;
    if (region->dont_fork)
        madvise(fresh, site->length_bytes, MADV_DONTFORK);
    if (region->dont_dump)
        madvise(fresh, site->length_bytes, MADV_DONTDUMP);
    if (region->advises_huge)
        madvise(fresh, site->length_bytes, MADV_NOHUGEPAGE);
    if (msh_uffd_register(&rebuild->uffd, fresh, site->length_bytes, MODES) == 0 &&
        mprotect(fresh, site->length_bytes, PROT_READ | PROT_WRITE) == 0)
        return fresh;
    munmap(fresh, site->length_bytes);
    return NULL;
}

/* Under the write protection. Never reads a plain page: a hole would make us wait for ourselves. */
static void copy_out(MshRebuild *rebuild, Site *site)
{
    for (uint32_t i = 0; i < site->pages; i++) {
        const uint8_t *page = site->home + msh_pages_to_bytes(i);
        site->is_zero[i] = msh_page_is_zero(page);
        if (!site->is_zero[i])
            msh_page_copy(rebuild->copies + msh_pages_to_bytes(i), page);
    }
}

/* May wait, may not fail: the address holds nothing. I1 */
static void move_in(MshRebuild *rebuild, const Site *site)
{
    for (uint32_t i = 0; i < site->pages;) {
        if (site->is_zero[i]) {
            i++;
            continue;
        }
        uint32_t end = i + 1;
        while (end < site->pages && !site->is_zero[end])
            end++;
        uint8_t *home = site->home + msh_pages_to_bytes(i);
        uint8_t *copy = rebuild->copies + msh_pages_to_bytes(i);
        size_t moved_bytes = 0;
        msh_uffd_move(&rebuild->uffd, rebuild->pagemap, home, copy, msh_pages_to_bytes(end - i),
                      &moved_bytes);
        if (moved_bytes)
            i += (uint32_t)msh_bytes_to_pages(moved_bytes);
        else if (msh_uffd_copy(&rebuild->uffd, home, copy, MSH_PAGE_BYTES) == 0)
            i++;
        else
            sched_yield();
    }
}

/* Only ever with memory that is registered: any other would show zeros to who touches it before the
 * contents are in, and swallow what is written. -errno: the old mapping is there still. */
static int put_in_place(const Site *site, uint8_t *fresh)
{
    unsigned char residency[MSH_REBUILD_PAGES];
    while (mremap(fresh, site->length_bytes, site->length_bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                  site->home) != site->home) {
        int result = -errno;
        if (mincore(site->home, site->length_bytes, residency) == 0)
            return result;
        /* It failed after it had unmapped its target: there is no way back. I1 */
        sched_yield();
    }
    return 0;
}

static int replace(MshRebuild *rebuild, Site *site, uint8_t *fresh, const MshPinOracle *pins)
{
    int result = msh_uffd_register(&rebuild->uffd, site->wide, site->wide_bytes, MODES);
    if (result == 0)
        result = msh_uffd_protect(&rebuild->uffd, site->home, site->length_bytes, true);
    if (result != 0)
        return result;
    /* Who pins a page for writing has to wait from here on; who began before is seen now. Asked any earlier, one
     * that began in between would write to the page that is about to go. I1 */
    if (pins && !pins->nothing_pinned(pins->opaque))
        return -EBUSY;
    copy_out(rebuild, site);
    result = put_in_place(site, fresh);
    if (result == 0)
        move_in(rebuild, site);
    return result;
}

static void record(MshRebuild *rebuild, const Site *site, MshSlot *returned, size_t *returned_count)
{
    MshRegion *region = site->region;
    MshCounters *counters = rebuild->counters;
    uint32_t end = site->page + site->pages;
    uint32_t before = msh_region_boundaries(region, site->page, end);
    for (uint32_t i = 0; i < site->pages; i++) {
        uint32_t page = site->page + i;
        MshSlot slot = {region->word[page]};
        atomic_fetch_sub(&msh_views_of(rebuild->views, slot)->mapped_pages, 1);
        if (region->state[page] == MSH_PAGE_SHARED)
            returned[(*returned_count)++] = slot;
        msh_region_become(region, page, site->is_zero[i] ? MSH_PAGE_HOLE : MSH_PAGE_PRIVATE,
                          MSH_WORD_UNKNOWN, counters);
        msh_count(&counters->zeroed_pages, site->is_zero[i]);
    }
    uint32_t after = msh_region_boundaries(region, site->page, end);
    msh_count(&counters->mappings, (uint64_t)after - before);
    msh_count(&counters->own_mappings, (uint64_t)after - before);
    msh_count(&counters->rebuilt_pages, site->pages);
}

int msh_rebuild_run(MshRebuild *rebuild, MshRegion *region, uint32_t page, uint32_t end,
                    const MshPinOracle *pins, uint32_t *ret_end, MshSlot ret_returned[MSH_REBUILD_PAGES],
                    size_t *ret_returned_count)
{
    Site site = find_site(region, page, end);
    uint8_t *fresh = map_fresh(rebuild, &site);
    if (!fresh)
        return -EBUSY;
    int result = replace(rebuild, &site, fresh, pins);
    if (result != 0)
        munmap(fresh, site.length_bytes);
    if (result != MSH_E_UFFD_FOREIGN)
        msh_rebuild_close_range(rebuild, site.wide, site.wide_bytes);
    if (result != 0)
        return result < 0 ? result : -EBUSY;
    *ret_returned_count = 0;
    record(rebuild, &site, ret_returned, ret_returned_count);
    *ret_end = site.page + site.pages;
    return 0;
}
