/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A segment: up to MSH_SEGMENT_BYTES of the store in one memfd. The maker maps it writable, then seals it
 * SHRINK|FUTURE_WRITE, so that the kernel keeps everyone else, root included, from ever writing to
 * it, mapping it writable, shrinking it or punching a hole (I3, I4). Its size is the fill frontier and
 * fewer than 32 slots more, all allocated, so nobody can allocate store memory by touching a hole; full, it
 * is sealed GROW and SEAL. Until then growing it takes a writable descriptor, which the file's mode denies to other
 * users. One thread: the one that owns the group.
 */
#ifndef MSH_SEGMENT_H
#define MSH_SEGMENT_H

#include "memshare/error.h"
#include "memshare/units.h"

typedef struct MshSegment MshSegment;

/* slots: as many as it is to hold, at most MSH_SEGMENT_SLOTS. */
int msh_segment_new(const char *group, uint32_t id, uint32_t slots, MshSegment **ret_segment,
                    MshError *error);

/* Unmaps and closes. Its memory goes with the last mapping anywhere (I4). NULL is fine. */
MshSegment *msh_segment_free(MshSegment *segment);

/* The next slot's bytes: copied aside, where only this process can see them, so that nobody ever
 * reads bytes that were never committed. Staging again replaces them.
 * 0 and the position they will have · -ENOSPC the segment is full or closed. */
int msh_segment_stage(MshSegment *segment, const void *page, uint32_t *ret_position);

/* The bytes staged, as they will stand in the segment: hash these, not the sender's. */
const void *msh_segment_staged(const MshSegment *segment);

/* Makes the staged bytes a slot: from here on they never change (I3). -ENOMEM and others: no memory
 * for it; the segment is then closed, what it holds stays. */
int msh_segment_commit(MshSegment *segment);

uint32_t msh_segment_id(const MshSegment *segment);
uint32_t msh_segment_used_slots(const MshSegment *segment);

/* Reads a slot's bytes. -EINVAL was never filled · -EIO and others */
int msh_segment_read(const MshSegment *segment, uint32_t position, void *ret_page);

/* A new read-only descriptor (O_RDONLY, close-on-exec) for another process, or -errno. */
int msh_segment_open_readonly(const MshSegment *segment);

#endif
