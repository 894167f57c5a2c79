/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "lifecycle.h"

const MshTransition msh_transitions[] = {
    {MSH_PAGE_PRIVATE, MSH_PAGE_HOLE, "msh_window_merge", "window", true},
    {MSH_PAGE_PRIVATE, MSH_PAGE_HOLE, "msh_scan_visit", "scan", false}, /* by splitting */
    {MSH_PAGE_PRIVATE, MSH_PAGE_SHARED, "msh_window_merge", "window", true},
    {MSH_PAGE_HOLE, MSH_PAGE_PRIVATE, "msh_scan_visit", "scan", false},
    {MSH_PAGE_SHARED, MSH_PAGE_BROKEN, "msh_scan_visit", "scan", false},
    {MSH_PAGE_SHARED, MSH_PAGE_BROKEN, "msh_release_block", "scan or caller", false},
    {MSH_PAGE_SHARED, MSH_PAGE_SHARED, "msh_rehome_run", "window", true}, /* another slot */
    {MSH_PAGE_SHARED, MSH_PAGE_PRIVATE, "msh_rebuild_some", "scan or caller", true},
    {MSH_PAGE_SHARED, MSH_PAGE_HOLE, "msh_rebuild_some", "scan or caller", true}, /* zeroed since */
    {MSH_PAGE_BROKEN, MSH_PAGE_PRIVATE, "msh_rebuild_some", "scan or caller", true},
    {MSH_PAGE_BROKEN, MSH_PAGE_HOLE, "msh_rebuild_some", "scan or caller", true},
};
const size_t msh_transition_count = sizeof msh_transitions / sizeof *msh_transitions;

bool msh_transition_is_known(MshPageState from, MshPageState to)
{
    for (size_t i = 0; i < msh_transition_count; i++)
        if (msh_transitions[i].from == from && msh_transitions[i].to == to)
            return true;
    return false;
}
