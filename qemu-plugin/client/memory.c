/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int msh_memory_add(MshMemory *memory, MshRegion *region, MshError *error)
{
    MshRegion **grown = realloc(memory->region, (memory->count + 1) * sizeof *grown);
    if (!grown)
        return msh_error_set(error, -ENOMEM, "out of memory");
    memory->region = grown;

    /* The first gap that is long enough. */
    size_t at = 0;
    uint64_t first = 0;
    for (; at < memory->count; at++) {
        const MshRegion *next = memory->region[at];
        if (first + region->pages <= next->first_frame)
            break;
        first = (uint64_t)next->first_frame + next->pages;
    }
    if (first + region->pages > UINT32_MAX)
        return msh_error_set(error, -E2BIG,
                             "%u more pages at %p are more than frame numbers can name",
                             region->pages, (void *)region->base);
    region->first_frame = (uint32_t)first;
    memmove(grown + at + 1, grown + at, (memory->count - at) * sizeof *grown);
    grown[at] = region;
    memory->count++;
    return 0;
}

MshRegion *msh_memory_at(const MshMemory *memory, const void *address)
{
    for (size_t i = 0; i < memory->count; i++)
        if (memory->region[i]->base == address)
            return memory->region[i];
    return NULL;
}

MshRegion *msh_memory_remove(MshMemory *memory, const void *address)
{
    for (size_t i = 0; i < memory->count; i++) {
        MshRegion *region = memory->region[i];
        if (region->base == address) {
            memory->count--;
            memmove(memory->region + i, memory->region + i + 1,
                    (memory->count - i) * sizeof *memory->region);
            return region;
        }
    }
    return NULL;
}

MshRegion *msh_memory_find(const MshMemory *memory, uint32_t frame, uint32_t *ret_page)
{
    size_t low = 0, high = memory->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        MshRegion *region = memory->region[middle];
        if (frame < region->first_frame) {
            high = middle;
        } else if (frame - region->first_frame >= region->pages) {
            low = middle + 1;
        } else {
            *ret_page = frame - region->first_frame;
            return region;
        }
    }
    return NULL;
}

MshRegion *msh_memory_next(const MshMemory *memory, uint32_t frame)
{
    for (size_t i = 0; i < memory->count; i++)
        if (frame < memory->region[i]->first_frame + memory->region[i]->pages)
            return memory->region[i];
    return NULL;
}

void msh_memory_free(MshMemory *memory)
{
    for (size_t i = 0; i < memory->count; i++)
        msh_region_free(memory->region[i]);
    free(memory->region);
    *memory = (MshMemory){0};
}
