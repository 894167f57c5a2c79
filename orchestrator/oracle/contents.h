/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counts how many different contents pages of several processes have. For measurements alone: no part
 * of sharing links it, and it shares no hash, zero test or comparison with the engine, so that a fault of
 * theirs cannot hide in the figure that they are judged by.
 *
 * Pages are read through /proc/PID/mem and in no other way. process_vm_readv pins what it reads, and
 * pinning a page that KSM merged gives the process a copy of its own: looking would undo the sharing.
 * A page is read only when the caller chose it; one that is absent would be made by reading it, or, in a
 * range armed with userfaultfd, never come.
 */
#ifndef MSH_CONTENTS_H
#define MSH_CONTENTS_H

#include <stdint.h>

#include "memshare/error.h"

/* Memory of one process. chosen has a byte for each page: other than 0 where it is to be read. */
typedef struct MshContentsRam {
    int32_t pid;
    uint64_t start; /* address of the first page */
    uint64_t pages;
    const uint8_t *chosen;
} MshContentsRam;

typedef struct MshContentsCount {
    uint64_t zero_pages;
    uint64_t distinct_pages; /* contents other than zeros */
} MshContentsCount;

/*
 * Counts over all the processes together, in so many threads, the caller's among them. Two contents are
 * equal when their XXH3-128 are. The processes must stand still. Below 0: -errno, and error says what
 * could not be read.
 */
int msh_contents_count(const MshContentsRam *rams, uint32_t count, uint32_t threads,
                       MshContentsCount *ret_count, MshError *error);

#endif
