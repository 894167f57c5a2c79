/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest without an operating system that writes single words to pages which are being shared, in no order,
 * and compares 16 MiB with what they must be, for ever. Each round is a line on the first serial port, as
 * writer.c has them; a round is a look at all words that were written, and at an eighth of all others:
 *
 *   round N        all was right
 *   bad P W F      word W of page P is F; it stops there
 *
 * Each page is like no other of this guest and like one of any other guest that runs this, but for one word at
 * most: writing that one makes the page private, writing it back makes it fit to be shared again. Both are
 * done to pages by chance, so that writes meet windows that are open; not more often than lets pages be the same
 * for long enough to be shared, however fast the machine is.
 *
 * Loops over memory are string instructions: where KVM runs such code at all it may be by emulating each
 * instruction, and these are the cheapest by far for a word.
 */
#include <stdbool.h>
#include <stdint.h>

#include "console.h"

enum {
    PAGES = 4096,
    PAGE_WORDS = 1024,
    PARTS = 8, /* of a page, of which one is looked at in a round */
    PART_WORDS = PAGE_WORDS / PARTS,
    LOOKS_A_WRITE = 8,
    TICKS_A_WRITE = 2386, /* of the timer: 2 ms */
};

typedef struct Mark {
    uint16_t word; /* the one that is unlike */
    bool is_set;
} Mark;

static uint32_t (*const memory)[PAGE_WORDS] = (void *)(16u << 20);
static uint32_t pool[PAGES + PAGE_WORDS]; /* page P begins as the words from P on */
static Mark marks[PAGES];

static uint32_t by_chance(void)
{
    static uint32_t state = 0x2545f491u;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

/* The PC's timer as its firmware leaves it: counts down from 65536, 1193182 times a second, again and again. */
static uint16_t ticks(void)
{
    uint8_t low, high;
    __asm__ volatile("outb %%al, $0x43; inb $0x40, %%al" : "=a"(low) : "0"((uint8_t)0));
    __asm__ volatile("inb $0x40, %0" : "=a"(high));
    return (uint16_t)-(low | high << 8);
}

static bool is_time_to_write(void)
{
    static uint16_t last;
    uint16_t now = ticks();
    if ((uint16_t)(now - last) < TICKS_A_WRITE)
        return false;
    last = now;
    return true;
}

static void copy_words(void *to, const void *from, uint32_t count)
{
    __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

/* How many words at the end, from the first one that differs on; 0: all are equal. */
static uint32_t words_from_difference(const void *one, const void *other, uint32_t count)
{
    bool equal;
    __asm__ volatile("cmp %%eax, %%eax; repe cmpsl"
                     : "+D"(one), "+S"(other), "+c"(count), "=@ccz"(equal)
                     :
                     : "memory");
    return equal ? 0 : count + 1;
}

static uint32_t unlike(uint32_t page, uint32_t word)
{
    return ~pool[page + word];
}

static void must_be(uint32_t page, uint32_t word, uint32_t wanted)
{
    uint32_t found = *(volatile uint32_t *)&memory[page][word];
    if (found != wanted)
        say_bad((const uint32_t[]){page, word, found}, 3);
}

static void must_be_as_at_first(uint32_t page, uint32_t first, uint32_t end)
{
    uint32_t left = words_from_difference(&memory[page][first], &pool[page + first], end - first);
    if (left)
        say_bad((const uint32_t[]){page, end - left, memory[page][end - left]}, 3);
}

static void look(uint32_t page, uint32_t part)
{
    const Mark *mark = &marks[page];
    uint32_t first = part * PART_WORDS, end = first + PART_WORDS;
    if (mark->is_set)
        must_be(page, mark->word, unlike(page, mark->word));
    if (mark->is_set && mark->word / PART_WORDS == part) {
        must_be_as_at_first(page, first, mark->word);
        first = mark->word + 1u;
    }
    must_be_as_at_first(page, first, end);
}

static void write(uint32_t page)
{
    Mark *mark = &marks[page];
    if (!mark->is_set)
        mark->word = (uint16_t)(by_chance() % PAGE_WORDS);
    uint32_t original = pool[page + mark->word], other = unlike(page, mark->word);
    must_be(page, mark->word, mark->is_set ? other : original);
    *(volatile uint32_t *)&memory[page][mark->word] = mark->is_set ? original : other;
    mark->is_set = !mark->is_set;
}

__attribute__((noreturn)) void run(void);
void run(void)
{
    for (uint32_t i = 0; i < sizeof(pool) / sizeof(pool[0]); i++)
        pool[i] = by_chance();
    for (uint32_t page = 0; page < PAGES; page++)
        copy_words(memory[page], &pool[page], PAGE_WORDS);
    for (uint32_t round = 0;; round++) {
        for (uint32_t page = 0; page < PAGES; page++) {
            look(page, round % PARTS);
            if (page % LOOKS_A_WRITE == 0 && is_time_to_write())
                write(by_chance() % PAGES);
        }
        say("round ");
        say_number(round);
        say("\n");
    }
}
