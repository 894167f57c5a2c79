/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a guest of one file says on its first serial port. */
#ifndef MEMSHARE_TESTS_CONSOLE_H
#define MEMSHARE_TESTS_CONSOLE_H

#include <stdint.h>

void say(const char *text);
void say_number(uint32_t number);

/* Says "bad" and these numbers, and does nothing any more. */
__attribute__((noreturn)) void say_bad(const uint32_t *numbers, uint32_t count);

#endif
