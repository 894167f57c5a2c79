/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The order in which a slow walk looks at memory. A page merges at its second look, and where a pass takes minutes most of
 * what a busy guest holds has been written again by then: nothing would ever merge, however fertile the guest. So a slow
 * pass goes by stretches, each as long as a few seconds of walking: all of one is looked at, then all of it again, then
 * comes the next. A pass that is quick is one stretch, and the next pass is the second look.
 *
 * Pure; times are of one monotonic clock, in nanoseconds. Threads: as its owner, the scan.
 */
#ifndef MSH_STRETCH_H
#define MSH_STRETCH_H

#include <stdbool.h>
#include <stdint.h>

typedef struct MshStretch {
    uint64_t begun_ns;
    uint32_t first; /* frame where it begins */
    uint32_t end;   /* frame where the second looks end; 0: these are the first */
    bool has_turned; /* in this pass */
    bool was_slow;   /* the pass before has turned */
} MshStretch;

/* A pass begins; now_ns 0: at a time that nobody knows. */
void msh_stretch_restart(MshStretch *stretch, uint64_t now_ns);

/* The frame where a walk goes on that has come to this one: there, or where its stretch began. is_end: there is no memory
 * from there on. pages: of all memory. */
uint32_t msh_stretch_next(MshStretch *stretch, uint32_t frame, bool is_end, uint64_t pages,
                          uint64_t now_ns);

/* Whether the pages that are visited now were visited a few seconds ago. */
static inline bool msh_stretch_is_second(const MshStretch *stretch)
{
    return stretch->end > 0;
}

/* Whether a pass takes so long that it goes by stretches. */
static inline bool msh_stretch_is_slow(const MshStretch *stretch)
{
    return stretch->has_turned || stretch->was_slow;
}

/* Whether the last look at them was long ago: that they changed since tells little. */
static inline bool msh_stretch_is_first_of_two(const MshStretch *stretch)
{
    return msh_stretch_is_slow(stretch) && !msh_stretch_is_second(stretch);
}

#endif
