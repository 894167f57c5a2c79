/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stretch.h"

#define STRETCH_NS 5000000000ull

enum { SLOW_SHARE = 4 }; /* a pass of less than so many stretches is quick */

static void begin(MshStretch *stretch, uint32_t frame, uint64_t now_ns)
{
    stretch->first = frame;
    stretch->end = 0;
    stretch->begun_ns = now_ns;
}

void msh_stretch_restart(MshStretch *stretch, uint64_t now_ns)
{
    stretch->was_slow = stretch->has_turned;
    stretch->has_turned = false;
    begin(stretch, 0, now_ns);
}

uint32_t msh_stretch_next(MshStretch *stretch, uint32_t frame, bool is_end, uint64_t pages,
                          uint64_t now_ns)
{
    if (stretch->begun_ns == 0) /* nobody knew the time */
        stretch->begun_ns = now_ns;
    if (msh_stretch_is_second(stretch)) {
        if (frame >= stretch->end)
            begin(stretch, frame, now_ns);
        return frame;
    }
    bool is_slow = now_ns - stretch->begun_ns >= STRETCH_NS &&
                   (uint64_t)(frame - stretch->first) * SLOW_SHARE < pages;
    /* What is left at the end of a slow pass is a stretch too, however short. */
    if (frame == stretch->first || !(is_slow || (is_end && stretch->has_turned)))
        return frame;
    stretch->end = frame;
    stretch->has_turned = true;
    return stretch->first;
}
