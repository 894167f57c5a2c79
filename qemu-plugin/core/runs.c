/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "runs.h"

#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    const MshCandidate *left = a, *right = b;
    if (left->frame != right->frame)
        return left->frame < right->frame ? -1 : 1;
    return (left->slot > right->slot) - (left->slot < right->slot);
}

void msh_candidates_sort(MshCandidate *candidates, size_t count)
{
    /* Answers come in the order of the guest's frames; only hints break it. */
    for (size_t i = 1; i < count; i++) {
        if (compare(&candidates[i - 1], &candidates[i]) > 0) {
            qsort(candidates, count, sizeof *candidates, compare);
            return;
        }
    }
}

static bool follows(const MshCandidate *left, const MshCandidate *right)
{
    if (right->frame != left->frame + 1)
        return false;
    if (left->slot == MSH_SLOT_ZERO || right->slot == MSH_SLOT_ZERO)
        return left->slot == right->slot;
    return right->slot == left->slot + 1 && right->slot % MSH_SEGMENT_SLOTS != 0;
}

size_t msh_candidates_unique(MshCandidate *candidates, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        MshCandidate next = candidates[i];
        if (kept && candidates[kept - 1].frame == next.frame) {
            if (kept > 1 && follows(&candidates[kept - 2], &next)) {
                candidates[i] = candidates[kept - 1];
                candidates[kept - 1] = next;
            }
            continue;
        }
        candidates[i] = candidates[kept];
        candidates[kept++] = next;
    }
    return kept;
}

size_t msh_run_length(const MshCandidate *candidates, size_t count, size_t max)
{
    size_t length = 1;
    while (length < count && length < max && follows(&candidates[length - 1], &candidates[length]))
        length++;
    return length;
}
