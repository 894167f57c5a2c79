/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rebuilding: store mappings become plain memory again, joined with their neighbours into one
 * mapping, while the process runs. What was SHARED or BROKEN is PRIVATE afterwards, or a HOLE where
 * it held zeros.
 *
 * Contents are copied, under a synchronous write protection, and moved in: who touches a page
 * meanwhile sleeps until the window closes. A page that the kernel has pinned for I/O can change
 * behind the protection, so nothing may be pinned (MshConfig.nothing_pinned).
 *
 * The new memory is mapped elsewhere, never touched, and mremapped into place while registered: an
 * area that was ever touched would stay a mapping of its own for ever, and one that is not
 * registered would show zeros for a moment. A registered mremap waits until its event is read: a
 * thread does that.
 *
 * Threads: under the memory lock, but msh_rebuild_works(); the event thread touches the userfaultfd
 * only.
 */
#ifndef MSH_REBUILD_H
#define MSH_REBUILD_H

#include <pthread.h>
#include <stdatomic.h>

#include "counters.h"
#include "region.h"
#include "uffd.h"
#include "views.h"

enum { MSH_REBUILD_PAGES = 64 };

typedef struct MshRebuild {
    _Atomic bool is_working; /* the one thing in here that is read without the lock: stats do */
    MshUffd uffd;
    uint8_t *copies; /* MSH_REBUILD_PAGES of plain memory */
    pthread_t event_thread;
    int stop_fd;
    const MshPagemap *pagemap;
    const MshViews *views;
    MshCounters *counters;
} MshRebuild;

/* Zeroed before, or ended: others may ask meanwhile whether it works. */
int msh_rebuild_init(MshRebuild *rebuild, int device_fd, const MshPagemap *pagemap,
                     const MshViews *views, MshCounters *counters, MshError *error);
void msh_rebuild_fini(MshRebuild *rebuild);

/* False before msh_rebuild_init() and once its userfaultfd was lost: every run fails then. Any
 * thread; the answer lasts for as long as the lock is held. */
static inline bool msh_rebuild_works(const MshRebuild *rebuild)
{
    return atomic_load(&((MshRebuild *)rebuild)->is_working);
}

/* Unregisters a range and wakes all who wait in it, whatever happened before. If that fails the
 * userfaultfd is given up, which does the same. I8 */
void msh_rebuild_close_range(MshRebuild *rebuild, void *start, size_t length_bytes);

/* MshConfig's, where the host process has one. */
typedef struct MshPinOracle {
    bool (*nothing_pinned)(void *opaque);
    void *opaque;
} MshPinOracle;

/* Rebuilds the run of mapped pages that begins at page and ends at end or before, at most
 * MSH_REBUILD_PAGES, and sets *ret_end behind it. pins is asked when the pages are protected; NULL: the caller
 * knows that nothing is pinned. Slots of pages that were SHARED are written to
 * ret_returned. -errno: the pages are as they were. */
int msh_rebuild_run(MshRebuild *rebuild, MshRegion *region, uint32_t page, uint32_t end,
                    const MshPinOracle *pins, uint32_t *ret_end, MshSlot ret_returned[MSH_REBUILD_PAGES],
                    size_t *ret_returned_count);

#endif
