/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The cheap half of finding equal pages: a keyed hash that proposes, and the test for zeros.
 *
 * A fingerprint never decides that two pages are equal (I2): only the comparison inside a window
 * does. It is keyed by a secret of the group (XXH3-64 with secret), so that a guest cannot build
 * collisions offline. Pure; any thread.
 */
#ifndef MSH_FINGERPRINT_H
#define MSH_FINGERPRINT_H

#include "memshare/protocol.h"
#include "memshare/units.h"

/* Of one page of MSH_PAGE_BYTES. Never 0, so that 0 can stand for "none". Built with -Dweak_hash=true
 * it has 255 values, which makes nearly every candidate a false one: a test build. */
uint64_t msh_fingerprint(const uint8_t secret[MSH_SECRET_BYTES], const void *page);

bool msh_page_is_zero(const void *page);

/* Asks the processor for a page that is read next: its own prefetchers stop at the end of each page. No access: an
 * absent page stays absent (I9). */
static inline void msh_page_prefetch(const void *page)
{
    for (unsigned at = 0; at < MSH_PAGE_BYTES; at += 64)
        __builtin_prefetch((const char *)page + at);
}

/* A function of its own, as the two above are, since it reads what a guest may be writing to: what comes
 * out may be a mixture, and ThreadSanitizer is told of these alone. */
void msh_page_copy(void *destination, const void *page);

#endif
