/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What torture.c offers to tests/lib/torture.py, which reads this very file. */
#ifndef MSH_TEST_TORTURE_H
#define MSH_TEST_TORTURE_H

#include <stddef.h>
#include <stdint.h>

typedef struct Torture Torture;
typedef struct Touch Touch;

/* Fills the region and starts the writers; each rests after a burst of so many writes. pins: the
 * kernel pins a page while it writes to it. Not for an engine that was told that nothing is pinned,
 * and not for memory that is swapped out: a reader may see the page as it was before, while the
 * kernel puts off the flush of its TLB (seen without any engine). */
Torture *torture_start(void *base, size_t page_count, unsigned writer_count, unsigned burst,
                       int pins);
uint64_t torture_lost(const Torture *torture);
uint64_t torture_writes(const Torture *torture);
/* Stops the writers. */
void torture_stop(Torture *torture);
/* How many bytes of the region, all of it, are not what was written there last. Stopped only. */
uint64_t torture_wrong_bytes(const Torture *torture);
void torture_free(Torture *torture);

/* A thread that writes value, or only reads where it is -1, and then reads. */
Touch *touch_start(void *address, int value);
int touch_tid(const Touch *touch);
/* The byte that was read, or -1: it has not come back within that time. */
int touch_join(Touch *touch, unsigned timeout_seconds);

#endif
