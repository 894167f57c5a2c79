/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A segment: MSH_SEGMENT_BYTES of the store in one memfd. The maker maps it writable, then seals it
 * SHRINK|FUTURE_WRITE, so that the kernel keeps everyone else, root included, from ever writing to it,
 * mapping it writable, shrinking it or punching a hole (I3, I4). Its size grows only to the fill
 * frontier, so nobody can allocate store memory by touching a hole; full, it is sealed GROW and SEAL.
 * One thread: the one that owns the group.
 */
#ifndef MSH_SEGMENT_H
#define MSH_SEGMENT_H

#include "memshare/error.h"
#include "memshare/units.h"

typedef struct MshSegment MshSegment;

int msh_segment_new(const char *group, uint32_t id, MshSegment **ret_segment, MshError *error);

/* Unmaps and closes. Its memory goes with the last mapping anywhere (I4). NULL is fine. */
MshSegment *msh_segment_free(MshSegment *segment);

/* The next slot's bytes: copies MSH_PAGE_BYTES in at the frontier, without publishing them.
 * 0 and the position · -ENOSPC the segment is full · -ENOMEM.
 * Until msh_segment_commit the position may be written again: nobody else can reach it, for the
 * file's size still ends before it or no one was told of it. */
int msh_segment_stage(MshSegment *segment, const void *page, uint32_t *ret_position);

/* The bytes staged, as they stand in the segment: hash these, not the sender's. */
const void *msh_segment_staged(const MshSegment *segment);

/* Makes the staged slot final: from here on its bytes never change (I3). */
int msh_segment_commit(MshSegment *segment);

uint32_t msh_segment_id(const MshSegment *segment);
uint32_t msh_segment_used_slots(const MshSegment *segment);

/* A new read-only descriptor (O_RDONLY, close-on-exec) for another process, or -errno. */
int msh_segment_open_readonly(const MshSegment *segment);

#endif
