/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rebuilding: store mappings become plain memory again, joined with their neighbours into one
 * mapping, while the process runs. What was SHARED or BROKEN is PRIVATE afterwards, or a HOLE where
 * it held zeros.
 *
 * Contents are copied into what is cast from the region's twin (twin.h), under a synchronous write protection: who writes to
 * a page meanwhile sleeps. From there they are mremapped into place. A page that the kernel has pinned for I/O can change
 * behind the protection, so nothing may be pinned (MshConfig.nothing_pinned).
 *
 * Threads: under the memory lock, but msh_rebuild_works().
 */
#ifndef MSH_REBUILD_H
#define MSH_REBUILD_H

#include <stdatomic.h>

#include "counters.h"
#include "region.h"
#include "track.h"
#include "uffd.h"
#include "views.h"

/* At once: who writes to one of them may wait until the last is in place. */
enum {
    MSH_REBUILD_PAGES = 64,
    MSH_REBUILD_RUNS = 8, /* of neighbours, a mapping each: some 200 us. I8 */
};

typedef struct MshRebuild {
    _Atomic bool is_working; /* the one thing in here that is read without the lock: stats do */
    MshUffd uffd;
    MshTrack *track;
    const MshViews *views;
    MshCounters *counters;
} MshRebuild;

/* Zeroed before, or ended: others may ask meanwhile whether it works. */
int msh_rebuild_init(MshRebuild *rebuild, int device_fd, MshTrack *track, const MshViews *views, MshCounters *counters,
                     MshError *error);
void msh_rebuild_fini(MshRebuild *rebuild);

/* False before msh_rebuild_init() and once its userfaultfd was lost: every run fails then. Any
 * thread; the answer lasts for as long as the lock is held. */
static inline bool msh_rebuild_works(const MshRebuild *rebuild)
{
    return atomic_load(&((MshRebuild *)rebuild)->is_working);
}

/* Takes pages [first, end) from tracking, and registers them with the rebuild's userfaultfd. modes: a set of MshUffdMode.
 * Other than 0, as msh_uffd_register: nothing is registered. In any case the caller has tracking resumed
 * (msh_track_resume), when all that it has opened is closed. */
int msh_rebuild_open_range(MshRebuild *rebuild, MshRegion *region, uint32_t first, uint32_t end, unsigned modes);

/* Unregisters them and wakes all who wait there, whatever happened before. If that fails the
 * userfaultfd is given up, which does the same. I8 */
void msh_rebuild_close_range(MshRebuild *rebuild, MshRegion *region, uint32_t first, uint32_t end);

/* Makes the twin of a region, before any of its pages is mapped from the store. False: there is none now. */
bool msh_rebuild_prepare(MshRebuild *rebuild, MshRegion *region);

/* MshConfig's, where the host process has one. */
typedef struct MshPinOracle {
    bool (*nothing_pinned)(void *opaque);
    void *opaque;
} MshPinOracle;

/* Rebuilds as many of these pages, from the first on, as go at once, and sets *ret_pages to how many that were. They are
 * SHARED or BROKEN and in the order of their addresses. pins is asked when the pages are protected; NULL: the caller
 * knows that nothing is pinned. Slots of pages that were SHARED are written to ret_returned. -errno: all pages
 * from *ret_pages on are as they were; -ENOSYS: the region has no twin. */
int msh_rebuild_some(MshRebuild *rebuild, MshRegion *region, const uint32_t *page, uint32_t pages,
                     const MshPinOracle *pins, uint32_t *ret_pages, MshSlot ret_returned[MSH_REBUILD_PAGES],
                     size_t *ret_returned_count);

#endif
