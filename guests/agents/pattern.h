/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Random pages that can be made again: what memory should hold never has to be remembered in memory. */
#ifndef MEMSHARE_PATTERN_H
#define MEMSHARE_PATTERN_H

#include <stdint.h>

#include "run.h"

#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

/* splitmix64 */
static inline uint64_t pattern_word(uint64_t number)
{
    number *= 0x9e3779b97f4a7c15u;
    number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9u;
    number = (number ^ (number >> 27)) * 0x94d049bb133111ebu;
    return number ^ (number >> 31);
}

/* The seed of the page that two numbers name, within a family of pages. */
static inline uint64_t pattern_seed(uint64_t family, uint64_t first, uint64_t second)
{
    return pattern_word(pattern_word(pattern_word(family + 1) + first) + second);
}

static inline void pattern_page(uint64_t *words, uint64_t seed)
{
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        words[i] = pattern_word(seed + i);
}

#endif
