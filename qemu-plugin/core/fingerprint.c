/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Page hash and zero test. On x86 libxxhash picks AVX2 or AVX-512 code at run time, so that the
 * build itself stays plain x86-64: 13.3 GB/s where plain reading reaches 14.5 (one core of an
 * AVX-512 Xeon, memory far larger than its caches), and 5.8 with the SSE2 code that would be
 * compiled in otherwise.
 */
#include "fingerprint.h"

#include <string.h>

#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>
#endif

static_assert(MSH_SECRET_BYTES >= XXH3_SECRET_SIZE_MIN, "libxxhash refuses shorter secrets");

uint64_t msh_fingerprint(const uint8_t secret[MSH_SECRET_BYTES], const void *page)
{
    uint64_t hash = XXH3_64bits_withSecret(page, MSH_PAGE_BYTES, secret, MSH_SECRET_BYTES);
#ifdef MSH_WEAK_HASH
    return hash % 255 + 1;
#else
    return hash ? hash : 1;
#endif
}

bool msh_page_is_zero(const void *page)
{
    static const uint8_t zeros[16];
    const uint8_t *bytes = page;

    /* The first look decides about nearly every page that is not zero, at one cache miss. */
    if (memcmp(bytes, zeros, sizeof(zeros)) != 0)
        return false;
    /* Each byte equals the one 16 before it, and the first 16 are zero: libc's vector code does it.
     */
    return memcmp(bytes, bytes + sizeof(zeros), MSH_PAGE_BYTES - sizeof(zeros)) == 0;
}

void msh_page_copy(void *destination, const void *page)
{
    memcpy(destination, page, MSH_PAGE_BYTES);
}
