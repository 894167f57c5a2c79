/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What still lies in views that leave, because their broker is gone or empties them: each such view keeps the memory of a whole
 * segment. SHARED pages are asked about once more, and move to the slot that the answer names (rehome.h); BROKEN ones
 * become plain memory at once; and so do those that nothing moves, once they keep many times their own memory.
 *
 * A walk goes through all memory, in turns with scanning. Threads: under the work lock.
 */
#ifndef MSH_MOVING_H
#define MSH_MOVING_H

#include <stdbool.h>
#include <stdint.h>

#include "memshare/memshare.h"

typedef struct MshMoving {
    bool is_walking;
    bool walks_again; /* when this walk is done */
    bool had_turn;    /* the scan thread's last step was one of it */
    uint32_t frame;   /* where the walk goes on */
    unsigned retries; /* walks since a view came to leave that ask again about what stayed */
    uint64_t retry_earliest_ns;
    uint64_t connected_ns; /* when the present store was reached */
} MshMoving;

/* A view has come to leave. A walk that is under way goes to its end first: where much is rewritten views come to leave so
 * often that none would ever get there. */
void msh_moving_begin(MshEngine *engine);

/* From the first page on, everything is asked about, also what was before: whoever was asked is gone, or has forgotten. */
void msh_moving_begin_anew(MshEngine *engine);

/* Begins a walk if some pages stayed, less and less often. They may have for many reasons: no room for mappings or in the
 * store, a broker that was slow, an engine that was held. */
void msh_moving_retry(MshEngine *engine);

/* Whether the scan thread's next step is one of the walk. */
bool msh_moving_takes_turn(MshEngine *engine);

/* One step: what was asked about is in engine->visit. False: no walk is under way any more. */
bool msh_moving_step(MshEngine *engine);

#endif
