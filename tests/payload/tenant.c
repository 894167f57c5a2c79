/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest without an operating system that keeps rewriting its memory, and sleeps in between. What it writes is
 * told by bytes on its first serial port:
 *
 *   f   contents that other guests told so have as well: fertile
 *   b   contents that nobody has: barren
 *
 * It fills 64 MiB with each kind that it is told, says "filled", and goes on rewriting page after page, so many a
 * second. Fertile contents come in runs, as a guest's files do: a run is in one of a few states, so that one guest's run is like
 * another's soon, without the two knowing of each other.
 */
#include <stdbool.h>
#include <stdint.h>

#include "console.h"

enum {
    PAGES = 16384,
    PAGE_WORDS = 1024,
    TICKS_A_SECOND = 100,
    WRITES_A_TICK = 1,
    STATES = 4,
    RUN_PAGES = 16,
    VECTORS = 48,
    FIRST_IRQ = 32,
};

static volatile uint32_t (*const memory)[PAGE_WORDS] = (void *)(16u << 20);

static void out(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static uint8_t in(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port));
    return value;
}

/*
 * The clock: interrupts that do nothing but wake
 */

typedef struct __attribute__((packed)) Table {
    uint16_t limit;
    const void *start;
} Table;

__asm__("wake: push %eax\n"
        "      mov $0x20, %al\n"
        "      out %al, $0x20\n"
        "      pop %eax\n"
        "      iret\n");
extern void wake(void);

static void start_clock(void)
{
    enum { CODE = 8, DATA = 16, INTERRUPT_GATE = 0x8e00, HERTZ = 1193182 };
    static const uint64_t segments[] = {0, 0x00cf9a000000ffffull, 0x00cf92000000ffffull};
    static uint64_t gates[VECTORS];
    const Table segment_table = {sizeof segments - 1, segments}, gate_table = {sizeof gates - 1, gates};
    uint32_t handler = (uint32_t)&wake;

    __asm__ volatile("lgdt %0\n"
                     "ljmp %1, $1f\n"
                     "1: mov %2, %%ax\n"
                     "mov %%ax, %%ds\n"
                     "mov %%ax, %%es\n"
                     "mov %%ax, %%ss\n"
                     :
                     : "m"(segment_table), "i"(CODE), "i"(DATA)
                     : "eax", "memory");
    for (uint32_t vector = FIRST_IRQ; vector < VECTORS; vector++)
        gates[vector] = (uint64_t)(handler & 0xffff0000u) << 32 | (uint64_t)INTERRUPT_GATE << 32 |
                        (uint32_t)CODE << 16 | (handler & 0xffff);
    __asm__ volatile("lidt %0" : : "m"(gate_table));
    /* Both interrupt controllers begin at FIRST_IRQ, and let the clock through only. */
    const uint8_t words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, FIRST_IRQ}, {0xa1, FIRST_IRQ + 8},
                                {0x21, 4},    {0xa1, 2},    {0x21, 1},         {0xa1, 1},
                                {0x21, 0xfe}, {0xa1, 0xff}};
    for (uint32_t i = 0; i < sizeof words / sizeof words[0]; i++)
        out(words[i][0], words[i][1]);
    out(0x43, 0x34);
    out(0x40, HERTZ / TICKS_A_SECOND & 0xff);
    out(0x40, HERTZ / TICKS_A_SECOND >> 8);
}

/*
 * What it writes
 */

static uint32_t chance(void)
{
    static uint32_t state;
    if (state == 0)
        __asm__ volatile("rdtsc" : "=a"(state) : : "edx");
    return state = state * 1664525u + 1013904223u;
}

static void write_page(uint32_t page, bool is_fertile)
{
    static uint32_t state;
    uint32_t value = page * 0x9e3779b1u;
    if (page % RUN_PAGES == 0)
        state = (chance() >> 16) % STATES;
    value += is_fertile ? state * 0x85ebca6bu : chance();
    uint32_t step = is_fertile ? 1 : chance() | 1;
    for (uint32_t word = 0; word < PAGE_WORDS; word++, value = value * 5 + step)
        memory[page][word] = value;
}

static char told(void)
{
    enum { SERIAL_PORT = 0x3f8, LINE_STATUS = SERIAL_PORT + 5, HAS_SOME = 1 };
    return in(LINE_STATUS) & HAS_SOME ? (char)in(SERIAL_PORT) : 0;
}

__attribute__((noreturn)) void run(void);
void run(void)
{
    char kind = 0;
    start_clock();
    for (uint32_t page = 0;;) {
        __asm__ volatile("sti; hlt");
        char word = told();
        if (word == 'f' || word == 'b') {
            kind = word;
            for (page = 0; page < PAGES; page++)
                write_page(page, kind == 'f');
            page = 0;
            say("filled\n");
        }
        for (uint32_t i = 0; kind && i < WRITES_A_TICK; i++, page = (page + 1) % PAGES)
            write_page(page, kind == 'f');
    }
}
