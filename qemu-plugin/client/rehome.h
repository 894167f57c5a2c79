/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Re-homing: SHARED pages are mapped from another slot of equal contents, without becoming private
 * in between: when their broker has been restarted, or their segment is emptied, and memory is to
 * come back.
 *
 * Both slots are sealed, so they are compared in peace. Then the pages are write-protected: a
 * writer sleeps; what is still a clean page of the file is remapped, and all are woken. A page that
 * was written to before the protection stood is BROKEN and stays where it is (I1). Nothing is
 * copied, so pinned pages are no danger: whoever pins a page to write to it has broken it before.
 *
 * Threads: under the memory lock.
 */
#ifndef MSH_REHOME_H
#define MSH_REHOME_H

#include "pagemap.h"
#include "rebuild.h"

enum { MSH_REHOME_PAGES = 64 };

typedef enum MshRehomed {
    MSH_REHOMED_NOT,    /* as it was */
    MSH_REHOMED_DONE,   /* mapped from the new slot */
    MSH_REHOMED_BROKEN, /* a private copy: somebody has written to it */
} MshRehomed;

/* Tries pages [page, page + pages) of the region, at most MSH_REHOME_PAGES, all SHARED, with the slots from
 * first on, all in one view. ret_done says what has come of each; their old slots are in ret_old. -errno: none has
 * moved. */
int msh_rehome_run(MshRebuild *rebuild, const MshPagemap *pagemap, MshRegion *region, uint32_t page,
                   uint32_t pages, MshSlot first, MshRehomed ret_done[MSH_REHOME_PAGES],
                   MshSlot ret_old[MSH_REHOME_PAGES]);

#endif
