/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is present among the pages that a visit looks at, and, of tracked blocks, what was written: found out in the one
 * order in which nothing is lost. An absent page can be told from a swapped one only before it is protected; what was
 * touched between that look and the protection is told by nobody any more. So presence is looked up, then the pages are
 * protected, then presence is corrected by a second look.
 *
 * Presences are bytes, each a set of MshPresence. All functions: 0, or -errno.
 *
 * Threads: under the memory lock.
 */
#ifndef MSH_PRESENCE_H
#define MSH_PRESENCE_H

#include "track.h"

enum { MSH_SCAN_BLOCK_PAGES = MSH_HUGE_PAGE_BYTES / MSH_PAGE_BYTES };

/* Of pages [first, end), one after the other. */
int msh_presence_find(const MshPagemap *pagemap, const MshRegion *region, uint32_t first, uint32_t end,
                      uint8_t *ret_presence);

/* After pages [first, end), at most a block of them, were protected: what is present now counts, and of all else what
 * was found before, for an absent page reads as swapped by now. */
int msh_presence_correct(const MshPagemap *pagemap, const MshRegion *region, uint32_t first, uint32_t end,
                         uint8_t *presence);

/* Protects what was harvested in a row of blocks, at most a block of pages (see msh_track_protect), and tells which of it
 * is present: the pages of the harvest, one after the other. */
int msh_presence_take(MshTrack *track, const MshRegion *region, MshHarvest *harvest,
                      uint8_t ret_presence[MSH_SCAN_BLOCK_PAGES]);

/* The same in one block, from harvest->first up to its end: presences of the pages that were written or are to be looked
 * at again, and which of them were written. Bytes of other pages tell nothing. */
int msh_presence_take_block(MshTrack *track, const MshRegion *region, MshHarvest *harvest,
                            uint8_t ret_presence[MSH_SCAN_BLOCK_PAGES],
                            bool ret_written[MSH_SCAN_BLOCK_PAGES]);

#endif
