/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernel_abi.h"
#include "memshare/units.h"

enum { REGIONS_A_CALL = 256 };

int msh_pagemap_open(MshPagemap *pagemap, MshError *error)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return msh_error_set(error, -errno, "/proc/self/pagemap cannot be opened: %s",
                             strerror(errno));
    pagemap->fd = fd;

    static _Alignas(4096) char probe_page[MSH_PAGE_BYTES];
    uint8_t presence = 0;
    ((volatile char *)probe_page)[0] = 1;
    int result = msh_pagemap_scan(pagemap, probe_page, 1, false, &presence);
    if (result == 0 && (presence & MSH_PRESENT))
        return 0;
    msh_pagemap_close(pagemap);
    return msh_error_set(error, -ENOSYS, "this kernel cannot scan page tables (PAGEMAP_SCAN, "
                                         "Linux 6.7)");
}

void msh_pagemap_close(MshPagemap *pagemap)
{
    if (pagemap->fd >= 0)
        close(pagemap->fd);
    pagemap->fd = -1;
}

static uint8_t presence_of(uint64_t categories)
{
    return (uint8_t)(((categories & MSH_PAGE_IS_PRESENT) ? MSH_PRESENT : 0) |
                     ((categories & MSH_PAGE_IS_FILE) ? MSH_PRESENT_FILE : 0) |
                     ((categories & MSH_PAGE_IS_PFNZERO) ? MSH_PRESENT_ZERO : 0) |
                     ((categories & MSH_PAGE_IS_HUGE) ? MSH_PRESENT_HUGE : 0) |
                     ((categories & MSH_PAGE_IS_SWAPPED) ? MSH_SWAPPED : 0));
}

int msh_pagemap_scan(const MshPagemap *pagemap, const void *start, size_t pages, bool with_file,
                     uint8_t *ret_presence)
{
    struct msh_page_region regions[REGIONS_A_CALL]; /* never empty: some kernels fault on vec_len 0 */
    uint64_t first = (uintptr_t)start, end = first + msh_pages_to_bytes(pages);
    struct msh_pm_scan_arg scan = {
        .size = sizeof scan,
        .start = first,
        .end = end,
        .vec = (uintptr_t)regions,
        .vec_len = REGIONS_A_CALL,
        .category_anyof_mask = MSH_PAGE_IS_PRESENT | MSH_PAGE_IS_SWAPPED,
        .return_mask = MSH_PAGE_IS_PRESENT | (with_file ? MSH_PAGE_IS_FILE : 0) |
                       MSH_PAGE_IS_PFNZERO | MSH_PAGE_IS_HUGE | MSH_PAGE_IS_SWAPPED,
    };
    memset(ret_presence, 0, pages);
    while (scan.start < end) {
        int count = ioctl(pagemap->fd, MSH_PAGEMAP_SCAN, &scan);
        if (count < 0)
            return -errno;
        for (int i = 0; i < count; i++)
            memset(ret_presence + msh_bytes_to_pages(regions[i].start - first),
                   presence_of(regions[i].categories),
                   msh_bytes_to_pages(regions[i].end - regions[i].start));
        if (scan.walk_end <= scan.start)
            return -EIO;
        scan.start = scan.walk_end;
    }
    return 0;
}

bool msh_pagemap_is_in_memory(const void *page)
{
    unsigned char residency = 0; /* with a marker in the page table the kernel looks into the file's page cache */
    return mincore((void *)page, MSH_PAGE_BYTES, &residency) == 0 && (residency & 1);
}

/* Both masks are exactly "written": kernels that lack 40de8160ca7f misreport otherwise, and this form
 * is the fast one. */
static struct msh_pm_scan_arg written_scan(const void *start, size_t pages,
                                           struct msh_page_region *regions)
{
    return (struct msh_pm_scan_arg){
        .size = sizeof(struct msh_pm_scan_arg),
        .start = (uintptr_t)start,
        .end = (uintptr_t)start + msh_pages_to_bytes(pages),
        .vec = (uintptr_t)regions,
        .vec_len = MSH_PAGEMAP_RANGES,
        .category_mask = MSH_PAGE_IS_WRITTEN,
        .return_mask = MSH_PAGE_IS_WRITTEN,
    };
}

static int list_written(const MshPagemap *pagemap, const void *start, size_t pages, uint64_t flags,
                        uint32_t max_pages, MshPageRange ret_ranges[MSH_PAGEMAP_RANGES], uint64_t *ret_end)
{
    struct msh_page_region regions[MSH_PAGEMAP_RANGES];
    struct msh_pm_scan_arg scan = written_scan(start, pages, regions);
    scan.flags = flags;
    scan.max_pages = max_pages;
    int count = ioctl(pagemap->fd, MSH_PAGEMAP_SCAN, &scan);
    if (count < 0)
        return -errno;
    if (scan.walk_end <= scan.start)
        return -EIO;
    for (int i = 0; i < count; i++)
        ret_ranges[i] = (MshPageRange){.start = regions[i].start, .end = regions[i].end};
    *ret_end = scan.walk_end;
    return count;
}

int msh_pagemap_written(const MshPagemap *pagemap, const void *start, size_t pages,
                        uint32_t max_pages, MshPageRange ret_ranges[MSH_PAGEMAP_RANGES],
                        uint64_t *ret_end)
{
    return list_written(pagemap, start, pages, 0, max_pages, ret_ranges, ret_end);
}

int msh_pagemap_take_written(const MshPagemap *pagemap, const void *start, size_t pages,
                             uint32_t max_pages, MshPageRange ret_ranges[MSH_PAGEMAP_RANGES],
                             uint64_t *ret_end)
{
    return list_written(pagemap, start, pages, MSH_PM_SCAN_WP_MATCHING, max_pages, ret_ranges, ret_end);
}

static int protect(const MshPagemap *pagemap, struct msh_pm_scan_arg scan)
{
    scan.flags = MSH_PM_SCAN_WP_MATCHING;
    for (; scan.start < scan.end; scan.start = scan.walk_end) {
        if (ioctl(pagemap->fd, MSH_PAGEMAP_SCAN, &scan) < 0)
            return -errno;
        if (scan.walk_end <= scan.start)
            return -EIO;
    }
    return 0;
}

int msh_pagemap_protect(const MshPagemap *pagemap, const void *start, size_t pages)
{
    struct msh_page_region regions[MSH_PAGEMAP_RANGES];
    return protect(pagemap, written_scan(start, pages, regions));
}

int msh_pagemap_protect_absent(const MshPagemap *pagemap, const void *start, size_t pages)
{
    struct msh_page_region regions[MSH_PAGEMAP_RANGES];
    struct msh_pm_scan_arg scan = written_scan(start, pages, regions);
    scan.category_mask = scan.category_inverted = MSH_PAGE_IS_PRESENT | MSH_PAGE_IS_SWAPPED;
    scan.return_mask = MSH_PAGE_IS_PRESENT;
    return protect(pagemap, scan);
}
