/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Units of memory and their conversions.
 *
 * A frame and a slot are one-member structs, so that one passed for the other does not compile. No
 * shift or mask of an address stands anywhere else: a conversion without a name here is missing here.
 */
#ifndef MEMSHARE_UNITS_H
#define MEMSHARE_UNITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MSH_PAGE_BYTES 4096u
#define MSH_HUGE_PAGE_BYTES (2u << 20)
#define MSH_SEGMENT_BYTES (64u << 20) /* at most */
#define MSH_SEGMENT_SLOTS (MSH_SEGMENT_BYTES / MSH_PAGE_BYTES)

/* A page of a guest: its number, counted over all registered memory of one client. */
typedef struct MshFrame {
    uint32_t number;
} MshFrame;

/* A page in the store of a group: segment * MSH_SEGMENT_SLOTS + position in the segment. */
typedef struct MshSlot {
    uint32_t number;
} MshSlot;

/* Segments that a slot number can name. */
#define MSH_SEGMENTS_MAX (1u << 18)

static inline MshFrame msh_frame(uint32_t number)
{
    return (MshFrame){number};
}

static inline MshSlot msh_slot(uint32_t segment, uint32_t position)
{
    return (MshSlot){segment * MSH_SEGMENT_SLOTS + position};
}

static inline uint32_t msh_slot_segment(MshSlot slot)
{
    return slot.number / MSH_SEGMENT_SLOTS;
}

static inline uint32_t msh_slot_position(MshSlot slot)
{
    return slot.number % MSH_SEGMENT_SLOTS;
}

/* Where the slot starts within its segment. */
static inline uint64_t msh_slot_offset_bytes(MshSlot slot)
{
    return (uint64_t)msh_slot_position(slot) * MSH_PAGE_BYTES;
}

static inline uint64_t msh_pages_to_bytes(uint64_t pages)
{
    return pages * MSH_PAGE_BYTES;
}

static inline uint64_t msh_bytes_to_pages(uint64_t bytes)
{
    return bytes / MSH_PAGE_BYTES;
}

static inline bool msh_is_page_aligned(uint64_t address_or_bytes)
{
    return address_or_bytes % MSH_PAGE_BYTES == 0;
}

#endif
