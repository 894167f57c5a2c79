/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way back: mapped pages become private, a block at a time. Where the host process promises that
 * nothing is pinned they are rebuilt into plain memory, and the store's memory comes back with its last
 * mapping; else each is broken in place, which is always safe and keeps the mapping.
 */
#ifndef MSH_RELEASE_H
#define MSH_RELEASE_H

#include "engine.h"

/* Whether there is anything to release, and a way to do it. Takes no lock and needs none. */
bool msh_release_is_due(const MshEngine *engine);

/* Releases up to MSH_SCAN_BLOCK_PAGES pages from *frame on, moves *frame on, and returns whether there is
 * more; if not, *frame is at the start again. is_quiet: the caller knows that nothing is pinned. Memory lock. */
bool msh_release_some(MshEngine *engine, uint32_t *frame, bool is_quiet);

/* The same by an engine's thread, which does not know. Takes the memory lock. */
bool msh_release_block(MshEngine *engine, uint32_t *frame);

/* The same for all pages of one region that leaves, or those that can be done until then; the next call goes on
 * from there. Whether it is done. Memory lock. */
bool msh_release_region(MshEngine *engine, MshRegion *region, uint64_t until_ns);

/* Rebuilds what has been BROKEN for a while in pages [first, end), so that it can merge again, as long as
 * the mappings last that this may cost. Memory lock. */
void msh_release_mend(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end);

typedef bool MshIsDue(const MshEngine *engine, const MshRegion *region, uint32_t page);

/* The same at once, for those mapped pages of [first, end), at most MSH_SCAN_BLOCK_PAGES, that are due. Memory lock. */
void msh_release_some_of(MshEngine *engine, MshRegion *region, uint32_t first, uint32_t end, MshIsDue *is_due);

#endif
