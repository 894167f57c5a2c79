/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Merging: the single place that replaces pages of a running process by holes or store mappings.
 *
 * A window is a few short spans of registered memory, open for at most about 200 us. Inside it the
 * candidates are moved out of everybody's reach, compared byte by byte, and replaced or moved back;
 * who touches one meanwhile sleeps until the window closes. Always holds:
 *
 *   - A page is replaced only after a comparison made while no one could reach it (I1, I2).
 *   - On every path each page moved out is either replaced by equal contents or moved back (I1).
 *   - On every path each span is unregistered and then woken, whole (I8).
 *   - Inside a window: no lock, allocation, log, broker or QEMU call.
 *
 * Threads: one at a time, under the window lock.
 */
#ifndef MSH_WINDOW_H
#define MSH_WINDOW_H

#include "counters.h"
#include "memory.h"
#include "runs.h"
#include "track.h"
#include "uffd.h"
#include "views.h"

enum {
    MSH_WINDOW_PAGES = 512, /* that one window can take */
    MSH_WINDOW_SCRATCH_PAGES = 3 * MSH_WINDOW_PAGES,
    MSH_WINDOW_RUNS_MAX = 64,
    MSH_WINDOW_STRAIN_MAX = 4,
};

typedef struct MshWindow {
    MshUffd uffd;
    uint8_t *scratch;            /* where pages are moved to; registered for good */
    uint32_t held;               /* pages of it, from the first on, that may hold what was replaced */
    MshTrack *track;             /* lets go of what a window is about to open */
    _Atomic uint64_t refused_at; /* mappings there were when a run was last refused for want of more; 0:
                                    none was. Cleared by the reader */
    uint32_t flushes; /* calls that had other processors flush what they knew of our pages. Cleared by the reader */
    uint32_t effort; /* what a window may take on now, in pages' worth: follows the time it takes */
    uint32_t strain; /* rests are 2^strain times as long: grows while more than one window in a
                        hundred is late, up to MSH_WINDOW_STRAIN_MAX */
    uint32_t calm;   /* windows in time since it last changed */
    const MshPagemap *pagemap;
    const MshMemory *memory;
    const MshViews *views;
    MshCounters *counters;
} MshWindow;

/* device_fd as msh_uffd_open. window->track is set before. */
int msh_window_init(MshWindow *window, int device_fd, const MshPagemap *pagemap,
                    const MshMemory *memory, const MshViews *views, MshCounters *counters,
                    MshError *error);
void msh_window_fini(MshWindow *window);

/* Opens one window for as many of the candidates (sorted, one a frame), from the first on, as fit,
 * and closes it. Returns how many are done with, at least one. Slots that were not mapped after all
 * are written to ret_returned, which has room for count. If it cannot be closed properly the
 * userfaultfd is given up (msh_window_works): no page is lost, but no window may be opened again.
 */
size_t msh_window_merge(MshWindow *window, const MshCandidate *candidates, size_t count,
                        MshSlot *ret_returned, size_t *ret_returned_count);

/* Frees the memory of what was replaced: several windows' worth at once costs less. After the last one. */
void msh_window_free_replaced(MshWindow *window);

static inline bool msh_window_works(const MshWindow *window)
{
    return window->uffd.fd >= 0;
}

#endif
