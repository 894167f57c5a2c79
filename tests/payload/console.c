/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "console.h"

enum { SERIAL_PORT = 0x3f8 };

static void put(char character)
{
    enum { LINE_STATUS = SERIAL_PORT + 5, TAKES_MORE = 0x20 };
    uint8_t status;
    do
        __asm__ volatile("inb %1, %0" : "=a"(status) : "d"((uint16_t)LINE_STATUS));
    while (!(status & TAKES_MORE));
    __asm__ volatile("outb %0, %1" : : "a"(character), "d"((uint16_t)SERIAL_PORT));
}

void say(const char *text)
{
    while (*text)
        put(*text++);
}

void say_number(uint32_t number)
{
    if (number > 9)
        say_number(number / 10);
    put((char)('0' + number % 10));
}

void say_bad(const uint32_t *numbers, uint32_t count)
{
    say("bad");
    for (uint32_t i = 0; i < count; i++) {
        put(' ');
        say_number(numbers[i]);
    }
    put('\n');
    for (;;)
        __asm__ volatile("cli; hlt");
}
