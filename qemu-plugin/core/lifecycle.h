/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The states of a registered page and the ways between them, as data: the engine takes no other way
 * (debug builds check each step), and the tests read the same table.
 *
 *              merge (zero)                 merge (content)
 *      HOLE <---------------- PRIVATE ------------------------> SHARED
 *        |                       ^  ^                             |
 *        +--- seen touched ------+  +---- rebuild ---- BROKEN <---+ seen written, or broken by us
 *
 * What a state promises of the address: HOLE, nothing or the kernel's zero page, until somebody touches
 * it; PRIVATE, memory as it was registered, present, swapped or never touched; SHARED, a store mapping
 * that reads as its slot until somebody writes; BROKEN, a private copy inside a store mapping. A guest's
 * own access is not seen when it happens: HOLE and SHARED mean "when last visited". Pure.
 */
#ifndef MSH_LIFECYCLE_H
#define MSH_LIFECYCLE_H

#include <stdbool.h>
#include <stddef.h>

typedef enum MshPageState {
    MSH_PAGE_PRIVATE = 0,
    MSH_PAGE_HOLE = 1,
    MSH_PAGE_SHARED = 2,
    MSH_PAGE_BROKEN = 3,
} MshPageState;

typedef struct MshTransition {
    MshPageState from, to;
    const char *by;     /* function */
    const char *thread; /* of the engine, or "caller" */
    bool may_fail;      /* the page then stays what it was */
} MshTransition;

extern const MshTransition msh_transitions[];
extern const size_t msh_transition_count;

bool msh_transition_is_known(MshPageState from, MshPageState to);

/* Whether the address lies in a store mapping. */
static inline bool msh_page_state_is_mapped(MshPageState state)
{
    return state == MSH_PAGE_SHARED || state == MSH_PAGE_BROKEN;
}

#endif
