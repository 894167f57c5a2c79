/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which of the guest's memory is registered with the engine.
 *
 * Only RAM of memory backends is: pc.ram, -object memory-backend-ram, hotplugged DIMMs. ROMs and
 * video memory are private anonymous memory too, but small, and devices and displays keep pointers
 * into them and re-map them at will; they stay out. The kernel's KSM, which has no groups, does not
 * get them either: nothing of a guest that shares in one is merged beyond it.
 *
 * What holds: a block is only registered while this file holds a reference on its memory region, so
 * it cannot be unmapped under the engine (I1). References are taken and dropped in the main loop,
 * because the last one finalises the region in whoever drops it.
 *
 * Threads: main loop only, under QEMU's big lock.
 */
#ifndef MEMSHARE_PLUGIN_RAM_H
#define MEMSHARE_PLUGIN_RAM_H

#include "memshare/memshare.h"

typedef struct MshRam MshRam;

MshRam *msh_ram_new(MshEngine *engine);

/* Looks for memory that came or went. With may_register, memory that came is registered (and is no
 * longer the kernel's KSM's). ret_refusal: "", or why no block is or could be shared. */
void msh_ram_update(MshRam *ram, bool may_register, char ret_refusal[MSH_TEXT_BYTES]);

#endif
