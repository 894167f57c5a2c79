/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest without an operating system: it fills 32 MiB, goes on writing to a part of them, and compares
 * every word with what it must be, for ever. A round is some writes and one look at everything; each
 * round is a line on the first serial port:
 *
 *   round N          all was right
 *   bad P W G F      word W of page P, written G times, is F; it stops there
 *
 * Loaded as a multiboot kernel (-kernel), runs in 32-bit protected mode without paging, so under TCG as
 * well as where KVM runs such code.
 *
 * Pages come in blocks of 2 MiB, by turns: two equal ones that are let be but for a few pages, one that is
 * written, one that is zeros at times. What a page must hold follows from its number and from how often
 * it was written, which is noted apart. So memory that is put back to an earlier time as a whole is right,
 * and a mixture of two times is not.
 */
#include <stdbool.h>
#include <stdint.h>

#include "console.h"

enum {
    PAGES = 8192,
    PAGE_WORDS = 1024,
    BLOCK_PAGES = 512, /* a huge page */
    WRITTEN_A_ROUND = 512,
    ZEROED_A_ROUND = 256,
    BROKEN_A_ROUND = 16,
};

typedef enum Kind { STEADY, STEADY_TOO, WRITTEN, ZERO_AT_TIMES, KINDS } Kind;

static volatile uint32_t (*const memory)[PAGE_WORDS] = (void *)(16u << 20);
static uint32_t writes[PAGES]; /* to each page */

/*
 * What a page must hold
 */

static Kind kind_of(uint32_t page)
{
    return (Kind)(page / BLOCK_PAGES % KINDS);
}

static bool is_zero(uint32_t page)
{
    return kind_of(page) == ZERO_AT_TIMES && writes[page] % 2 == 0;
}

/* A steady page is like its twin, and like itself before, whenever it was written an even number of times. */
static uint32_t first_word(uint32_t page)
{
    bool is_steady = kind_of(page) == STEADY || kind_of(page) == STEADY_TOO;
    uint32_t time = is_steady && writes[page] % 2 == 0 ? 0 : writes[page];
    uint32_t number = kind_of(page) == STEADY_TOO && time == 0 ? page - BLOCK_PAGES : page;
    return (number * 0x9e3779b1u) ^ (time * 0x85ebca6bu) ^ 0xa5a5a5a5u;
}

static void write_page(uint32_t page)
{
    bool zero = is_zero(page);
    uint32_t value = first_word(page);
    for (uint32_t word = 0; word < PAGE_WORDS; word++, value = value * 5 + 1)
        memory[page][word] = zero ? 0 : value;
}

static void check_page(uint32_t page)
{
    bool zero = is_zero(page);
    uint32_t value = first_word(page);
    for (uint32_t word = 0; word < PAGE_WORDS; word++, value = value * 5 + 1) {
        uint32_t found = memory[page][word];
        if (found == (zero ? 0 : value))
            continue;
        say_bad((const uint32_t[]){page, word, writes[page], found}, 4);
    }
}

/*
 * Rounds
 */

/* The next so many pages of a kind. */
static void write_some(uint32_t *at, uint32_t count, Kind kind)
{
    while (count) {
        *at = (*at + 1) % PAGES;
        if (kind_of(*at) != kind)
            continue;
        writes[*at]++;
        write_page(*at);
        count--;
    }
}

__attribute__((noreturn)) void run(void);
void run(void)
{
    uint32_t written = 0, zeroed = 0, broken = 0;
    for (uint32_t page = 0; page < PAGES; page++)
        write_page(page);
    for (uint32_t round = 0;; round++) {
        write_some(&written, WRITTEN_A_ROUND, WRITTEN);
        write_some(&zeroed, ZEROED_A_ROUND, ZERO_AT_TIMES);
        write_some(&broken, BROKEN_A_ROUND, STEADY);
        for (uint32_t page = 0; page < PAGES; page++)
            check_page(page);
        say("round ");
        say_number(round);
        say("\n");
    }
}
