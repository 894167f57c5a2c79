/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From candidates to windows: sorted, each page once, window after window, with a rest in between. Pages
 * that are to move to another slot are re-homed; what may not merge now is given back.
 *
 * Threads: the window thread, or whoever drives a pass. Takes the memory lock for each window.
 */
#ifndef MSH_MERGING_H
#define MSH_MERGING_H

#include "engine.h"

/* So many flushes of their TLBs the guest's processors suffer from windows. */
enum { MSH_FLUSHES_A_SECOND = 40000 };

/* Merges all candidates, and empties the list. is_paced: rests between windows. */
void msh_merging_all(MshEngine *engine, MshCandidates *candidates, bool is_paced);

/* The window thread, from start to stop: merges what the scan thread hands over. */
void *msh_merging_main(void *engine);

#endif
