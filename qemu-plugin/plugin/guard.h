/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Watches for what forbids sharing, from machine start to exit, and tells the engine how far it may
 * go.
 *
 * What holds:
 *   - No memory is registered before the first verdict, and none while the verdict is "off".
 *   - QEMU's requirement of RAM discards is held from before the first page may be shared until
 * after the last one is plain memory again. Devices that pin RAM fail to start meanwhile, with an error.
 * When a balloon comes that reports free pages, discards are disabled instead until then.
 *   - Once a second, facts of the process (a thread of its own: a file system may not answer) and
 * facts of QEMU (the main loop) are looked at again. A limit is lowered by whoever sees the reason;
 * only the main loop raises one.
 *   - When a device has come no window is opened until both looks were made anew. A file that is opened
 * for a device that was there before is seen up to a second late.
 *   - Where the guest's disks may pin pages, and the mode is not content, the main loop drains the block
 * layer again and again for the twinkling in which pages that are mapped from the store are made plain.
 *   - Before a background snapshot starts the last window is closed and no registration kept; an engine that
 * does not get there in time makes the snapshot fail.
 *
 * Threads: the verbs are for the main loop, under QEMU's big lock.
 */
#ifndef MEMSHARE_PLUGIN_GUARD_H
#define MEMSHARE_PLUGIN_GUARD_H

#include "memshare/memshare.h"

typedef struct MshGuard MshGuard;

/* Does nothing to the guest yet. */
MshGuard *msh_guard_new(MshEngine *engine, MshMode mode);

/* First verdict, then the engine and the watching start. When the machine is built. */
int msh_guard_start(MshGuard *guard, MshError *error);

/* The operator's mode. Takes the requirement of discards before the engine may share. Never waits.
 */
void msh_guard_set_mode(MshGuard *guard, MshMode mode);

/* A device was added, which the guest has not seen yet. */
void msh_guard_on_device(MshGuard *guard);

/* MshConfig.nothing_pinned. Any thread. */
bool msh_guard_nothing_pinned(const MshGuard *guard);

/* The process is about to end: no window opens any more, the watching thread ends. */
void msh_guard_stop(MshGuard *guard);

#endif
