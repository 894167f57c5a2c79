/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "load.h"
#include "pattern.h"
#include "run.h"

#define CHUNK_BYTES (1u << 20)
/* Of what the kernel could give without ending anybody. */
#define TAKEN_PERCENT 70u
/* Full, and then empty, for long enough to be seen in figures of one a second. */
#define REST_MS 2000u

static void fill(struct counters *counters, uint64_t *words, size_t chunks, uint64_t seed)
{
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        uint64_t began = now_ns();

        for (size_t page = chunk * CHUNK_BYTES / PAGE_BYTES; page < (chunk + 1) * CHUNK_BYTES / PAGE_BYTES; page++)
            pattern_page(words + page * PAGE_WORDS, pattern_seed(seed, 0, page));
        counters_operation(counters, began);
    }
}

/* A word of each page: all of it would take as long as filling. */
static void verify(struct counters *counters, const uint64_t *words, size_t chunks, uint64_t seed)
{
    for (size_t page = 0; page < chunks * CHUNK_BYTES / PAGE_BYTES; page++)
        if (words[page * PAGE_WORDS] != pattern_word(pattern_seed(seed, 0, page)))
            counters_wrong(counters, "allocate: page %zu is not what was written", page);
}

_Noreturn void load_allocate(struct counters *counters)
{
    for (uint64_t seed = own_seed();; seed++) {
        size_t chunks = meminfo_bytes("MemAvailable") / 100 * TAKEN_PERCENT / CHUNK_BYTES;
        size_t bytes = chunks * CHUNK_BYTES;
        uint64_t *words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (words == MAP_FAILED)
            die("%zu bytes: %s", bytes, strerror(errno));
        fill(counters, words, chunks, seed);
        sleep_ms(REST_MS);
        verify(counters, words, chunks, seed);
        munmap(words, bytes);
        sleep_ms(REST_MS);
    }
}
