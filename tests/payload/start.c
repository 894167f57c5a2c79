/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a guest of one file begins: as a multiboot kernel, in 32-bit protected mode without paging, in run(). */
#include <stdint.h>

enum { MULTIBOOT_MAGIC = 0x1badb002 };
__attribute__((section(".multiboot"), used)) static const uint32_t multiboot[3] = {
    MULTIBOOT_MAGIC, 0, -(uint32_t)MULTIBOOT_MAGIC};

static uint8_t stack[16384] __attribute__((used));

__asm__(".globl _start\n"
        "_start: mov $stack + 16384, %esp\n"
        "        cld\n"
        "        jmp run\n");
