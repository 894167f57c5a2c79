/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * touch FRACTION: writes random bytes to free memory until that fraction of the guest's RAM is in use, then frees it.
 *
 * What is in use at that moment was written by somebody: that is what it prints, however the kernel made room meanwhile.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pattern.h"
#include "run.h"

#define CHUNK_BYTES (4u << 20)
/* Left for the kernel, which would otherwise end processes. */
#define FLOOR_BYTES (12u << 20)

static void fill(uint64_t *words, size_t bytes, uint64_t seed)
{
    for (size_t page = 0; page < bytes / PAGE_BYTES; page++)
        pattern_page(words + page * PAGE_WORDS, pattern_seed(seed, now_ns(), page));
}

int main(int count, char **arguments)
{
    char *end = NULL;
    double fraction = count == 2 ? strtod(arguments[1], &end) : 0;
    uint64_t ram = meminfo_bytes("MemTotal");
    uint64_t seed = own_seed(), wanted, taken = 0, touched;

    if (!(fraction > 0) || fraction > 1 || !end || *end)
        die("usage: touch FRACTION, more than 0 and at most 1");
    wanted = (uint64_t)(fraction * (double)ram);
    /* No more than the fraction in all, even where the kernel makes room by dropping page cache. */
    while ((touched = ram - meminfo_bytes("MemFree")) < wanted && taken < wanted &&
           meminfo_bytes("MemFree") > FLOOR_BYTES + CHUNK_BYTES) {
        void *chunk = mmap(NULL, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (chunk == MAP_FAILED)
            break;
        fill(chunk, CHUNK_BYTES, seed);
        taken += CHUNK_BYTES;
    }
    printf("{\"touched_bytes\": %llu, \"ram_bytes\": %llu}\n", (unsigned long long)touched,
           (unsigned long long)ram);
    return 0;
}
