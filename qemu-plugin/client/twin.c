/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "twin.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>

/* A page more than the region: a mapping that is moved as a whole loses its anon_vma. I12 In huge pages, so that the kernel
 * puts it where one that is moved to it need not be split. */
static size_t length_of(const MshRegion *region)
{
    size_t length_bytes = msh_pages_to_bytes((uint64_t)region->pages + 1);
    return (length_bytes + MSH_HUGE_PAGE_BYTES - 1) / MSH_HUGE_PAGE_BYTES * MSH_HUGE_PAGE_BYTES;
}

/* The pages of a mapping, elsewhere, where the kernel likes; it stays, without them. */
static void *move_aside(void *from, size_t length_bytes)
{
    return mremap(from, length_bytes, length_bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
}

/* May wait, may not fail: the address holds nothing, or is not even mapped, and sleepers need their pages. I1 */
static void move_back(const MshRegion *region, void *from, size_t length_bytes)
{
    while (mremap(from, length_bytes, length_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, region->base) != region->base)
        sched_yield();
}

uint32_t msh_twin_first_pages(const MshRegion *region)
{
    return region->block[0].is_huge ? msh_region_block_end(region, 0) : 1;
}

int msh_twin_make(MshRegion *region, uint32_t first_pages)
{
    size_t moved_bytes = msh_pages_to_bytes(first_pages), length_bytes = length_of(region);
    uint8_t *aside = move_aside(region->base, moved_bytes);
    if (aside == MAP_FAILED)
        return -errno;
    uint8_t *twin = mremap(aside, moved_bytes, length_bytes, MREMAP_MAYMOVE);
    if (twin == MAP_FAILED) {
        int result = -errno;
        move_back(region, aside, moved_bytes);
        return result;
    }
    void *pages = move_aside(twin, moved_bytes);
    if (pages == MAP_FAILED) {
        int result = -errno;
        munmap(twin + moved_bytes, length_bytes - moved_bytes);
        move_back(region, twin, moved_bytes);
        return result;
    }
    move_back(region, pages, moved_bytes);
    region->twin = twin;
    return 0;
}

uint8_t *msh_twin_cast(const MshRegion *region, uint32_t first, uint32_t end)
{
    uint8_t *cast = move_aside(region->twin + msh_pages_to_bytes(first), msh_pages_to_bytes(end - first));
    return cast == MAP_FAILED ? NULL : cast;
}

void msh_twin_drop(MshRegion *region)
{
    if (region->twin)
        munmap(region->twin, length_of(region));
    region->twin = NULL;
}

/* 0: one mapping covers the range. */
static int look_for_mapping(const uint8_t *start, size_t length_bytes)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps)
        return -errno;
    unsigned long from, to;
    bool is_found = false;
    while (!is_found && fscanf(maps, "%lx-%lx%*[^\n]", &from, &to) == 2)
        is_found = from <= (uintptr_t)start && (uintptr_t)start + length_bytes <= to;
    fclose(maps);
    return is_found ? 0 : -ENOSYS;
}

static int try_to_join(MshRegion *region)
{
    enum { PAGE = 2 };
    void *home = msh_region_address(region, PAGE);
    int result = msh_twin_make(region, 1);
    if (result < 0)
        return result;
    uint8_t *cast = msh_twin_cast(region, PAGE, PAGE + 1);
    if (!cast)
        return -ENOMEM;
    *cast = 1;
    if (mremap(cast, MSH_PAGE_BYTES, MSH_PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, home) == home)
        return look_for_mapping(region->base, msh_pages_to_bytes(region->pages));
    result = -errno;
    munmap(cast, MSH_PAGE_BYTES);
    return result;
}

int msh_twin_try(void)
{
    enum { PAGES = 4 };
    size_t length_bytes = msh_pages_to_bytes(PAGES);
    void *pages = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return -errno;
    MshRegion region = {.base = pages, .pages = PAGES};
    for (uint32_t page = 0; page < PAGES; page++)
        *(volatile uint8_t *)msh_region_address(&region, page) = 1;
    int result = try_to_join(&region);
    msh_twin_drop(&region);
    munmap(pages, length_bytes);
    return result;
}
