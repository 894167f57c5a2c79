/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All regions of one engine, by frame number. Changed under both locks; read under either.
 */
#ifndef MSH_MEMORY_H
#define MSH_MEMORY_H

#include "region.h"

typedef struct MshMemory {
    MshRegion **region; /* by first_frame */
    size_t count;
} MshMemory;

/* Gives the region frame numbers and takes it over. -E2BIG: no numbers left · -ENOMEM */
int msh_memory_add(MshMemory *memory, MshRegion *region, MshError *error);

/* The region that starts at address, or NULL. */
MshRegion *msh_memory_at(const MshMemory *memory, const void *address);

/* Takes out the region that starts at address, or returns NULL. */
MshRegion *msh_memory_remove(MshMemory *memory, const void *address);

/* The region of a frame and the page in it, or NULL. */
MshRegion *msh_memory_find(const MshMemory *memory, uint32_t frame, uint32_t *ret_page);

/* The region of that frame, or the first one behind it, or NULL. */
MshRegion *msh_memory_next(const MshMemory *memory, uint32_t frame);

void msh_memory_free(MshMemory *memory);

#endif
